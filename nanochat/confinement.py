"""The walls around a program that nobody trusts, built by the program's own process before it starts, by no one else.

In: a folder that may be written, and limits. Out: nothing; the walls stand until the process ends. Linux on x86-64 and
arm64, without root, containers or packages. Standard library only: sandbox.py runs it where nothing else is.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import sys

FILE_BYTES = 8 << 20  # of one file
OPEN_FILES = 32

# ---------------------------------------------------------------------------------------------------------------------
# Wall 1: seccomp, a list of the system calls that computing and file reading need. All others fail with EPERM: sockets,
# processes, threads, exec, signals to others, ptrace, mounts, namespaces, io_uring, memfd, keys, bpf, chmod, links.
# Name, number on x86-64, number on arm64.

SYSCALLS = """
read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  pwrite64 18 68  lseek 8 62  close 3 57
close_range 436 436  open 2 -  openat 257 56  stat 4 -  lstat 6 -  fstat 5 80  newfstatat 262 79  statx 332 291
access 21 -  faccessat 269 48  faccessat2 439 439  readlink 89 -  readlinkat 267 78  getdents 78 -  getdents64 217 61
getcwd 79 17  chdir 80 49  fchdir 81 50  mkdir 83 -  mkdirat 258 34  rmdir 84 -  unlink 87 -  unlinkat 263 35
rename 82 -  renameat 264 38  ftruncate 77 46  sendfile 40 71  copy_file_range 326 285  dup 32 23  dup2 33 -
dup3 292 24  umask 95 166  poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72  munmap 11 215  mremap 25 216
mprotect 10 226  brk 12 214  rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139  sigaltstack 131 132
setitimer 38 103  getitimer 36 102  alarm 37 -  pause 34 -  restart_syscall 219 128  clock_gettime 228 113
clock_getres 229 114  clock_nanosleep 230 115  nanosleep 35 101  gettimeofday 96 169  time 201 -  times 100 153
getrusage 98 165  getrlimit 97 163  getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174  geteuid 107 175
getgid 104 176  getegid 108 177  getgroups 115 158  uname 63 160  sysinfo 99 179  getrandom 318 278
sched_yield 24 124  sched_getaffinity 204 123  exit 60 93  exit_group 231 94
"""
# Calls of which one argument must be in a list: name -> numbers, which argument, its values.
CHOICES = {
    # no F_SETOWN and the like, which send signals, and no leases; locks hold on the files that it may open
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),
    # wait and wake only, each of them private or not, by either clock: no priority inheritance, no requeueing
    "futex": ((202, 98), 1, tuple(operation | flags for operation in (0, 1, 9, 10) for flags in (0, 128, 256, 384))),
    "madvise": ((28, 233), 2, (0, 1, 2, 3, 4, 8, 14, 15)),  # what allocators say; no merging with other processes
}
PRETENDED = ((74, 82), (75, 83), (26, 227))  # fsync, fdatasync, msync: no program is to keep the disk busy for nothing
MMAP, PRLIMIT, IOCTL, CLONE3 = (9, 222), (302, 261), (16, 29), (435, 435)
ANONYMOUS, HUGE = 0x20, 0x40000  # flags of mmap
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit architecture, column of the tables above

LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # FAIL + errno


def seccomp_filter(machine: str) -> bytes:
    """The BPF program for "x86_64" or "aarch64". ValueError for another machine."""
    if machine not in MACHINES:
        raise ValueError(f"no table of system calls for {machine}")
    architecture, column = MACHINES[machine]
    words = SYSCALLS.split()
    refuse, allow = (RETURN, 0, 0, FAIL + errno.EPERM), (RETURN, 0, 0, ALLOW)
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    code += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]  # x32 calls have numbers of their own
    for number in words[1 + column :: 3]:
        if number != "-":
            code += [(EQUAL, 0, 1, int(number)), allow]
    for numbers in PRETENDED:
        code += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, FAIL)]  # "failed" with error 0: done
    code += [(EQUAL, 0, 1, IOCTL[column]), (RETURN, 0, 0, FAIL + errno.ENOTTY)]  # Python then takes fcntl
    code += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, FAIL + errno.ENOSYS)]
    for numbers, position, values in CHOICES.values():
        code += [(EQUAL, 0, 2 * len(values) + 2, numbers[column]), (LOAD, 0, 0, argument(position))]
        for value in values:
            code += [(EQUAL, 0, 1, value), allow]
        code += [refuse]
    # mmap of memory only: a mapped file that was deleted would lie on the disk where no look into the folder finds it
    code += [(EQUAL, 0, 5, MMAP[column]), (LOAD, 0, 0, argument(3)), (HAS_BITS, 2, 0, HUGE)]
    code += [(HAS_BITS, 0, 1, ANONYMOUS), allow, refuse]
    # prlimit64(pid, resource, new, old): only to read one's own
    code += [(EQUAL, 0, 7, PRLIMIT[column])]
    for jump, offset in ((5, argument(0)), (3, argument(2)), (1, argument(2) + 4)):
        code += [(LOAD, 0, 0, offset), (EQUAL, 0, jump, 0)]
    code += [allow, refuse]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def argument(position: int) -> int:
    """Where the lower half of a system call's argument lies in what the filter sees."""
    return 16 + 8 * position


