"""What a hostile program might try. Each one prints ESCAPED if it gets through: a bare interpreter proves it real.

ATTACKS: (family, name) -> program; it finds HELPERS and the names of `context` above it. CHEATS: programs that define
`square` wrongly and want to pass SQUARE_TEST. NOT_BARE: what nobody should run without walls. TWICE: run it twice.
"""

import os
import socket
import sys

HELPERS = """
import ctypes, os, platform, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def escaped(*what):
    print("ESCAPED", *what, flush=True)
    print("ESCAPED", *what, file=sys.stderr, flush=True)

NUMBERS = dict(ptrace=(101, 117), clone=(56, 220), clone3=(435, 435), tgkill=(234, 131),
    process_vm_readv=(310, 270), pidfd_open=(434, 434), pidfd_getfd=(438, 438), pidfd_send_signal=(424, 424),
    rt_sigqueueinfo=(129, 138), io_uring_setup=(425, 425), userfaultfd=(323, 282), bpf=(321, 280),
    perf_event_open=(298, 241), add_key=(248, 217), unshare=(272, 97), setns=(308, 268), mount=(165, 40),
    memfd_create=(319, 279), execveat=(322, 281), personality=(135, 92), prctl=(157, 167), seccomp=(317, 277),
    open_by_handle_at=(304, 265), name_to_handle_at=(303, 264), fanotify_init=(300, 262), inotify_init1=(294, 26),
    sethostname=(170, 161), setuid=(105, 146), prlimit64=(302, 261), sched_setaffinity=(203, 122), kcmp=(312, 272),
    setpriority=(141, 140), msgget=(68, 186), shmget=(29, 194), semget=(64, 190),
    timer_create=(222, 107), eventfd2=(290, 19), acct=(163, 89), pivot_root=(155, 41), umount2=(166, 39),
    setxattr=(188, 5), flock=(73, 32), mlock=(149, 228), landlock_restrict_self=(446, 446), swapon=(167, 224),
    openat2=(437, 437), renameat2=(316, 276), linkat=(265, 37), process_vm_writev=(311, 271), mincore=(27, 232),
    keyctl=(250, 219), request_key=(249, 218), splice=(275, 76), syslog=(103, 116), modify_ldt=(154, 500),
    membarrier=(324, 283), init_module=(175, 105), delete_module=(176, 106), clock_adjtime=(305, 266),
    sched_setscheduler=(144, 119), ioprio_set=(251, 30), get_robust_list=(274, 100), move_pages=(279, 239),
    process_madvise=(440, 440), signalfd4=(289, 74), timerfd_create=(283, 85), epoll_create1=(291, 20),
    sendmsg=(46, 211), capset=(126, 91), setgroups=(116, 159), setresuid=(117, 147), quotactl=(179, 60),
    reboot=(169, 142), mq_open=(240, 180), memfd_secret=(447, 447), sched_getattr=(315, 275), fallocate=(285, 47),
    getsid=(124, 156), futex=(202, 98), madvise=(28, 233), kexec_load=(246, 104), sync=(162, 81), fsopen=(430, 430),
    open_tree=(428, 428), quotactl_fd=(443, 443), truncate=(76, 45), pkey_alloc=(330, 289), nfsservctl=(180, 42),
    landlock_create_ruleset=(444, 444), statfs=(137, 43), pidfd=(434, 434), set_mempolicy=(238, 237))

def syscall(name, *arguments):
    number = NUMBERS[name][platform.machine() == "aarch64"]
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def probe(name, *arguments):
    # a call that gets as far as complaining about its arguments, or that nobody else is allowed, is a call that is open
    try: syscall(name, *arguments)
    except OSError as error:
        if error.errno in (1, 13, 38): raise
    escaped(name)
"""


def programs(text: str) -> dict:
    """Blocks that begin with `## family: name` -> {(family, name): program}."""
    blocks = [block.partition("\n") for block in text.split("\n## ")[1:]]
    return {tuple(title.split(": ", 1)): program for title, _, program in blocks}


