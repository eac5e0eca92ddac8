"""The inside of the sandbox: a warm interpreter that forks, has the copy walled in (confinement.py), and runs programs.

execution.py starts this as a process of its own, with the standard library only. In: requests, each a socket message
with descriptors. Out: what programs print, and a line of JSON on how each one ended. Nothing is ever unpickled.
"""

import atexit
import gc
import importlib
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from nanochat.confinement import Walls
from nanochat.judge import answer_calls, judge, load_module

FOLDER_BYTES = 32 << 20  # of all files that a program writes
FOLDER_ENTRIES = 1000
PATH_LENGTH = 1000  # characters; the deeper a folder, the longer every look into it takes
TICK = 0.02  # seconds between two looks at clocks and folders
HOST = 3  # the descriptor of the socket to the host

# Imported before the fork: what programs want most. With it comes every module of the library that is machine code,
# since the walls let nobody map a file; but for these, which are tests, or terminals and windows that are not there.
PRELOAD = """
bisect bz2 cmath collections copy csv ctypes dataclasses datetime decimal enum fractions functools hashlib heapq io
itertools lzma math operator queue random re resource secrets sqlite3 statistics string struct tempfile textwrap time
typing unicodedata uuid zlib
""".split()
NOT_PRELOADED = re.compile(r"_test|_ctypes_test|_?xx|_tkinter|readline|_curses|_dbm|_gdbm|nis|ossaudiodev|spwd")

# ---------------------------------------------------------------------------------------------------------------------
# The parts that a process can play: a program, the function of a check (judge.py), or its judge


def run_program(request: dict) -> None:
    load_module("__main__", request["code"], request["echo"])


def play(part, request: dict) -> int:
    """Run one part to its end. Returns the exit status, as Python itself would choose it."""
    status = 0
    try:
        try:
            part(request)
        finally:
            atexit._run_exitfuncs()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if status and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        status = 1
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename in (__file__, load_module.__code__.co_filename):
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
    for stream in (sys.stdout, sys.__stdout__):
        try:
            stream.flush()
        except ValueError:
            pass  # the program closed it
    return status & 255


# ---------------------------------------------------------------------------------------------------------------------
# The warm parent


