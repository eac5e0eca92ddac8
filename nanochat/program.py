"""A program that a chat model wrote, while the engine goes on with other answers.

In: its text. Out: what the model hears of it. The sandbox that it runs in is execution.py's.
"""

import logging
import threading
from collections.abc import Callable

from nanochat.execution import Run, python_tool

log = logging.getLogger("nanochat.program")


class Program:
    """A program on its way, in a thread of its own. `output` is None, then what `python_tool` says of it."""

    def __init__(self, code: str, ended: Callable[[], None]):
        """`ended` is called in that thread when there is an output."""
        self.output: str | None = None
        self._ended, self._run, self._stopped, self._lock = ended, None, False, threading.Lock()
        threading.Thread(target=self._go, args=(code,), name="program", daemon=True).start()

    def stop(self) -> None:
        """Kill it if it still runs, or as soon as it would begin. Any thread."""
        with self._lock:
            self._stopped = True
            if self._run:
                self._run.stop()

    def _begun(self, run: Run) -> None:
        with self._lock:
            self._run = run
        if self._stopped:
            run.stop()

    def _go(self, code: str) -> None:
        try:
            output = python_tool(code, begun=self._begun)
        except Exception as error:  # the sandbox's fault: the model hears what it hears of a wrong calculation
            log.error("a program could not run: %s", error)
            output = "error"
        self.output = output
        self._ended()