ATTACKS = programs(r"""
## files: read /etc/passwd
escaped(open("/etc/passwd").read(20))
## files: read a secret by its path
escaped(open(SECRET).read())
## files: read a secret by a relative path
escaped(open(os.path.relpath(SECRET)).read())
## files: read a secret with openat from a descriptor of /
root = os.open("/", os.O_PATH)
escaped(os.read(os.open(SECRET[1:], os.O_RDONLY, dir_fd=root), 100))
## files: chdir to the secret and read it
os.chdir(os.path.dirname(SECRET)); escaped(open(os.path.basename(SECRET)).read())
## files: list the root folder
escaped(os.listdir("/"))
## files: list the home folder
escaped(os.listdir(os.path.dirname(SECRET)))
## files: read nanochat's source
escaped(open(SOURCE).read(20))
## files: read an installed package
escaped(open(PACKAGE).read(20))
## files: write next to the secret
open(SECRET + ".new", "w").write("x"); escaped()
## files: append to the secret
open(SECRET, "a").write("x"); escaped()
## files: truncate the secret
os.truncate(SECRET, 0); escaped()
## files: delete a file
os.remove(VICTIM); escaped()
## files: rename a file away
os.rename(VICTIM, VICTIM + ".moved"); escaped()
## files: make a folder outside
os.mkdir(SECRET + ".d"); escaped()
## files: unnamed file outside
os.open(os.path.dirname(SECRET), os.O_TMPFILE | os.O_RDWR); escaped()
## files: chmod
os.chmod(SECRET, 0o777); escaped()
## files: chown
os.chown(SECRET, os.getuid(), os.getgid()); escaped()
## files: change times
os.utime(SECRET, (1, 1)); escaped()
## files: lock a file of somebody else
import fcntl
fcntl.flock(os.open(SECRET, os.O_RDONLY), fcntl.LOCK_EX); escaped()
## files: write into the standard library
open(os.path.join(os.path.dirname(os.__file__), "escaped_test.py"), "w"); escaped()
## files: shared memory folder
open("/dev/shm/" + MARK, "w").write("x"); escaped()
## files: temporary folder of the system
open("/tmp/" + MARK, "w").write("x"); escaped()
## files: handle of a file, opened without its path
handle = ctypes.create_string_buffer(struct.pack("Ii", 120, 0) + bytes(120)); mount = ctypes.c_int()
syscall("name_to_handle_at", -100, ctypes.c_char_p(SECRET.encode()), handle, ctypes.byref(mount), 0); escaped()
## files: openat2
how = ctypes.create_string_buffer(struct.pack("QQQ", 0, 0, 0), 24)
escaped(os.read(syscall("openat2", -100, ctypes.c_char_p(SECRET.encode()), how, 24), 100))
## files: path-only descriptor, opened again through /proc
place = os.open(SECRET, os.O_PATH); escaped(open(f"/proc/self/fd/{place}").read())
## files: cut while opening to read
os.open(SECRET, os.O_RDONLY | os.O_TRUNC); escaped()
## files: truncate without opening
syscall("truncate", ctypes.c_char_p(SECRET.encode()), 0); escaped()
## files: lease that holds up whoever opens the file
import fcntl
fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK); escaped()
## files: told of every change in a folder
import fcntl
fcntl.fcntl(os.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS); escaped()
## files: exchange with the secret
open("own", "w").close()
name = ctypes.c_char_p
syscall("renameat2", -100, name(b"own"), -100, name(SECRET.encode()), 2); escaped()
os.rename("own", SECRET)
## files: whiteout device by renaming
open("own", "w").close()
name = ctypes.c_char_p
syscall("renameat2", -100, name(b"own"), -100, name(b"other"), 4); escaped()
## files: unnamed file, linked outside
place = os.open(".", os.O_TMPFILE | os.O_RDWR); name = ctypes.c_char_p
target = name((SECRET + ".new").encode())
syscall("linkat", -100, name(f"/proc/self/fd/{place}".encode()), -100, target, 0x400); escaped()
## files: map the secret into memory
import mmap
mmap.mmap(os.open(SECRET, os.O_RDONLY), 4, prot=mmap.PROT_READ); escaped()
## files: the file system as a whole
probe("fsopen", ctypes.c_char_p(b"tmpfs"), 0)
## files: a copy of the tree of files
probe("open_tree", -100, ctypes.c_char_p(b"/"), 1)
## links: symlink to the secret
os.symlink(SECRET, "link"); escaped(open("link").read())
## links: hard link to the secret
os.link(SECRET, "link"); escaped(open("link").read())
## links: symlink to /
os.symlink("/", "root"); escaped(os.listdir("root"))
## links: move the secret into the own folder
os.rename(VICTIM, "stolen"); escaped(open("stolen").read())
## proc: own environment
open("/proc/self/environ").read(); escaped()
## proc: the host's environment
escaped(open(f"/proc/{HOST}/environ").read(20))
## proc: the host's working folder
escaped(os.readlink(f"/proc/{HOST}/cwd"), os.listdir(f"/proc/{HOST}/cwd"))
## proc: the host's descriptors
escaped(os.listdir(f"/proc/{HOST}/fd"))
## proc: the host's memory
open(f"/proc/{HOST}/mem", "rb"); escaped()
## proc: the parent's memory map
escaped(open(f"/proc/{os.getppid()}/maps").read(20))
## proc: own memory
open("/proc/self/mem", "r+b"); escaped()
## proc: list of processes
escaped([name for name in os.listdir("/proc") if name.isdigit()][:3])
## proc: files through /proc/self/root
escaped(open("/proc/self/root" + SECRET).read())
## proc: environment of the parent
escaped(open(f"/proc/{os.getppid()}/environ").read(20))
## proc: memory of the parent, to write
open(f"/proc/{os.getppid()}/mem", "r+b"); escaped()
## proc: programs that others run
for pid in filter(str.isdigit, os.listdir("/proc")): escaped(open(f"/proc/{pid}/cmdline").read(20)); break
## proc: who it is to the kernel
escaped(open("/proc/self/status").read(20))
## proc: settings of its own process
open("/proc/self/oom_score_adj", "w").write("0"); escaped()
## proc: kernel settings
open("/proc/sys/vm/swappiness").read(); escaped()
## proc: cgroups and devices in /sys
escaped(os.listdir("/sys")[:3])
## environment: a variable of the host
escaped(os.environ["NANOCHAT_TEST_SECRET"])
## environment: getenv of the C library
libc.getenv.restype = ctypes.c_char_p
value = libc.getenv(b"NANOCHAT_TEST_SECRET")
if value: escaped(value)
## environment: anything at all
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
if os.environ or (environ and environ[0]): escaped()
## network: TCP over IPv4
socket.create_connection(("127.0.0.1", PORT4), 1); escaped()
## network: TCP over IPv6
socket.create_connection(("::1", PORT6), 1); escaped()
## network: UDP over IPv4
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT4)); escaped()
## network: UDP over IPv6
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("::1", PORT6)); escaped()
## network: unix socket
socket.socket(socket.AF_UNIX).connect(UNIX); escaped()
## network: abstract unix socket
socket.socket(socket.AF_UNIX).connect(ABSTRACT); escaped()
## network: listen
socket.create_server(("127.0.0.1", 0)); escaped()
## network: raw socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); escaped()
## network: packet socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW); escaped()
## network: netlink
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); escaped()
## network: vsock
socket.socket(40, socket.SOCK_STREAM); escaped()
## network: socket pair
socket.socketpair(); escaped()
## network: message queue
libc.mq_unlink(b"/" + MARK.encode())
syscall("mq_open", ctypes.c_char_p(MARK.encode()), 0o102, 0o600, 0); escaped(); libc.mq_unlink(b"/" + MARK.encode())
## network: message on any descriptor
probe("sendmsg", 1, ctypes.create_string_buffer(64), 0)
## network: name lookup
import threading
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 53)); escaped()
## exec: os.system
if os.system("true") == 0: escaped()
## exec: subprocess
import subprocess
escaped(subprocess.run(["/bin/sh", "-c", "echo hi"], capture_output=True, check=True).stdout)
## exec: posix_spawn
os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "true"], {}), 0); escaped()
## exec: become a shell
os.execv("/bin/sh", ["sh", "-c", "echo ESC''APED"])
## exec: become Python again
os.execv(PYTHON, ["python", "-c", "print('ESC' + 'APED')"])
## exec: system() of the C library
if libc.system(b"true") == 0: escaped()
## exec: popen of the C library
libc.popen.restype = ctypes.c_void_p
if libc.popen(b"true", b"r"): escaped()
## exec: a program from memory
fd = syscall("memfd_create", ctypes.c_char_p(b"x"), 0)
os.write(fd, open("/bin/sh", "rb").read())
os.execve(fd, ["sh", "-c", "echo ESC''APED"], {})
## exec: memfd alone
syscall("memfd_create", ctypes.c_char_p(b"x"), 0); escaped()
## exec: a program written to the own folder
with open("program", "w") as file: file.write("#!/bin/sh\necho ESC''APED\n")
libc.chmod(b"program", 0o755); os.execv("./program", ["program"])
## exec: pristine modules after sys.modules.pop
sys.modules.pop("os"); import os, posix
if posix.system("true") == 0: escaped()
## process: fork
if os.fork() == 0: os._exit(0)
escaped()
## process: fork of the C library
child = libc.fork()
if child == 0: os._exit(0)
if child > 0: escaped()
## process: clone
if syscall("clone", 17, 0, 0, 0, 0) == 0: os._exit(0)
escaped()
## process: clone3
arguments = ctypes.create_string_buffer(struct.pack("QQQQQQQQ", 0, 0, 0, 0, 17, 0, 0, 0), 64)
if syscall("clone3", arguments, 64) == 0: os._exit(0)
escaped()
## process: thread of the C library
import _thread
_thread.start_new_thread(escaped, ()); time.sleep(0.1)
## process: subinterpreter with threads of its own
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(1) as pool: pool.submit(escaped).result()
## process: asyncio, which needs a socket pair
import asyncio
asyncio.run(asyncio.sleep(0)); escaped()
## process: session of another process
syscall("getsid", HOST); escaped()
## process: fork bomb
for _ in range(1000):
    if os.fork() == 0: time.sleep(1); os._exit(0)
escaped()
## process: daemon that outlives the call
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1)
    os._exit(0)
escaped()
## process: multiprocessing
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=print); process.start(); process.join(); escaped()
## process: thread
import threading
thread = threading.Thread(target=escaped); thread.start(); thread.join()
## process: thread bomb
import threading
for _ in range(500): threading.Thread(target=time.sleep, args=(1,)).start()
escaped()
## signals: the parent
os.kill(os.getppid(), 0); escaped()
## signals: the host
os.kill(HOST, 0); escaped()
## signals: everybody
os.kill(-1, 0); escaped()
## signals: the own group
os.killpg(0, 0); escaped()
## signals: tgkill
syscall("tgkill", os.getppid(), os.getppid(), 0); escaped()
## signals: pidfd
syscall("pidfd_send_signal", syscall("pidfd_open", os.getppid(), 0), 0, 0, 0); escaped()
## signals: rt_sigqueueinfo
info = ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128)
syscall("rt_sigqueueinfo", os.getppid(), 0, info); escaped()
## signals: owner of a pipe, so that it signals
import fcntl
fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()); escaped()
## signals: raise
os.kill(os.getpid(), 0); escaped()
## signals: by a descriptor
syscall("signalfd4", -1, ctypes.create_string_buffer(8), 8, 0); escaped()
## signals: asynchronous input
import fcntl
fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC | os.O_WRONLY); fcntl.fcntl(1, fcntl.F_SETSIG, 9); escaped()
## signals: signal to the parent when it ends
if syscall("clone", 0x8000 | 9, 0, 0, 0, 0) == 0: os._exit(0)
escaped()
## signals: real-time priority
probe("sched_setscheduler", os.getppid(), 0, ctypes.create_string_buffer(4))
## signals: order of the disk
probe("ioprio_set", 1, os.getppid(), 0)
## signals: locks of another process
probe("get_robust_list", os.getppid(), ctypes.create_string_buffer(8), ctypes.create_string_buffer(8))
## signals: limits of another process
syscall("prlimit64", os.getppid(), 7, ctypes.create_string_buffer(struct.pack("QQ", 64, 64)), 0); escaped()
## signals: priority of another process
syscall("setpriority", 0, os.getppid(), 19); escaped()
## signals: processors of another process
syscall("sched_setaffinity", os.getppid(), 8, ctypes.create_string_buffer(b"\xff" * 8)); escaped()
## ptrace: attach to the parent
syscall("ptrace", 0x4206, os.getppid(), 0, 0); escaped()
## ptrace: trace me
syscall("ptrace", 0, 0, 0, 0); escaped()
## ptrace: read the parent's memory
buffer = ctypes.create_string_buffer(8)
local = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
remote = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
try: syscall("process_vm_readv", os.getppid(), local, 1, remote, 1, 0); escaped()
except OSError as error:
    if error.errno in (14, 3): escaped("the call itself is open")
    raise
## ptrace: write the parent's memory
local = ctypes.create_string_buffer(struct.pack("QQ", 0, 0))
probe("process_vm_writev", os.getppid(), local, 1, local, 1, 0)
## ptrace: move the parent's pages
probe("move_pages", os.getppid(), 0, 0, 0, 0, 0)
## ptrace: advise the parent's memory
probe("process_madvise", 0, 0, 0, 21, 0)
## ptrace: take the parent's descriptor
try: syscall("pidfd_getfd", syscall("pidfd_open", os.getppid(), 0), 0, 0); escaped()
except OSError as error:
    if error.errno == 9: escaped()
    raise
## ptrace: compare processes
syscall("kcmp", os.getpid(), os.getpid(), 1, 0, 0); escaped()
## kernel: io_uring
syscall("io_uring_setup", 8, ctypes.create_string_buffer(120)); escaped()
## kernel: userfaultfd
syscall("userfaultfd", 1); escaped()
## kernel: bpf
attributes = ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 128)
syscall("bpf", 0, attributes, 128); escaped()
## kernel: perf events
syscall("perf_event_open", ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0), 128), 0, -1, -1, 0); escaped()
## kernel: priority inheritance
word = ctypes.c_int(0); syscall("futex", ctypes.byref(word), 6, 0, 0, 0, 0); escaped()
## kernel: requeueing of waiters
word = ctypes.c_int(0); syscall("futex", ctypes.byref(word), 3, 0, 0, ctypes.byref(word), 0); escaped()
## kernel: pages merged with those of others
import mmap
page = mmap.mmap(-1, 1 << 16)
syscall("madvise", ctypes.addressof(ctypes.c_char.from_buffer(page)), 1 << 16, 12); escaped()
## kernel: which pages of a file are in memory
probe("mincore", 0, 4096, ctypes.create_string_buffer(8))
## kernel: locked memory by mapping
libc.mmap.restype = ctypes.c_void_p
if (libc.mmap(0, 1 << 20, 3, 0x2022, -1, 0) or 0) + 1 < 1 << 64: escaped()
## kernel: huge pages by mapping
libc.mmap.restype = ctypes.c_void_p
if (libc.mmap(0, 1 << 21, 3, 0x40022, -1, 0) or 0) + 1 < 1 << 64 or ctypes.get_errno() != 1: escaped()
## kernel: secret memory
probe("memfd_secret", 0)
## kernel: memory policy
probe("set_mempolicy", 0, 0, 0)
## kernel: protection keys
probe("pkey_alloc", 0, 99)
## kernel: barriers on other processors
probe("membarrier", 0, 0, 0)
## kernel: pages between pipes
probe("splice", 0, 0, 1, 0, 1, 0)
## kernel: key rings
probe("keyctl", 0, -3, 0)
## kernel: keys by request
probe("request_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"x"), 0, 0)
## kernel: its log
probe("syslog", 10, 0, 0)
## kernel: segments of its own
probe("modify_ldt", 0, 0, 0)
## kernel: modules, to load
probe("init_module", 0, 0, 0)
## kernel: modules, to remove
probe("delete_module", ctypes.c_char_p(b"none-of-this-name"), 0)
## kernel: another kernel
probe("kexec_load", 0, 1 << 20, 0, 0)
## kernel: restart
probe("reboot", 0, 0, 0, 0)
## kernel: clock
probe("clock_adjtime", 99, 0)
## kernel: quotas
probe("quotactl", 0x80000100, 0, 0, 0)
## kernel: everything to the disk
syscall("sync"); escaped()
## kernel: timers by descriptor
probe("timerfd_create", 1, 0)
## kernel: epoll
probe("epoll_create1", 0)
## kernel: walls of its own, to confuse
probe("landlock_create_ruleset", 0, 0, 1)
## kernel: keys
name = ctypes.c_char_p
syscall("add_key", name(b"user"), name(b"x"), name(b"y"), 1, -3); escaped()
## kernel: System V shared memory
libc.shmctl(syscall("shmget", 0, 4096, 0o1600), 0, 0); escaped()
## kernel: System V messages
libc.msgctl(syscall("msgget", 0, 0o1600), 0, 0); escaped()
## kernel: System V semaphores
libc.semctl(syscall("semget", 0, 1, 0o1600), 0, 0); escaped()
## kernel: timers that signal
syscall("timer_create", 1, 0, ctypes.create_string_buffer(8)); escaped()
## kernel: inotify
syscall("inotify_init1", 0); escaped()
## kernel: fanotify
syscall("fanotify_init", 0, 0); escaped()
## kernel: personality
syscall("personality", 0x0040000); escaped()
## kernel: prctl
syscall("prctl", 15, ctypes.c_char_p(b"x"), 0, 0, 0); escaped()
## kernel: another seccomp filter
syscall("seccomp", 2, 0, ctypes.create_string_buffer(struct.pack("I", 0x7FFF0000))); escaped()
## kernel: locked memory
syscall("mlock", ctypes.create_string_buffer(4096), 4096); escaped()
## kernel: extended attributes
open("f", "w").close()
syscall("setxattr", ctypes.c_char_p(b"f"), ctypes.c_char_p(b"user.x"), ctypes.c_char_p(b"y"), 1, 0); escaped()
## kernel: host name
syscall("sethostname", ctypes.c_char_p(socket.gethostname().encode()), len(socket.gethostname())); escaped()
## kernel: terminal ioctl
import fcntl
fcntl.ioctl(1, 0x541B, bytes(4)); escaped()
## namespaces: user
syscall("unshare", 0x10000000); escaped()
## namespaces: network
syscall("unshare", 0x50000000); escaped()
## namespaces: mount
syscall("unshare", 0x10020000); escaped()
## namespaces: clone with a new user
if syscall("clone", 0x10000000 | 17, 0, 0, 0, 0) == 0: os._exit(0)
escaped()
## namespaces: join the host's
syscall("setns", os.open(f"/proc/{os.getpid()}/ns/uts", os.O_RDONLY), 0); escaped()
## namespaces: bind mount
os.mkdir("m")
name = ctypes.c_char_p
syscall("mount", name(os.path.dirname(SECRET).encode()), name(b"m"), name(b""), 4096, name(b""))
escaped(); libc.umount2(b"m", 2)
## namespaces: chroot
os.chroot("."); escaped()
## namespaces: device node
os.mknod("zero", 0o600 | 0o020000, os.makedev(1, 5)); escaped()
## namespaces: named pipe
os.mkfifo("pipe"); escaped()
## privileges: set the user
syscall("setuid", os.getuid()); escaped()
## privileges: raise a limit
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
if hard > 4000: escaped()
## privileges: capabilities taken back
header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
probe("capset", header, ctypes.create_string_buffer(struct.pack("6I", 1, 1, 0, 0, 0, 0), 24))
## privileges: other groups
probe("setgroups", 0, 0)
## privileges: other user, three times
probe("setresuid", os.getuid(), os.getuid(), os.getuid())
## privileges: hard limit
import resource
hard = resource.getrlimit(resource.RLIMIT_CORE)
syscall("prlimit64", 0, 4, ctypes.create_string_buffer(struct.pack("qq", *hard)), 0); escaped()
## privileges: override file permissions as root
open("f", "w").close(); os.umask(0o777); open("g", "w").close()
open("g").read()
if os.getuid() == 0: escaped()
## raw calls: x32 numbers
number = 0x40000000 + 41
if libc.syscall(ctypes.c_long(number), 2, 1, 0) >= 0: escaped()
## raw calls: i386 through int 0x80
import mmap
if platform.machine() == "x86_64":
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid(): escaped()
## raw calls: numbers beyond the table
for number in range(445, 470):
    if libc.syscall(ctypes.c_long(number), -1, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38): escaped(number)
## descriptors: inherited ones
found = []
for number in range(3, 1024):
    try: os.fstat(number); found.append(number)
    except OSError: pass
if found: escaped(found)
## descriptors: written to, every one
for number in range(3, 4096):
    try: os.write(number, b'{"exit": 0, "killed": null, "seconds": 0.1}\n'); escaped(number)
    except OSError: pass
## descriptors: opened again through /proc
for number in range(3, 64):
    try: os.open(f"/proc/self/fd/{number}", os.O_RDWR); escaped(number)
    except OSError: pass
## descriptors: standard input
if os.fstat(0).st_rdev != os.stat("/dev/null").st_rdev: escaped()
## descriptors: reading what was printed
escaped(os.read(1, 1) or "")
## descriptors: a pipe of its own that grows
import fcntl
fcntl.fcntl(1, 1031, 1 << 20); escaped()
## descriptors: more than the limit
files = [open("/dev/null") for _ in range(1000)]; escaped()
## disk: one huge file
with open("f", "wb") as file:
    for _ in range(200): file.write(bytes(1 << 20))
escaped()
## disk: many files
for i in range(300):
    with open(f"f{i}", "wb") as file: file.write(bytes(1 << 20)); os.fsync(file.fileno())
escaped()
## disk: a million names
for i in range(1_000_000): open(f"f{i}", "w").close()
escaped()
## disk: folders without end
folder = os.open(".", os.O_RDONLY)
for i in range(100_000):
    os.mkdir("d", dir_fd=folder); inner = os.open("d", os.O_RDONLY, dir_fd=folder); os.close(folder); folder = inner
escaped()
## disk: unreadable folders
os.mkdir("a", 0o700); os.mkdir("a/b", 0)
with open("a/x", "w") as file: file.write("x")
## disk: deleted files that are still mapped
libc.mmap.restype = ctypes.c_void_p
for _ in range(100):
    with open("f", "wb+") as file:
        file.write(bytes(1 << 20)); file.flush()
        if (libc.mmap(0, 4096, 1, 1, file.fileno(), 0) or 0) + 1 == 1 << 64: raise OSError("no map")
    os.unlink("f")
escaped()
## disk: deleted files that are still open
files = []
for _ in range(60):
    files.append(open("f", "wb")); files[-1].write(bytes(1 << 20)); files[-1].flush(); os.unlink("f")
escaped()
## disk: room reserved without writing
with open("f", "wb") as file: syscall("fallocate", file.fileno(), 0, 0, 1 << 22)
escaped()
## disk: names as long as they may be
folder = "x" * 250
for i in range(200): os.mkdir(folder); os.chdir(folder)
time.sleep(0.5); escaped()
## disk: sparse file
with open("f", "wb") as file: file.truncate(1 << 40)
escaped()
## flood: standard output
for _ in range(1000): os.write(1, bytes(1 << 20))
escaped()
## flood: standard error
for _ in range(1000): os.write(2, bytes(1 << 20))
escaped()
## flood: bytes that are no text
os.write(1, bytes(range(128, 256)))
## flood: memory
data = []
for _ in range(4000): data.append(b"x" * (1 << 20))
escaped()
## flood: address space
import mmap
maps = [mmap.mmap(-1, 1 << 30) for _ in range(8)]; escaped()
## flood: processor
while True: pass
## flood: processor, signals ignored
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
## flood: sleep
time.sleep(1000); escaped()
## flood: a number without end
x = 9 ** 9 ** 9; escaped()
## flood: pattern that backtracks
import re
re.match("(a+)+b", "a" * 60); escaped()
## flood: recursion
sys.setrecursionlimit(10**9)
def f(): f()
f(); escaped()
## flood: recursion in C
x = []
for _ in range(10**6): x = [x]
sys.setrecursionlimit(10**9); repr(x); escaped()
## flood: deep syntax
eval("(" * 100 + "-" * 100_000 + "1" + ")" * 100); escaped()
## flood: exception that cannot be printed
class E(Exception):
    def __str__(self): raise self
raise E
## flood: lists within lists as traceback
raise Exception("x" * (1 << 26))
## flood: text without end into the C library
libc.printf(b"%0999999999d", 1); escaped()
## flood: core dump
libc.signal(11, 0); ctypes.string_at(1)
## flood: maps
libc.mmap.restype = ctypes.c_void_p
for i in range(10**6):
    if (libc.mmap(0, 1 << 16, 1 + i % 2 * 2, 0x22, -1, 0) or 0) + 1 == 1 << 64: raise MemoryError
escaped()
## flood: output after the end
import atexit
atexit.register(lambda: [print("x" * 1000) for _ in iter(int, 1)])
## persistence: a file in the working folder
if os.path.exists("mark"): escaped()
open("mark", "w").close()
## persistence: a file beside the working folder
try: open("../mark-" + MARK); escaped()
except FileNotFoundError: pass
open("../mark-" + MARK, "w").close()
## persistence: a file in the temporary folder
import tempfile
path = "/tmp/" + MARK + ".mark"
if os.path.exists(path): os.unlink(path); escaped(); sys.exit()
open(path, "w").close()
## persistence: shared memory with a name
name = ctypes.c_char_p(b"/" + MARK.encode())
librt = ctypes.CDLL("librt.so.1", use_errno=True)
if librt.shm_open(name, 0, 0) >= 0: escaped()
librt.shm_open(name, 0o102, 0o600)
## persistence: System V shared memory
if libc.shmget(0x5EC0DE, 4096, 0) >= 0: escaped(); libc.shmctl(libc.shmget(0x5EC0DE, 4096, 0), 0, 0); sys.exit()
libc.shmget(0x5EC0DE, 4096, 0o1600)
## persistence: a key in the user's ring
name = ctypes.c_char_p
key = libc.syscall(NUMBERS["request_key"][platform.machine() == "aarch64"], name(b"user"), name(MARK.encode()), 0, 0)
if key >= 0: escaped(); libc.syscall(NUMBERS["keyctl"][platform.machine() == "aarch64"], 3, key); sys.exit()
syscall("add_key", name(b"user"), name(MARK.encode()), name(b"y"), 1, -4)
## persistence: compiled code beside the library
import py_compile
path = os.path.join(os.path.dirname(os.__file__), "__pycache__", MARK + ".pyc")
if os.path.exists(path): escaped(); os.unlink(path); sys.exit()
open(path, "w").close()
## persistence: modules, builtins and the environment of the next program
import builtins, json
if hasattr(builtins, "mark") or hasattr(json, "mark") or "MARK" in os.environ: escaped()
builtins.mark = json.mark = os.environ["MARK"] = "1"
""")

