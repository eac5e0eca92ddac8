"""What the tests of the engine, of the server and of the page share: a scripted engine, a scripted model, and a server
that listens on a real port."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import uvicorn
from ranks import free_port

from nanochat.engine import Completion, Delta, Sampling
from nanochat.gpt import GPTConfig
from nanochat.server import Settings, create_app
from nanochat.tokenizer import Tokenizer

Script = Callable[[str], list[Delta]]


def byte_tokenizer() -> Tokenizer:
    """256 bytes and the special tokens: a real tokenizer that needs no training."""
    return Tokenizer(np.zeros((0, 2), np.int32))


class ScriptedRequest:
    def __init__(self, prompt, sampling: Sampling, deltas: list[Delta]):
        self.prompt, self.sampling, self.deltas = prompt, sampling, deltas
        self.sent: list[Delta] = []
        self.cancelled = False


class ScriptedEngine:
    """The Engine's interface, saying what `script` makes of the last thing in the prompt. One Delta a step; `pace` is
    the seconds that a step takes. A script may raise: then the whole engine dies, as it would of a broken GPU."""

    def __init__(
        self, tokenizer: Tokenizer, script: Script, slots: int = 4, max_context: int = 4096, pace: float = 0.0
    ):
        self.tokenizer, self.script, self.slots, self.max_context, self.pace = (
            tokenizer,
            script,
            slots,
            max_context,
            pace,
        )
        self.waiting: list[ScriptedRequest] = []
        self.running: list[ScriptedRequest] = []
        self.lock = threading.Lock()
        self.generated = 0

    def submit(self, prompt, sampling: Sampling = Sampling()):
        if len(prompt) >= self.max_context:
            raise ValueError(f"The prompt has {len(prompt)} tokens and the context is {self.max_context}.")
        text = self.tokenizer.decode([id for id in prompt if id < 256])
        request = ScriptedRequest(prompt, sampling, [])
        request.text = text
        self.asked = request  # last
        with self.lock:
            self.waiting.append(request)
        return request

    def cancel(self, request) -> None:
        request.cancelled = True

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self):
        time.sleep(self.pace)
        events = []
        with self.lock:
            gone = [request for request in self.waiting + self.running if request.cancelled]
            for request in gone:
                (self.waiting if request in self.waiting else self.running).remove(request)
            while self.waiting and len(self.running) < self.slots:
                request = self.waiting.pop(0)
                request.deltas = list(self.script(request.text))[: request.sampling.max_tokens]
                self.running.append(request)
        events += [(request, self.complete(request, "cancelled")) for request in gone]
        for request in list(self.running):
            if len(request.sent) < len(request.deltas):
                request.sent.append(request.deltas[len(request.sent)])
                self.generated += 1
                events.append((request, request.sent[-1]))
            else:
                self.running.remove(request)
                events.append((request, self.complete(request, "stop")))
        return events

    def complete(self, request, reason: str) -> Completion:
        grouped = itertools.groupby(request.sent, lambda delta: delta.kind)
        parts = [{"type": kind, "text": "".join(delta.text for delta in deltas)} for kind, deltas in grouped]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        ids = list(range(len(request.sent)))
        return Completion(ids, [True] * len(ids), text, parts, reason, None, len(request.prompt), 0)

    def stats(self) -> dict[str, int]:
        totals = {"prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": self.generated}
        return {"running": len(self.running), "waiting": len(self.waiting), "slots": self.slots, **totals}

    def generate(self, prompts, sampling):
        return []


class Scripted(torch.nn.Module):
    """A model that says what a script tells it: after n tokens, the n-th id. Keeps the contract of the cache."""

    def __init__(self, vocab_size: int, script: list[int], sequence_len: int = 128):
        super().__init__()
        self.config = GPTConfig(vocab_size, sequence_len, 1, 1, 1, 2)
        self.compute_dtype = torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script = script

    def forward(self, idx, cache, at):
        B, T = idx.shape
        cache.update(0, torch.zeros(B, T, 1, 2), torch.zeros(B, T, 1, 2))
        stands = (cache.pos + at).tolist()
        cache.advance(idx, at + 1)
        logits = torch.full((B, self.config.vocab_size), -10.0)
        for row, n in enumerate(stands):
            logits[row, self.script[n % len(self.script)]] = 10.0
        return logits


def say(*pieces: str) -> list[Delta]:
    return [Delta(piece) for piece in pieces]


def words(text: str) -> list[Delta]:
    """A Delta a word."""
    return [Delta(piece) for piece in text.replace(" ", " \0").split("\0")]


def serve(engine, tokenizer, settings: Settings = Settings()):
    """A context: the address of a server with this engine, ready to answer."""
    return serve_app(create_app(engine, tokenizer, settings))


@contextmanager
def serve_app(app) -> Iterator[str]:
    """The address of a server with this app, ready if it has an engine."""
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    workers = getattr(app.state, "workers", None)
    deadline = time.monotonic() + 60
    while not (server.started and (workers is None or workers.state != "loading")):
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
