"""An OpenAI-compatible HTTP API over the Engine, and the chat page on top of it.

In: HTTP requests. Out: answers, whole or as server-sent events; /health, /metrics; the pages of pages.py.
protocol.py checks what a request asks; worker.py's threads run the engines; nothing here blocks the event loop.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from nanochat.engine import Completion, Delta, Engine, Sampling
from nanochat.grammar import Grammars
from nanochat.pages import add_pages
from nanochat.protocol import (
    ChatRequest,
    ChatShape,
    CompletionRequest,
    CompletionShape,
    Refusal,
    SamplingRequest,
    TokenizeRequest,
    error_body,
    usage,
)
from nanochat.tokenizer import Tokenizer
from nanochat.wall import Wall, add_error_handlers
from nanochat.worker import EngineDown, EngineFault, Ticket, Workers

log = logging.getLogger("nanochat.server")

PING_SECONDS = 10.0  # a comment in a silent stream, so that proxies keep it open


@dataclass(frozen=True)
class Settings:
    """What a server is told when it starts."""

    model_name: str = "nanochat"
    host: str = "127.0.0.1"
    """The address that it is bound to. On a local one only requests to local names are answered (DNS rebinding)."""
    api_key: str = ""
    cors_origin: Sequence[str] = ()
    max_queue: int = 32
    """Requests that may wait beyond the engine's slots; the next gets 429."""
    max_body: int = 2**21
    """Bytes of a request."""
    patience: float = 60.0
    """Seconds after which a client that neither sends nor reads is cut off."""
    defaults: dict = field(default_factory=lambda: {"temperature": 0.8, "top_k": 50, "max_tokens": 1024})
    """Sampling for what a request leaves open."""
    python: bool = False
    """Run programs that the model writes, in the sandbox."""
    about: dict = field(default_factory=dict)
    """Shown on the page and in /v1/models."""


def create_app(engines: Engine | Sequence[Engine], tokenizer: Tokenizer, settings: Settings = Settings()) -> FastAPI:
    """The whole server, with one engine or several alike. Their threads start and end with the app's lifespan."""
    hello = {"messages": [{"role": "user", "content": "Hello!"}]}
    engines = engines if isinstance(engines, Sequence) else [engines]
    workers = Workers(engines, settings.max_queue, warm_up=lambda: tokenizer.render_for_completion(hello).tolist())

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        workers.start(metrics.finished)
        yield
        await run_in_threadpool(workers.stop)

    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.workers = workers
    add_error_handlers(app)
    metrics = Metrics(workers)
    add_pages(app)
    add_status(app, workers, metrics, settings)
    add_answers(app, workers, tokenizer, metrics, settings)
    app.add_middleware(
        Wall,
        host=settings.host,
        api_key=settings.api_key,
        max_body=settings.max_body,
        patience=settings.patience,
        count=lambda status: metrics.responses.labels(str(status)).inc(),
    )
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers has some of its own
        )
    return app


# ---------------------------------------------------------------------------------------------------------------------
# Status


def add_status(app: FastAPI, workers: Workers, metrics: "Metrics", settings: Settings) -> None:
    created = int(time.time())
    model = {"id": settings.model_name, "object": "model", "created": created, "owned_by": "nanochat"}
    extra = {"defaults": settings.defaults, "about": settings.about, "context": workers.context}

    @app.get("/health")
    async def health():
        return JSONResponse({"status": workers.state}, 200 if workers.ready else 503)

    @app.get("/metrics")
    async def show_metrics():
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def list_models():
        return {"object": "list", "data": [{**model, **extra}]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str):
        check_model(name, settings)
        return {**model, **extra}


def check_model(name: str | None, settings: Settings) -> None:
    if name and name != settings.model_name:
        raise Refusal(
            f"There is no model of that name here; this server has {settings.model_name!r}.",
            "model",
            404,
            "model_not_found",
        )


class Metrics:
    """What Prometheus reads. Gauges come from the engine at the moment of the question."""

    def __init__(self, workers: Workers):
        self.registry, self.workers = CollectorRegistry(), workers
        buckets = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        self.responses = Counter("nanochat_responses", "HTTP responses.", ["status"], registry=self.registry)
        self.answers = Counter("nanochat_answers", "Finished answers.", ["reason"], registry=self.registry)
        self.seconds = Histogram(
            "nanochat_answer_seconds", "From request to last token.", registry=self.registry, buckets=buckets
        )
        self.first = Histogram(
            "nanochat_first_token_seconds", "From request to first token.", registry=self.registry, buckets=buckets
        )
        self.registry.register(self)

    def finished(self, ticket: Ticket, completion: Completion) -> None:
        self.answers.labels(completion.finish_reason).inc()
        self.seconds.observe(time.monotonic() - ticket.submitted)

    def collect(self):
        stats = self.workers.stats()
        yield GaugeMetricFamily("nanochat_up", "1 while the engine's thread runs.", value=float(self.workers.ready))
        for name, text in (
            ("running", "Answers being written."),
            ("waiting", "Requests in the queue."),
            ("slots", "Answers at once, at most."),
        ):
            yield GaugeMetricFamily(f"nanochat_{name}", text, value=stats[name])
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            yield CounterMetricFamily(
                f"nanochat_{name}", f"{name.replace('_', ' ').capitalize()} since the start.", value=stats[name]
            )


# ---------------------------------------------------------------------------------------------------------------------
# Answers