NOT_BARE = {("signals", name + " of another process") for name in ("limits", "priority", "processors")}
NOT_BARE |= {("signals", "everybody"), ("files", "write into the standard library")}
NOT_BARE |= {key for key in ATTACKS if key[0] in ("disk", "flood")}
NOT_BARE |= {("persistence", "compiled code beside the library"), ("kernel", "everything to the disk")}
NOT_BARE |= {("signals", "signal to the parent when it ends")}
NOT_BARE |= {("process", "fork bomb"), ("process", "thread bomb"), ("process", "daemon that outlives the call")}

TWICE = {key for key in ATTACKS if key[0] == "persistence"}  # the first run leaves something, the second one finds it

SQUARE_TEST = """
def check(candidate):
    for n in (2, -3, 10, 1.5):
        assert candidate(n) == n * n
    assert candidate(7) == 49, "seven"
"""

CHEATS = programs(r"""
## cheat: does nothing
def square(n): pass
## cheat: wrong answer
def square(n): return n + n
## cheat: sys.exit(0)
import sys
def square(n): sys.exit(0)
## cheat: sys.exit(0) while loading
import sys
sys.exit(0)
## cheat: os._exit(0)
import os
def square(n): os._exit(0)
## cheat: raise SystemExit
def square(n): raise SystemExit
## cheat: KeyboardInterrupt
def square(n): raise KeyboardInterrupt
## cheat: abort
import os
def square(n): os.abort()
## cheat: exit from atexit
import atexit, os
atexit.register(os._exit, 0)
def square(n): return None
## cheat: equal to everything
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
def square(n): return Any()
## cheat: number equal to everything
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def square(n): return Any(1)
## cheat: float equal to everything
class Any(float):
    def __eq__(self, other): return True
    __hash__ = float.__hash__
def square(n): return Any(1.0)
## cheat: text equal to everything
class Any(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def square(n): return Any("1")
## cheat: list equal to everything
class Any(list):
    def __eq__(self, other): return True
def square(n): return Any()
## cheat: lies about its class
class Any:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
    def __index__(self): return 1
    __int__ = __index__
def square(n): return Any()
## cheat: mock
from unittest.mock import ANY
def square(n): return ANY
## cheat: patched AssertionError
import builtins
class Quiet(BaseException): pass
builtins.AssertionError = Quiet
def square(n): return None
## cheat: patched builtins
import builtins
builtins.range = builtins.tuple = builtins.isinstance = lambda *a: True
builtins.exec = builtins.compile = builtins.open = lambda *a, **k: None
def square(n): return None
## cheat: own check
def check(candidate): return True
def square(n): return None
## cheat: patches the harness in its own process
import sys
for name, module in list(sys.modules.items()):
    if name == "__main__" or "sandbox" in name:
        module.judge = module.play = lambda *a: 0
        module.decode = lambda *a: 49
def square(n): return None
## cheat: patches json
import json
json.dumps = lambda *a, **k: '{"value": true}'
json.loads = lambda *a, **k: [[], {}]
def square(n=0): return None
## cheat: prints the verdict
import sys
def square(n):
    for line in ("passed", "ok", '{"passed": true}', '{"exit": 0, "killed": null, "seconds": 0.1}', "ALL TESTS PASSED"):
        print(line); print(line, file=sys.stderr)
    sys.stdout.flush(); import os; os._exit(0)
## cheat: writes the verdict to every descriptor
import os
def square(n):
    for number in range(3, 64):
        for line in (b'{"exit": 0, "killed": null, "seconds": 0.1}\n', b"passed\n", b'{"value": null}\n'):
            try: os.write(number, line)
            except OSError: pass
    os._exit(0)
## cheat: answers before it is asked
import os
os.write(3, b'{"value": 4}\n' * 1000)
def square(n): return 4
## cheat: answers that are no data
import os
def square(n): os.write(3, b"\x80\x04passed\n"); return 0
## cheat: an answer without end
import os
def square(n):
    while True: os.write(3, b"[" * 65536)
## cheat: an answer too deep
import os
def square(n): os.write(3, b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
## cheat: unknown tags
import os
def square(n): os.write(3, b'{"value": {"__reduce__": ["os._exit", 0]}}\n')
## cheat: an error that ends the judge
import os
def square(n): os.write(3, b'{"error": ["SystemExit", "0"]}\n')
## cheat: an error of no class
import os
def square(n): os.write(3, b'{"error": ["exit", 0]}\n')
## cheat: an error that is code
import os
def square(n): os.write(3, b'{"error": ["__import__", "antigravity"]}\n')
## cheat: stops the loop of the test
def square(n): raise StopIteration
## cheat: stops the loop that the test is made of
def square(n): raise StopAsyncIteration
## cheat: an error that needs more than a message
def square(n): raise UnicodeDecodeError("x", b"", 0, 0, "passed")
## cheat: a group of errors
import os
def square(n): os.write(3, b'{"error": ["ExceptionGroup", "passed"]}\n')
## cheat: a number too large for a float
import os
def square(n): os.write(3, b'{"value": {"complex": [1' + b"0" * 400 + b", 0]}}\n")
## cheat: value and error at once
import os
def square(n): os.write(3, b'{"value": 49, "error": ["AssertionError", ""], "value": 4}\n')
## cheat: an object with two tags
import os
def square(n): os.write(3, b'{"value": {"int": "0x31", "object": "int"}}\n')
## cheat: an object that is like nothing
def square(n): return type("Like", (), {"__eq__": lambda self, other: True, "__hash__": None})
## cheat: a key that is a list
import os
def square(n): os.write(3, b'{"value": {"dict": [[[1], 2]]}}\n')
## cheat: keys that collide
import os
def square(n):
    keys = ",".join(f"[{i * (2**61 - 1)}, 0]" for i in range(100_000))
    os.write(3, b'{"value": {"dict": [' + keys.encode() + b"]}}\n")
## cheat: memory of the judge
import os
def square(n):
    os.write(3, b'{"value": [' + b"[]," * 1_300_000 + b"[]]}\n")
## cheat: half an answer, then the end
import os
def square(n): os.write(3, b'{"value": 4'); os._exit(0)
## cheat: answers of two calls in one line
import os
def square(n): os.write(3, b'{"value": 4}{"value": 9}\n')
## cheat: a descriptor in place of an answer
import array, os, socket
def square(n):
    line = socket.socket(fileno=3)
    socket.send_fds(line, [b'{"value": 4}\n'], [0])
## cheat: an end of its own
import os, sys
os._exit = lambda status: None
sys.exit = os._exit
def square(n): raise SystemExit(0)
## cheat: goes on as the warm parent
import os, sys
os._exit = lambda status: None
for frame in range(1, 20):
    try: frame = sys._getframe(frame)
    except ValueError: break
    parent = frame.f_locals.get("self")
    if parent is not None and hasattr(parent, "walls"):
        parent.walls.close = lambda *a, **k: None
        parent.runs.clear()
def square(n): return 4
## cheat: a limit of recursion for the judge
import sys
sys.setrecursionlimit(10**6)
def square(n):
    x = []
    for _ in range(50_000): x = [x]
    return x
## cheat: not an error to the test
def square(n): raise Warning("passed")
## cheat: a number that is not one
def square(n): return float("nan")
## cheat: walks the frames for the test
import sys
def square(n):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, str) and "assert candidate" in value: return n * n
        frame = frame.f_back
## cheat: looks through memory for the test
import gc
mark = "assert" + " candidate"
def square(n):
    def texts(thing, depth=3):
        if isinstance(thing, str): return mark in thing and len(thing) > 50
        if isinstance(thing, dict) and depth: return any(texts(v, depth - 1) for v in list(thing.values()))
        if isinstance(thing, (list, tuple)) and depth: return any(texts(v, depth - 1) for v in thing)
        return False
    if any(texts(thing) for thing in gc.get_objects()): return n * n
## cheat: looks for the test in files
import os
def square(n):
    for folder in (".", "..", "/tmp", "/proc/self/fd"):
        for name in os.listdir(folder):
            if "assert candidate" in open(os.path.join(folder, name)).read(): return n * n
## cheat: could kill the judge
import os
def square(n):
    for pid in {*range(os.getpid() - 5, os.getpid() + 6), os.getppid()} - {os.getpid()}:
        try: os.kill(pid, 0)  # no signal is sent: should the walls fall, nobody else is to die of it
        except OSError: continue
        return n * n
## cheat: reads the judge's memory
import os
def square(n):
    return open(f"/proc/{os.getpid() + 1}/mem", "rb").read(1)
## cheat: closes the line
import os
os.close(3)
def square(n): return 4
## cheat: takes the question away
import os
os.read(3, 1000)
def square(n): return 4
## cheat: hangs
def square(n):
    while True: pass
## cheat: sleeps
import time
def square(n): time.sleep(1000)
## cheat: no such function
def sqare(n): return n * n
## cheat: not a function
square = 49
## cheat: does not compile
def square(n) return n * n
""")

