"""Runs what a model wrote: programs in a sandbox, and expressions in the calculator.

In: text that nobody should trust. Out: a Result or a Verdict; never an object that the text made. This is the host's
side: it starts sandbox.py as a warm parent of programs, sends them there, and reads what they print under limits.
"""

import atexit
import functools
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat.calculator import calculate
from nanochat.confinement import mac_command

__all__ = ["Result", "Sandbox", "SandboxError", "Verdict", "accept_level", "calculate"]
__all__ += ["check_program", "open_sandbox", "python_tool", "run_python", "sandbox_level"]

LEVELS = ("none", "basic", "strict")
MAX_OUTPUT = 64 << 10  # bytes kept of what a program prints; one that prints more is stopped
MAX_HEARD = 2000  # characters that a chat model hears of its program
START = 60.0  # seconds that a warm parent may take to be ready
GRACE = 10.0  # seconds that the warm parent may be late before it counts as broken


class SandboxError(RuntimeError):
    """There is no sandbox of the level that was asked for, or it broke."""


@dataclass(frozen=True)
class Result:
    """How a program ended. `success`: at its end or with exit status 0, which proves nothing about its work."""

    success: bool
    output: str  # what it printed, up to MAX_OUTPUT bytes
    error: str  # its traceback, or the limit that stopped it
    timed_out: bool
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Whether a function passed its test, and if not, why."""

    passed: bool
    reason: str
    timed_out: bool
    seconds: float


class Sandbox:
    """A warm interpreter that runs programs in forks of itself, each behind walls of the level that was asked for.

    "strict" is Linux with Landlock and seccomp: a program reads the standard library, writes one folder that goes with
    it, computes, prints, and nothing else; no thread, process, socket or signal. "basic" takes the walls that there are
    (see `reasons`): always limits on memory (not on macOS), processor, files and time, and an empty environment. But
    without Landlock a program reads and writes what its user may, and through /proc that is the memory of its judge
    and of this process: verdicts are as honest as the program. Without seccomp it opens sockets and starts processes
    that outlive it. On macOS programs fork, signal each other and the warm parent, and see each other's folders.

    Not contained, even by strict: what stat() and readlink() tell about any path (that it exists, size, times, where a
    link leads), which processes there are, the load and the memory of the machine, its name and its clock; 256 MB on
    the disk in files that it deleted but holds open, and what it writes within the 20 ms between two looks into its
    folder; time on the processor up to its limit; side channels of the processor; bugs of the kernel.
    Raises SandboxError if this machine has less than `level`. Any thread may use it; close it, or use `with`.
    """

    def __init__(self, level: str = "strict"):
        if level not in LEVELS:
            raise ValueError(f"There is no sandbox level {level!r}. Levels are basic and strict.")
        self.asked, self.closed, self.lock = level, False, threading.Lock()
        self.slots = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
        self._start()

    def _start(self) -> None:
        if sys.platform not in ("linux", "darwin"):
            raise SandboxError(
                f"There is no sandbox for {sys.platform}. Run this on Linux, or on macOS with --sandbox=basic."
            )
        self.base = os.path.realpath(tempfile.mkdtemp(prefix="nanochat-sandbox-"))
        self.host, theirs = socket.socketpair()
        package = Path(__file__).resolve().parent
        command = [sys.executable, *"-s -S -B -X utf8 -m nanochat.sandbox".split(), str(theirs.fileno()), self.base]
        if sys.platform == "darwin":
            command = mac_command(command, self.base, str(package))
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        environment["PYTHONPATH"] = str(package.parent)
        environment["PYTHONHASHSEED"] = "0"  # a verdict must not depend on the order of a set
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd=self.base,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.host.settimeout(START)
        try:
            with self.host.makefile("rb") as stream:
                hello = stream.readline()
        except TimeoutError:
            hello = b""
        self.host.settimeout(None)
        if not hello:
            self._stop()
            raise SandboxError(f"The sandbox did not start within {START:g} seconds; lines above may say why.")
        answer = json.loads(hello)
        self.level, self.reasons = answer["level"], tuple(answer["reasons"])
        if LEVELS.index(self.level) < LEVELS.index(self.asked):
            self._stop()
            raise SandboxError(
                f"The sandbox here is {self.level}, but {self.asked} was asked for: {'; '.join(self.reasons)}. "
                f"Use a machine that has it, or accept the risk with --sandbox={self.level}."
            )

    def _stop(self) -> None:
        try:
            self.host.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.host.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def close(self) -> None:
        """End the warm parent and every program in it."""
        with self.lock:
            self.closed = True
            self._stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def run(
        self,
        code: str,
        *,
        timeout: float = 5.0,
        memory_mb: int = 256,
        echo: bool = False,
        begun: Callable[["Run"], None] = lambda run: None,
    ) -> Result:
        """Run a program. `timeout` in seconds of wall clock, `memory_mb` beyond the interpreter's own.

        `echo`: if its last statement is an expression, print the value, as an interactive Python does.
        `begun` is given the Run when it has started; another thread may call its `stop`.
        """
        request = {"part": "program", "code": code, "echo": echo, "memory": memory_mb << 20}

        def attempt(host: socket.socket) -> Result:
            with Run(host, request, timeout) as run:
                begun(run)
                gather(run)
            done = run.exit == 0 and not run.killed
            return Result(done, run.text(run.output), run.explain(), run.killed == "time", run.seconds)

        return self._try(attempt)

    def check(
        self,
        program: str,
        test: str,
        entry_point: str,
        *,
        prelude: str = "",
        timeout: float = 5.0,
        memory_mb: int = 256,
    ) -> Verdict:
        """Run `test` on the function `entry_point` of an untrusted program (see `check_program`)."""
        shared = {"entry_point": entry_point, "memory": memory_mb << 20}
        untrusted = {**shared, "part": "function", "code": program}  # it never sees the test
        trusted = {**shared, "part": "judge", "test": test, "prelude": prelude}

        def attempt(host: socket.socket) -> Verdict:
            ours, theirs = socket.socketpair()
            with (
                ours,
                theirs,
                Run(host, untrusted, timeout, ours) as function,
                Run(host, trusted, timeout, theirs) as judge,
            ):
                ours.close()
                theirs.close()  # only the two programs hold the line now
                gather(judge, function)
                function.stop()
                gather(function)
            return decide(judge, function, timeout)

        return self._try(attempt)

    def _try(self, attempt):
        """`attempt(host)` when a worker is free; once more if the warm parent dies, in a new one."""
        with self.slots:
            host = self.host
            try:
                return attempt(host)
            except (SandboxError, OSError):  # it died, or another thread has replaced it and closed this line to it
                with self.lock:
                    if self.closed:
                        raise
                    if self.host is host:
                        self._stop()
                        self._start()
                return attempt(self.host)


def decide(judge: "Run", function: "Run", timeout: float) -> Verdict:
    """The judge's exit status is the verdict: nothing untrusted ran in that process. The rest is for the reader."""
    if judge.exit == 0 and not judge.killed:
        return Verdict(True, "passed", False, judge.seconds)
    timed_out = "time" in (judge.killed, function.killed)
    reason = judge.last_line()
    if timed_out:
        reason = f"no answer within {timeout:g} seconds"
    elif reason.startswith("Stopped"):
        reason = f"the program stopped: {function.last_line()}"
    return Verdict(False, reason, timed_out, judge.seconds)