class Call:
    """One call of a client: its ticket, the shape of what it gets, and what it used."""

    def __init__(self, ticket: Ticket, shape: ChatShape | CompletionShape, model: str, prompts: list, metrics: Metrics):
        self.ticket, self.shape, self.metrics = ticket, shape, metrics
        self.prompt_tokens, self.per_prompt = sum(map(len, prompts)), len(ticket.requests) // len(prompts)
        self.completion_tokens = self.cached_tokens = 0
        self.head = {"id": shape.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    async def events(self) -> AsyncIterator[tuple[int, Delta | Completion] | None]:
        """Every event until the last answer is complete; None after PING_SECONDS of silence."""
        left, first = len(self.ticket.requests), True
        while left:
            try:
                index, event = await asyncio.wait_for(self.ticket.events.get(), PING_SECONDS)
            except asyncio.TimeoutError:  # noqa: UP041  (its own class before Python 3.11)
                yield None
                continue
            if isinstance(event, EngineDown):
                raise event
            if first:
                self.metrics.first.observe(time.monotonic() - self.ticket.submitted)
                first = False
            if isinstance(event, Completion):
                left -= 1
                self.completion_tokens += len(event.ids)
                self.cached_tokens += event.cached_tokens if index % self.per_prompt == 0 else 0
                if event.finish_reason == "error":
                    log.error("an answer failed in the engine: %s", event.error)
                    raise EngineFault("The engine failed on this answer; the server's log has the details.")
            yield index, event

    def usage(self) -> dict:
        return usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)

    async def whole(self) -> dict:
        choices, entries = {}, {}
        async for item in self.events():
            if item is None:
                continue
            index, event = item
            if isinstance(event, Completion):
                choices[index] = self.shape.choice(index, event, entries.get(index, []), reason_of(event))
            elif event.kind in self.shape.kinds:
                entries.setdefault(index, []).extend(event.logprobs)
        ordered = [choices[index] for index in sorted(choices)]
        return {**self.head, "object": self.shape.whole, "choices": ordered, "usage": self.usage()}

    async def frames(self, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events."""
        head = {**self.head, "object": self.shape.chunk} | ({"usage": None} if with_usage else {})

        def frame(choices: list, **more) -> str:
            return f"data: {json.dumps({**head, 'choices': choices, **more}, ensure_ascii=False)}\n\n"

        try:
            for index in range(len(self.ticket.requests)):
                if start := self.shape.start(index):
                    yield frame([start])
            async for item in self.events():
                if item is None:
                    yield ": still here\n\n"
                elif isinstance(item[1], Completion):
                    yield frame([self.shape.end(item[0], reason_of(item[1]))])
                else:
                    yield frame([self.shape.delta(*item)])
            if with_usage:
                yield frame([], usage=self.usage())
            yield "data: [DONE]\n\n"
        except (EngineDown, EngineFault) as error:
            yield f"data: {json.dumps(error_body(str(error), 'server_error'))}\n\n"


def reason_of(completion: Completion) -> str:
    return "length" if completion.finish_reason == "length" else "stop"


class AnswerStream(StreamingResponse):
    """Ends the work however the response ends, even if the client left before its first byte."""

    def __init__(self, call: Call, workers: Workers, with_usage: bool):
        super().__init__(
            call.frames(with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self.ticket, self.workers = call.ticket, workers

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.workers.leave(self.ticket)


async def unless_gone(request: Request, work) -> dict | None:
    """The result of a coroutine, or None as soon as the client has left."""

    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


def add_answers(app: FastAPI, workers: Workers, tokenizer: Tokenizer, metrics: Metrics, settings: Settings) -> None:
    grammars = Grammars(tokenizer)

    async def answer(request: Request, body: SamplingRequest, shape, prompts: list, sampling: Sampling, **head):
        pairs = [(prompt, replace(sampling, seed=seed)) for prompt in prompts for seed in body.seeds()]
        if len(pairs) > workers.capacity:
            raise Refusal(f"{len(pairs)} answers at once are more than this server's {workers.capacity}; lower n.", "n")
        try:
            ticket = workers.submit(pairs, asyncio.get_running_loop())
        except ValueError as error:
            raise Refusal(str(error), code="context_length_exceeded" if "context" in str(error) else None) from error
        call = Call(ticket, shape, settings.model_name, prompts, metrics)
        call.head |= head
        if body.stream:
            return AnswerStream(call, workers, bool(body.stream_options and body.stream_options.include_usage))
        try:
            return JSONResponse(await unless_gone(request, call.whole()) or {})
        finally:
            workers.leave(ticket)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest):
        check_model(body.model, settings)
        top = (body.top_logprobs or 0) if body.logprobs else None
        begin = await run_in_threadpool(body.begin_ids, tokenizer)
        grammar = body.response_format and await run_in_threadpool(body.response_format.grammar, grammars)
        more = {"tools": body.tool_choice != "none" and grammar is None, "python": settings.python}
        more |= {"begin": begin, "grammar": grammar}
        sampling = body.sampling(settings.defaults, tokenizer.vocab_size, logprobs=top, **more)
        prompt, left_out = await run_in_threadpool(body.prompt_ids, tokenizer, workers.context, len(begin))
        head = {"left_out": left_out} if left_out else {}
        return await answer(request, body, ChatShape(tokenizer), [prompt], sampling, **head)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest):
        check_model(body.model, settings)
        sampling = body.sampling(settings.defaults, tokenizer.vocab_size, logprobs=body.logprobs, tools=False)
        prompts = await run_in_threadpool(body.prompts, tokenizer)
        return await answer(request, body, CompletionShape(tokenizer), prompts, sampling)

    @app.post("/v1/tokenize")
    async def tokenize(body: TokenizeRequest):
        ids = await run_in_threadpool(body.prompt_ids, tokenizer)
        return {"tokens": ids, "count": len(ids), "context": workers.context}