class Run:
    """One program on its way: who, until when, where, and why it was killed if it was."""

    def __init__(self, pid: int, control: socket.socket, folder: str, seconds: float):
        self.pid, self.control, self.folder, self.killed = pid, control, folder, None
        self.start = time.monotonic()
        self.deadline = self.start + seconds

    def kill(self, why: str) -> None:
        self.killed = self.killed or why
        os.kill(self.pid, signal.SIGKILL)

    def kill_group(self) -> None:
        """What it left behind, where processes can be made at all."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class Parent:
    """Forks a confined child for each request on the host's socket, watches clocks and folders, reports ends."""

    def __init__(self, host: socket.socket, base: str):
        self.host, self.base, self.count, self.runs, self.watched = host, base, 0, {}, 0.0
        self.walls = Walls(base)
        self.memory = 0
        if sys.platform == "linux":
            with open("/proc/self/statm") as file:
                self.memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        wake, waken = socket.socketpair()
        wake.setblocking(False)
        waken.setblocking(False)
        self.wake, self.waken = wake, waken
        self.selector = selectors.DefaultSelector()
        for each in (host, wake):
            self.selector.register(each, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waken.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the host hangs up; then nothing is left."""
        try:
            while True:
                for key, _ in self.selector.select(TICK if self.runs else None):
                    if key.fileobj is self.wake:
                        self.wake.recv(4096)
                    elif key.fileobj is not self.host:
                        key.data.kill("host")  # it hung up on this run
                        self.selector.unregister(key.fileobj)
                    elif not self.accept():
                        return
                self.reap()
                self.watch()
        finally:
            for run in self.runs.values():
                run.kill("host")
            while self.runs:
                self.reap(wait=True)
            remove_tree(self.base)

    def accept(self) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(self.host, 8, 5)
        except OSError:
            return False
        if not message:
            return False
        (seconds,) = struct.unpack("<d", message)
        self.count += 1
        folder = os.path.join(self.base, str(self.count))
        os.mkdir(folder, 0o700)
        pid = os.fork()
        if pid == 0:
            self.become(descriptors, folder, seconds)
        request, control, *rest = descriptors
        for descriptor in (request, *rest):
            os.close(descriptor)
        run = self.runs[pid] = Run(pid, socket.socket(fileno=control), folder, seconds)
        self.selector.register(run.control, selectors.EVENT_READ, run)
        return True

    def become(self, descriptors: list[int], folder: str, seconds: float) -> None:
        """In the child: take the descriptors, close the walls, play the part. Does not return."""
        status, control = 1, descriptors[1]
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.chdir(folder)
            source, _, output, error, *channel = descriptors
            with open(source, "rb") as file:
                request = json.loads(file.read())
            for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, error, *channel)):
                os.dup2(descriptor, number)
            self.walls.close(folder, self.memory + request["memory"], seconds, keep=3 + len(channel))
            parts = {"program": run_program, "function": answer_calls, "judge": judge}
            status = play(parts[request["part"]], request)
        except BaseException as problem:  # before a line of the program ran: `control` is still open
            os.write(control, json.dumps({"refused": f"{type(problem).__name__}: {problem}"}).encode() + b"\n")
        finally:
            os._exit(status)

    def reap(self, wait: bool = False) -> None:
        while self.runs:
            try:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self.runs.pop(pid, None)
            if run is None:
                continue
            run.kill_group()
            try:
                remove_tree(run.folder)
            except OSError:
                pass  # the base folder goes at the end
            end = {
                "exit": os.waitstatus_to_exitcode(status),
                "killed": run.killed,
                "seconds": time.monotonic() - run.start,
            }
            try:
                self.selector.unregister(run.control)
            except KeyError:
                pass
            try:
                run.control.send(json.dumps(end).encode() + b"\n")
            except OSError:
                pass
            run.control.close()

    def watch(self) -> None:
        now = time.monotonic()
        if now - self.watched < TICK:
            return
        self.watched = now
        for run in self.runs.values():
            if now > run.deadline:
                run.kill("time")
            elif now - run.start > TICK and folder_is_too_full(run.folder):
                run.kill("disk")


def folder_is_too_full(folder: str) -> bool:
    size = entries = 0
    stack = [folder]
    while stack:
        try:
            with os.scandir(stack.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > FOLDER_BYTES or entries > FOLDER_ENTRIES or len(entry.path) > PATH_LENGTH:
                        return True
        except FileNotFoundError:
            pass  # it is being removed
        except OSError:
            return True  # unreadable on purpose
    return False


def remove_tree(folder: str) -> None:
    """Remove a folder of any depth that nobody writes any more: down and up by descriptors, so that no path is long."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack = [(folder, remove_files(here))]
    while True:
        name, folders = stack[-1]
        if folders:
            inner = folders.pop()
            os.chmod(inner, 0o700, dir_fd=here)  # it may have made itself unreadable
            below = os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            stack.append((inner, remove_files(below)))
        elif len(stack) > 1:
            below = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.rmdir(name, dir_fd=below)
            stack.pop()
        else:
            os.close(here)
            return os.rmdir(folder)
        os.close(here)
        here = below


def remove_files(folder: int) -> list[str]:
    """Unlink what is no folder; returns the names of those that are."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder)
    return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def preload() -> None:
    """Import what programs may want and could not load later, or only slowly."""
    names = list(PRELOAD)
    for path in filter(os.path.isdir, sys.path):
        modules = (name.split(".")[0] for name in os.listdir(path) if name.endswith(tuple(EXTENSION_SUFFIXES)))
        names += sorted(name for name in modules if not NOT_PRELOADED.match(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                pass  # a Python built without it


def main() -> None:
    """argv: the number of the host's socket, and the folder in which programs get theirs."""
    ours = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [path for path in sys.path if path not in (ours, sys.argv[2], "")]
    os.environ.clear()
    os.dup2(int(sys.argv[1]), HOST, inheritable=False)
    if int(sys.argv[1]) != HOST:
        os.close(int(sys.argv[1]))
    preload()
    os.chdir(sys.argv[2])
    parent = Parent(socket.socket(fileno=HOST), sys.argv[2])
    parent.host.sendall(json.dumps({"level": parent.walls.level, "reasons": parent.walls.reasons}).encode() + b"\n")
    gc.collect()
    gc.freeze()
    parent.serve()


if __name__ == "__main__":
    main()