# What must still run: programs of the standard library that end with "ok".
BENIGN = programs(r"""
## benign: arithmetic
from fractions import Fraction
from decimal import Decimal
import math, statistics, cmath
assert Fraction(1, 3) * 3 == 1 and Decimal("0.1") * 3 == Decimal("0.3") and math.comb(5, 2) == 10
assert statistics.mean([1, 2, 3]) == 2 and cmath.sqrt(-1) == 1j; print("ok")
## benign: text
import re, string, textwrap, difflib, unicodedata, json, csv, html, io, pprint, shlex
assert re.findall(r"\d+", "a1b22") == ["1", "22"] and json.loads(json.dumps({"a": [1, None]})) == {"a": [1, None]}
assert list(csv.reader(io.StringIO("a,b"))) == [["a", "b"]] and shlex.split("a 'b c'") == ["a", "b c"]; print("ok")
## benign: collections and algorithms
import bisect, collections, copy, functools, heapq, itertools, operator, queue, graphlib
assert collections.Counter("abca").most_common(1) == [("a", 2)] and heapq.nsmallest(2, [3, 1, 2]) == [1, 2]
assert list(graphlib.TopologicalSorter({1: [2]}).static_order()) == [2, 1]; print("ok")
## benign: classes
import abc, dataclasses, enum, typing, contextlib, weakref, types
@dataclasses.dataclass
class Point:
    x: "int"
    y: typing.Optional[int] = None
assert dataclasses.asdict(Point(1)) == {"x": 1, "y": None}
class Color(enum.Enum): RED = 1
assert Color(1) is Color.RED; print("ok")
## benign: time
import calendar, datetime, time, zoneinfo
time.sleep(0.01); assert calendar.isleap(2024) and datetime.date(2024, 2, 29).weekday() == 3; print("ok")
## benign: bytes, hashes and compression
import base64, binascii, bz2, gzip, hashlib, hmac, lzma, secrets, struct, uuid, zlib
assert hashlib.md5(b"Hello world").hexdigest() == "3e25960a79dbc69b674cd4ec67a72c62"
for kind in (bz2, gzip, lzma, zlib): assert kind.decompress(kind.compress(b"x" * 100)) == b"x" * 100
secrets.token_hex(); uuid.uuid4(); print("ok")
## benign: chance
import random
random.seed(1); assert 0 <= random.random() < 1 and len(random.sample(range(10), 3)) == 3; print("ok")
## benign: files of its own
import os, pathlib, shutil, tempfile
pathlib.Path("a").mkdir(); pathlib.Path("a/b.txt").write_text("hi"); assert pathlib.Path("a/b.txt").read_text() == "hi"
os.rename("a/b.txt", "a/c.txt"); assert os.listdir("a") == ["c.txt"]; shutil.rmtree("a")
with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "x"), "w") as file: file.write("x")
with tempfile.TemporaryFile() as file: file.write(b"x")
with open(os.devnull, "w") as file: file.write("x")
assert os.listdir(".") == []; print("ok")
## benign: a database in memory
import sqlite3
with sqlite3.connect(":memory:") as db: assert db.execute("select 1 + 1").fetchone() == (2,)
print("ok")
## benign: an import that was not warm
import ast, xml.etree.ElementTree, argparse, logging, unittest, urllib.parse, doctest, timeit, array, ipaddress, fnmatch
assert xml.etree.ElementTree.fromstring("<a><b/></a>")[0].tag == "b"; print("ok")
## benign: errors that it handles
import sys
try: 1 / 0
except ZeroDivisionError: pass
try: input()
except EOFError: pass
def deep(n): return deep(n + 1)
try: deep(0)
except RecursionError: pass
print("ok"); sys.exit()
## benign: a signal to itself
import signal
def ring(*_): raise TimeoutError
signal.signal(signal.SIGALRM, ring)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while True: pass
except TimeoutError: print("ok")
## benign: main
if __name__ == "__main__":
    import atexit
    atexit.register(print, "ok")
## benign: a good deal of memory
x = bytearray(100 << 20); print("ok")
""")


def make_scene(folder, source: str, package: str) -> dict:
    """The names that attacks aim at, and behind them files, servers and processes that are really there."""
    (folder / "secret").write_text("secret")
    mark = f"nanochat-test-{os.getpid()}"
    servers, ports = [], {}
    for name, family, address in (("PORT4", socket.AF_INET, "127.0.0.1"), ("PORT6", socket.AF_INET6, "::1")):
        try:
            servers.append(socket.create_server((address, 0), family=family))
            ports[name] = servers[-1].getsockname()[1]
        except OSError:
            ports[name] = 1  # no IPv6 here
    for address in (str(folder / "unix"), f"\0{mark}"):
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(address)
        servers[-1].listen()
    return {
        **ports,
        "SECRET": str(folder / "secret"),
        "VICTIM": str(folder / "victim"),
        "UNIX": str(folder / "unix"),
        "ABSTRACT": f"\0{mark}",
        "MARK": mark,
        "HOST": os.getpid(),
        "PYTHON": sys.executable,
        "SOURCE": source,
        "PACKAGE": package,
        "_servers": servers,
    }