class Run:
    """The host's end of one program: a line to the warm parent, and the pipes that the program prints to."""

    def __init__(self, host: socket.socket, request: dict, timeout: float, channel: socket.socket | None = None):
        self.exit, self.killed, self.seconds, self.end = None, None, 0.0, b""
        self.patience = time.monotonic() + timeout + GRACE
        self.control, control = socket.socketpair()
        (self.output, output), (self.error, error) = os.pipe(), os.pipe()
        self.printed = {self.output: bytearray(), self.error: bytearray()}
        try:
            with tempfile.TemporaryFile() as file:
                file.write(json.dumps(request).encode())
                file.seek(0)
                descriptors = [file.fileno(), control.fileno(), output, error]
                descriptors += [channel.fileno()] if channel else []
                socket.send_fds(host, [struct.pack("<d", timeout)], descriptors)
        except BaseException:
            self.__exit__()
            raise
        finally:
            control.close()
            os.close(output)
            os.close(error)
        for pipe in self.printed:
            os.set_blocking(pipe, False)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.control.close()
        for pipe in self.printed:
            os.close(pipe)

    def stop(self) -> None:
        """Have the warm parent kill the program; its end is still to be gathered."""
        try:
            self.control.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has ended

    def take(self, pipe: int) -> bytes | None:
        """Read what is there: b"" at the end, None if there is nothing yet."""
        try:
            data = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return None
        kept = self.printed[pipe]
        if len(kept) + len(data) > MAX_OUTPUT:
            self.killed = "output"
            self.stop()
        kept += data[: MAX_OUTPUT - len(kept)]
        return data

    def listen(self) -> bytes:
        """Read what the warm parent says of the end; b"" when it has said it all."""
        data = self.control.recv(4096)
        self.end += data
        if not data:
            for pipe in self.printed:  # nobody writes any more
                while self.take(pipe):
                    pass
            if not self.end:
                raise SandboxError("The sandbox's warm parent died while a program ran.")
            end = functools.reduce(dict.__or__, map(json.loads, self.end.splitlines()))
            if "refused" in end:
                raise SandboxError(f"The sandbox could not close its walls: {end['refused']}")
            self.exit, self.seconds, self.killed = end["exit"], end["seconds"], self.killed or end["killed"]
        return data

    def text(self, pipe: int) -> str:
        return self.printed[pipe].decode("utf-8", errors="replace")

    def explain(self) -> str:
        """The program's traceback, and what stopped it if it did not stop by itself."""
        names = {number: number.name for number in signal.Signals}
        stopped = {
            "time": "stopped: out of time",
            "disk": "stopped: too many or too large files in its folder",
            "output": f"stopped: more than {MAX_OUTPUT} bytes of output",
        }.get(self.killed, f"killed by {names.get(-self.exit, -self.exit)}" if self.exit < 0 else "")
        return (self.text(self.error) + stopped).strip()

    def last_line(self) -> str:
        return (self.explain().splitlines() or [f"exit status {self.exit}"])[-1][:500]