def install_seccomp(libc, code: bytes) -> None:
    """From here on this process makes only the calls that the filter allows; it cannot be taken off."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call(libc.prctl, 22, 2, program, 0, 0)  # PR_SET_SECCOMP, a filter


def drop_capabilities(libc) -> None:
    """Root without root's powers: still its own user (the standard library may lie in /root), but no more."""
    header, sets = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call(libc.capset, header, sets)


def call(function, *arguments: int | bytes) -> int:
    """A C function's result. OSError with its errno if that is negative."""
    result = function(*(ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_ulong(a) for a in arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function.__name__)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Wall 2: Landlock, a list of the files that may be opened. https://docs.kernel.org/userspace-api/landlock.html

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_FILE, TRUNCATE = (
    1 << n for n in (1, 2, 3, 4, 5, 7, 8, 14)
)
READ = READ_FILE | READ_DIR
SCRATCH = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_FILE | TRUNCATE


def landlock_abi(libc) -> int:
    """Version of the kernel's Landlock. OSError if there is none."""
    return call(libc.syscall, 444, 0, 0, 1)


def landlock_ruleset(libc, abi: int, paths: dict[str, int]) -> int:
    """A descriptor that stands for "these rights below these paths, nothing else"."""
    handled = 0x1FFF | (1 << 13) * (abi >= 2) | (1 << 14) * (abi >= 3) | (1 << 15) * (abi >= 5)
    network, scoped = 3, 3  # TCP bind and connect; abstract sockets and signals
    attributes = struct.pack("QQQ", handled, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = call(libc.syscall, 444, attributes, len(attributes), 0)
    for path, rights in paths.items():
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc.syscall, 445, ruleset, 1, struct.pack("=Qi", rights & handled, descriptor), 0)
        os.close(descriptor)
    return ruleset


def landlock_restrict(libc, abi: int, ruleset: int) -> None:
    """From here on this process opens only what this ruleset and those before it all allow."""
    call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call(libc.syscall, 446, ruleset, int(abi >= 7))  # what it is refused must not fill the log of the system


def library_paths() -> dict[str, int]:
    """Path -> rights: where `import` finds the standard library, and what programs expect to be able to open."""
    paths = {path: READ for path in sys.path if os.path.isdir(path)}
    extra = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE, "/usr/share/zoneinfo": READ}
    return paths | {path: rights for path, rights in extra.items() if os.path.exists(path)}


def without_packages(paths: dict[str, int]) -> dict[str, int]:
    """The same, entry by entry, but for the site-packages that lie in the standard library's folder."""
    entries = {}
    for path, rights in paths.items():
        if rights != READ or path not in sys.path:
            entries[path] = rights
            continue
        entries[path] = READ_DIR
        for entry in os.scandir(path):
            if entry.name not in ("site-packages", "dist-packages") and os.path.exists(entry.path):
                entries[entry.path] = READ if entry.is_dir() else READ_FILE
    return entries


# ---------------------------------------------------------------------------------------------------------------------
# macOS: the same wall around the warm parent and all its programs, written in the language of sandbox-exec. Reviewed,
# never run: nobody who wrote this had a Mac. What it does not contain stands in execution.py.

MAC_PROFILE = """(version 1) (allow default)
(deny network*) (deny mach-lookup) (deny mach-register) (deny ipc-posix*) (deny ipc-sysv*) (deny iokit-open)
(deny appleevent-send) (deny job-creation) (deny process-info*) (allow process-info* (target self))
(deny signal) (allow signal (target same-sandbox))
(deny process-exec*) (allow process-exec* (literal "{python}") (subpath "{prefix}"))
(deny file-write*) (allow file-write* (subpath "{base}") (literal "/dev/null"))
(deny file-read-data)
(allow file-read-data (literal "/") (subpath "{base}") (subpath "{prefix}") (subpath "{package}") (literal "/dev/null")
  (literal "/dev/random") (literal "/dev/urandom") (subpath "/System") (subpath "/usr/lib") (subpath "/usr/share")
  (subpath "/Library/Frameworks") (subpath "/private/var/db/dyld") (subpath "/private/var/db/timezone"))"""


