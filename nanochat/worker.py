"""The engine in a thread of its own: one loop that steps it, and a way to follow answers from an asyncio program.

In: prompts with their Samplings, from coroutines. Out: a Ticket to read events from, in the order they happened.
The thread never waits for a reader: what a reader has not read yet lies in its ticket, at most one answer's worth.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from nanochat.engine import Completion, Delta, Engine, Request, Sampling

log = logging.getLogger("nanochat.worker")


class Overloaded(Exception):
    """Every slot and every place in the queue is taken."""

    def __init__(self, active: int, retry_after: int):
        super().__init__(
            f"The server is busy: {active} answers are being written or wait. Try again in {retry_after} s."
        )
        self.retry_after = retry_after


class EngineDown(Exception):
    """The engine is still loading, or its thread has ended."""

    REASONS = {
        "loading": "The model is still getting ready. Try again in a few seconds.",
        "stopped": "The server is shutting down.",
        "dead": "The engine has stopped; the server's log says why. Start the server again.",
    }

    def __init__(self, state: str):
        super().__init__(self.REASONS.get(state, self.REASONS["dead"]))


class EngineFault(Exception):
    """One answer failed inside the engine; the others go on."""


class Ticket:
    """The answers to one call: `n` requests and the events that come from them."""

    def __init__(self, worker: "Worker", loop: asyncio.AbstractEventLoop):
        self.worker, self.loop = worker, loop
        self.requests: list[Request] = []
        self.events: asyncio.Queue[tuple[int, Delta | Completion | EngineDown]] = asyncio.Queue()
        self.submitted = time.monotonic()

    def put(self, items: list) -> None:
        for item in items:
            self.events.put_nowait(item)


class Worker:
    """Owns the thread that calls `engine.step`. `max_queue` is how many requests may wait beyond the engine's slots;
    `warm_up` makes a first prompt, so that whatever compiles on first use has done so before it is ready."""

    def __init__(self, engine: Engine, max_queue: int = 32, warm_up: Callable[[], Sequence[int]] | None = None):
        self.engine = engine
        self.slots = engine.stats()["slots"]
        self.context = engine.max_context
        self.capacity = self.slots + max_queue
        self.state = "loading"  # then "ready", and in the end "stopped" or "dead"
        self.finished: Callable[[Ticket, Completion], None] = lambda ticket, completion: None
        self.on_ready: Callable[[], None] = lambda: None
        self._warm_up = warm_up
        self._followers: dict[Request, tuple[Ticket, int]] = {}
        self._seconds = 1.0  # how long answers took lately
        self._lock = threading.Lock()  # a request is known to us before any of its events is handed out
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step. Answers that are not finished get EngineDown."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self._thread.is_alive()

    @property
    def active(self) -> int:
        return len(self._followers)

    def submit(self, prompts: Sequence[tuple[Sequence[int], Sampling]], loop: asyncio.AbstractEventLoop) -> Ticket:
        """Queue all prompts or none; any thread. Overloaded, EngineDown, or ValueError if a prompt does not fit."""
        ticket = Ticket(self, loop)
        with self._lock:
            if not self.ready:
                raise EngineDown(self.state)
            if len(self._followers) + len(prompts) > self.capacity:
                raise Overloaded(len(self._followers), min(60, max(1, round(self._seconds))))
            try:
                for prompt, sampling in prompts:
                    ticket.requests.append(self.engine.submit(prompt, sampling))
            except ValueError:
                for request in ticket.requests:
                    self.engine.cancel(request)
                self._wake.set()
                raise
            self._followers.update({request: (ticket, index) for index, request in enumerate(ticket.requests)})
        self._wake.set()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Nobody reads this ticket any more: free its slots, wherever its requests are. Any thread."""
        with self._lock:
            for request in ticket.requests:
                if self._followers.pop(request, None):
                    self.engine.cancel(request)
        self._wake.set()

    # -----------------------------------------------------------------------------------------------------------------
    # The thread

    def _run(self) -> None:
        try:
            if self._warm_up:
                self.engine.generate([self._warm_up()], Sampling(max_tokens=2, temperature=0.0))
            self.state = "ready"
            self.on_ready()
            while not self._stopping:
                self._wake.clear()
                if self.engine.has_work:
                    self._hand_out(self.engine.step())
                else:
                    self._wake.wait()
            self.state = "stopped"
        except Exception:
            self.state = "dead"
            log.exception("The engine's thread has ended. /health says so; start the server again.")
        with self._lock:
            left, self._followers = self._followers, {}
        for ticket, index in left.values():
            self._post(ticket, [(index, EngineDown(self.state))])

    def _hand_out(self, events: list[tuple[Request, Delta | Completion]]) -> None:
        batches: dict[Ticket, list] = {}
        with self._lock:
            for request, event in events:
                ticket, index = self._followers.get(request, (None, 0))
                if ticket is None:
                    continue
                batches.setdefault(ticket, []).append((index, event))
                if isinstance(event, Completion):
                    del self._followers[request]
                    self._seconds += 0.2 * (time.monotonic() - ticket.submitted - self._seconds)
                    self.finished(ticket, event)
        for ticket, items in batches.items():
            self._post(ticket, items)

    @staticmethod
    def _post(ticket: Ticket, items: list) -> None:
        try:
            ticket.loop.call_soon_threadsafe(ticket.put, items)
        except RuntimeError:
            pass  # that reader's event loop is closed


class Workers:
    """One Worker for each engine, such as one a GPU; a call goes to the one that has the least to do."""

    def __init__(self, engines: Sequence[Engine], max_queue: int, warm_up: Callable[[], Sequence[int]] | None = None):
        """`max_queue` is each one's own."""
        self.each = [Worker(engine, max_queue, warm_up) for engine in engines]
        self.context = min(worker.context for worker in self.each)
        self.capacity = min(worker.capacity for worker in self.each)  # of one call
        self.on_ready: Callable[[], None] = lambda: None

    def start(self, finished: Callable[[Ticket, Completion], None]) -> None:
        """`finished` is told every completion, in the threads of the engines."""
        for worker in self.each:
            worker.finished, worker.on_ready = finished, self._one_is_ready
        for worker in self.each:
            worker.start()

    def _one_is_ready(self) -> None:
        if all(worker.state != "loading" for worker in self.each):
            self.on_ready()

    def stop(self) -> None:
        for worker in self.each:
            worker.stop()

    @property
    def state(self) -> str:
        """ "loading" until all are ready; then "ready" while one is; else what the first one is."""
        states = [worker.state if worker.state != "ready" or worker.ready else "dead" for worker in self.each]
        return next((state for state in ("loading", "ready") if state in states), states[0])

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def submit(self, prompts: Sequence[tuple[Sequence[int], Sampling]], loop: asyncio.AbstractEventLoop) -> Ticket:
        """As Worker.submit: Overloaded if none has room."""
        ready = sorted((worker for worker in self.each if worker.ready), key=lambda worker: worker.active)
        if not self.ready or not ready:
            raise EngineDown(self.state)
        for worker in ready[:-1]:
            try:
                return worker.submit(prompts, loop)
            except (Overloaded, EngineDown):
                continue
        return ready[-1].submit(prompts, loop)

    def leave(self, ticket: Ticket) -> None:
        ticket.worker.leave(ticket)

    def stats(self) -> dict[str, int]:
        """The sums of all engines' stats."""
        each = [worker.engine.stats() for worker in self.each]
        return {name: sum(stats[name] for stats in each) for name in each[0]}