def gather(run: Run, *others: Run) -> None:
    """Read what all these programs print until `run` has ended. SandboxError if the warm parent does not answer."""
    with selectors.DefaultSelector() as selector:
        for each in (run, *others):
            if each.exit is None:
                selector.register(each.control, selectors.EVENT_READ, (each, each.listen))
            for pipe in each.printed:
                selector.register(pipe, selectors.EVENT_READ, (each, functools.partial(each.take, pipe)))
        while run.exit is None:
            ready = selector.select(max(0.0, run.patience - time.monotonic()))
            if not ready:
                raise SandboxError("The sandbox's warm parent does not answer.")
            for key, _ in ready:
                if key.data[1]() == b"":
                    selector.unregister(key.fileobj)


# ---------------------------------------------------------------------------------------------------------------------
# One sandbox for everybody in this process

_starting = threading.Lock()
_accepted = "strict"


def accept_level(level: str) -> None:
    """From here on this process runs programs in a sandbox of at least this level: the flag --sandbox of a script.

    ValueError if there is no such level. Whether this machine has it shows when the first program runs.
    """
    global _accepted
    if level not in LEVELS[1:]:
        raise ValueError(f"There is no sandbox level {level!r}. Levels are basic and strict.")
    _accepted = level


@functools.cache
def _open_shared(level: str, process: int) -> Sandbox:
    sandbox = Sandbox(level)
    atexit.register(sandbox.close)
    print(f"Programs run in a sandbox of the level {sandbox.level}: {', '.join(sandbox.reasons)}.", file=sys.stderr)
    return sandbox


def shared_sandbox() -> Sandbox:
    """This process's sandbox, of the level that `accept_level` said, strict unless it was called. Made on first use."""
    with _starting:
        return _open_shared(_accepted, os.getpid())  # a fork of this process takes its own


def open_sandbox(level: str) -> None:
    """Have the sandbox of this process ready. SystemExit, which says what to do, if this machine has none so strict."""
    try:
        accept_level(level)
        shared_sandbox()
    except SandboxError as error:
        raise SystemExit(str(error)) from error


@functools.cache
def sandbox_level() -> tuple[str, tuple[str, ...]]:
    """What this machine offers, by trying it: ("strict" | "basic" | "none", the reasons)."""
    try:
        with Sandbox("none") as sandbox:
            return sandbox.level, sandbox.reasons
    except (SandboxError, OSError) as error:
        return "none", (str(error),)


def run_python(code: str, *, timeout: float = 5.0) -> Result:
    """Run a program that nobody trusts. SandboxError if the sandbox here is below the accepted level."""
    return shared_sandbox().run(code, timeout=timeout)


def python_tool(code: str, *, timeout: float = 5.0, begun: Callable[[Run], None] = lambda run: None) -> str:
    """What a chat model hears of its program: what it printed, its last value, and the last line of an error.

    Never empty, at most MAX_HEARD characters. Blocks for up to `timeout` seconds; any thread. SandboxError as with
    `run_python`.
    """
    result = shared_sandbox().run(code, timeout=timeout, echo=True, begun=begun)
    error = result.error.strip().splitlines()[-1:]
    text = "\n".join(filter(None, [result.output.rstrip("\n"), *error])) or "(no output)"
    return text if len(text) <= MAX_HEARD else text[: MAX_HEARD - 6] + " [...]"


def check_program(program: str, test: str, entry_point: str, *, prelude: str = "") -> Verdict:
    """Whether the function `entry_point` of an untrusted program passes a trusted test.

    The program runs in one process and answers arguments with values, as data. The test, asserts about `entry_point`
    or a `check(candidate)` full of them, runs in a second one; so no exit status, printed text, `__eq__`, patched
    builtin or walk over frames reaches what decides. Both sides see copies: a list that the function changes is still
    the old one to the test. `prelude` is trusted code that the test needs: for HumanEval the prompt, whose helper
    functions some tests call. SandboxError if the sandbox here is below the accepted level.
    """
    return shared_sandbox().check(program, test, entry_point, prelude=prelude)
