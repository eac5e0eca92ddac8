"""The inside of the sandbox: a warm interpreter that forks, has the copy walled in (confinement.py), and runs programs.

execution.py starts this as a process of its own, with the standard library only. In: requests, each a socket message
with descriptors. Out: what programs print, and a line of JSON on how each one ended. Nothing is ever unpickled.
"""

import atexit
import builtins
import gc
import importlib
import json
import linecache
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
import types
from pathlib import Path

from nanochat.confinement import Walls

FOLDER_BYTES = 32 << 20  # of all files that a program writes
FOLDER_ENTRIES = 1000
MESSAGE_BYTES = 4 << 20  # of one question or answer between a judge and a function
TICK = 0.02  # seconds between two looks at clocks and folders
HOST, CHANNEL = 3, 3  # the descriptor's number before and after a program starts

# Imported before the fork: what programs want most, and what needs shared libraries, which nobody can load later.
PRELOAD = """
bisect bz2 cmath collections copy csv ctypes dataclasses datetime decimal enum fractions functools hashlib heapq io
itertools lzma math operator queue random re resource secrets sqlite3 statistics string struct tempfile textwrap time
typing unicodedata uuid zlib
""".split()

# ---------------------------------------------------------------------------------------------------------------------
# Values between a judge and a function: JSON in which everything but None, bool, int, float, str and list is tagged


class Opaque:
    """A value of a type that does not travel: equal to nothing but itself."""


def encode(value):
    if isinstance(value, int) and value.bit_length() > 8192:
        return {"int": hex(value)}  # Python reads and writes no decimals as long as that
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"object": type(value).__name__}


def decode(data):
    """The value that `encode` was given. ValueError or TypeError if this is none of its results."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("one tag a value")
    ((tag, content),) = data.items()
    if tag in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[tag](decode(item) for item in content)
    if tag == "dict":
        return {decode(key): decode(item) for key, item in content}
    if tag in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[tag](content, "latin-1")
    if tag == "int":
        return int(content, 16)
    if tag == "complex":
        return complex(*content)
    if tag == "object":
        return Opaque()
    raise ValueError(f"unknown tag {tag!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The three parts that a process can play


def run_program(request: dict) -> None:
    load_module("__main__", request["code"])


def answer_calls(request: dict) -> None:
    """The untrusted side of a check: load the program, then answer each line of arguments with a line of result."""
    function = load_module("program", request["code"])[request["entry_point"]]
    with open(CHANNEL, "rb") as questions, open(CHANNEL, "wb", closefd=False) as answers:
        for question in questions:
            args, kwargs = decode(json.loads(question))
            try:
                answer = {"value": encode(function(*args, **kwargs))}
            except Exception as error:
                known = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
                answer = {"error": [known, str(error)[:500]]}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


class Stopped(BaseException):
    """The function's process broke the conversation off; no `except Exception` in a test hides it."""


def judge(request: dict) -> None:
    """The trusted side: run the test against a stand-in that asks the other process. Returns if the test holds."""
    questions, answers = open(CHANNEL, "wb", closefd=False), open(CHANNEL, "rb")
    broken = []

    def candidate(*args, **kwargs):
        try:
            questions.write(json.dumps(encode((args, kwargs))).encode() + b"\n")
            questions.flush()
            line = answers.readline(MESSAGE_BYTES)
            answer = json.loads(line)
            if "error" in answer:
                kind, message = answer["error"]
            else:
                return decode(answer["value"])
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError) as error:
            broken.append(error)
            raise Stopped("the program stopped, or answered with something that is no data") from None
        kind = getattr(builtins, str(kind), None)
        known = isinstance(kind, type) and issubclass(kind, Exception)
        raise (kind if known else RuntimeError)(str(message))

    names = {"__name__": "judge"}
    exec(compile(request["prelude"], "<prelude>", "exec", dont_inherit=True), names)
    names[request["entry_point"]] = candidate
    exec(compile(request["test"], "<test>", "exec", dont_inherit=True), names)
    if "check" in names:
        names["check"](candidate)
    if broken:
        raise Stopped(str(broken[0]))


def load_module(name: str, code: str) -> dict:
    """Run code as a module of that name (dataclasses and typing look it up) and return its variables."""
    module = sys.modules[name] = types.ModuleType(name)
    linecache.cache["<program>"] = (len(code), None, code.splitlines(keepends=True), "<program>")
    exec(compile(code, "<program>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


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
        while frames and frames.tb_frame.f_code.co_filename == __file__:
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
                    if size > FOLDER_BYTES or entries > FOLDER_ENTRIES:
                        return True
        except FileNotFoundError:
            pass  # it is being removed
        except OSError:
            return True  # unreadable on purpose, or deeper than a path can say
    return False


def remove_tree(folder: str) -> None:
    """Remove a folder of any depth: what lies deep is moved up first, so that no path grows long."""
    lifted = 0
    folders = [folder]
    while folders:
        inner = []
        os.chmod(folders[-1], 0o700)
        for entry in list(os.scandir(folders[-1])):
            if entry.is_dir(follow_symlinks=False):
                lifted += 1
                place = f"{folder}.{lifted}"
                os.chmod(entry.path, 0o700)
                os.rename(entry.path, place)
                inner.append(place)
            else:
                os.unlink(entry.path)
        os.rmdir(folders.pop())
        folders += inner


def main() -> None:
    """argv: the number of the host's socket, and the folder in which programs get theirs."""
    ours = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [path for path in sys.path if path not in (ours, sys.argv[2], "")]
    os.environ.clear()
    os.dup2(int(sys.argv[1]), HOST, inheritable=False)
    if int(sys.argv[1]) != HOST:
        os.close(int(sys.argv[1]))
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # a Python built without it
    os.chdir(sys.argv[2])
    parent = Parent(socket.socket(fileno=HOST), sys.argv[2])
    parent.host.sendall(json.dumps({"level": parent.walls.level, "reasons": parent.walls.reasons}).encode() + b"\n")
    gc.collect()
    gc.freeze()
    parent.serve()


if __name__ == "__main__":
    main()