def mac_command(command: list[str], base: str, package: str) -> list[str]:
    """A command line of Python, so that sandbox-exec runs it. ValueError if a path cannot be written in a profile."""
    python = os.path.realpath(sys.executable)  # a virtual environment's is a link, and packages are not wanted
    paths = {"base": base, "python": python, "prefix": os.path.realpath(sys.base_prefix), "package": package}
    if any(mark in path for path in paths.values() for mark in '"\\'):
        raise ValueError(f"sandbox-exec takes no quotes or backslashes in paths: {paths}")
    return ["/usr/bin/sandbox-exec", "-p", MAC_PROFILE.format(**paths), python, *command[1:]]


# ---------------------------------------------------------------------------------------------------------------------
# All walls of one program


class Walls:
    """What this kernel offers, found out by trying: `level` is "strict", "basic" or "none", `reasons` says why."""

    def __init__(self, base: str):
        """`base` is the folder in which every program gets one of its own."""
        self.linux = sys.platform == "linux"
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.base, self.abi, self.ruleset, self.filter, self.reasons = base, 0, -1, b"", []
        self.parent = os.getpid()
        if self.linux:
            self._find_landlock()
            self._find_seccomp()
        elif sys.platform == "darwin":
            self.reasons.append("macOS: sandbox-exec confines files and network, but nothing limits memory")
        else:
            self.reasons.append(f"no sandbox for {sys.platform}: Linux or macOS is needed")
        complete = self.abi > 0 and bool(self.filter)
        self.level = "strict" if complete else "basic" if self.linux or sys.platform == "darwin" else "none"

    def _find_landlock(self) -> None:
        try:
            self.abi = landlock_abi(self.libc)
            self.paths = library_paths()
            shared = without_packages(self.paths) | {self.base: SCRATCH}  # hundreds of rules, made once
            self.ruleset = landlock_ruleset(self.libc, self.abi, shared)
            if not self._holds(lambda: self._restrict_files(self.base), lambda: os.open(__file__, os.O_RDONLY)):
                raise OSError("Landlock does not hold")
            self.reasons.append(f"Landlock ABI {self.abi}")
        except OSError as error:
            self.abi = 0
            self.reasons.append(f"no Landlock ({error.strerror or error}): it needs Linux 5.13 with landlock in lsm=")

    def _find_seccomp(self) -> None:
        try:
            self.filter = seccomp_filter(platform.machine())
            if not self._holds(lambda: install_seccomp(self.libc, self.filter), lambda: os.kill(os.getpid(), 0)):
                raise OSError("seccomp does not hold")
            self.reasons.append("seccomp")
        except (OSError, ValueError) as error:
            self.filter = b""
            self.reasons.append(f"no seccomp filter ({error})")

    def _holds(self, confine, forbidden) -> bool:
        """Whether a process that called `confine` is refused `forbidden`; its exit status tells."""
        child = os.fork()
        if child == 0:
            try:
                confine()
                forbidden()
            except PermissionError:
                os._exit(77)
            except BaseException:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77

    def _restrict_files(self, folder: str) -> None:
        """Two layers, and only what both allow: the library without packages, and no other program's folder."""
        own = landlock_ruleset(self.libc, self.abi, self.paths | {folder: SCRATCH})
        landlock_restrict(self.libc, self.abi, self.ruleset)
        landlock_restrict(self.libc, self.abi, own)

    def close(self, folder: str, memory: int, seconds: float, keep: int) -> None:
        """Confine this process for ever; only the descriptors below `keep` stay open. OSError if any wall fails."""
        if self.linux:
            call(self.libc.prctl, 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: not without the warm parent
            if os.getppid() != self.parent:
                raise ProcessLookupError("the warm parent has died")
            try:
                with open("/proc/self/oom_score_adj", "w") as file:
                    file.write("1000")  # if memory runs out, this process goes, not the trainer
            except OSError:
                pass
            call(self.libc.prctl, 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no core dump, no debugger, nobody reads its memory
            drop_capabilities(self.libc)
        if self.abi:
            self._restrict_files(folder)
        limit_resources(memory, seconds)
        if self.filter:
            install_seccomp(self.libc, self.filter)
        os.closerange(keep, 4096)


def limit_resources(memory: int, seconds: float) -> None:
    """`memory` in bytes of address space, this interpreter's own included; `seconds` of processor time."""
    import resource  # not on Windows

    processor = int(seconds) + 2
    limits = {"CORE": 0, "NPROC": 0, "MEMLOCK": 0, "CPU": processor, "AS": memory}
    limits |= {"FSIZE": FILE_BYTES, "NOFILE": OPEN_FILES}
    for name, value in limits.items():
        if sys.platform == "darwin" and name in ("AS", "NPROC", "MEMLOCK"):
            continue
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
