"""What stands around the server: who may ask, how much and how slowly, and how a refusal reads.

In: raw HTTP messages, and whatever an endpoint raises. Out: the same messages, or an error of OpenAI's shape.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from nanochat.protocol import Refusal, error_body
from nanochat.worker import EngineDown, EngineFault, Overloaded

log = logging.getLogger("nanochat.server")

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/", "/health", "/training")  # and /ui/*: without a key, the page can say that one is needed
NOTHING = (
    "There is nothing here. The API is /v1/chat/completions, /v1/completions, /v1/tokenize and /v1/models; "
    "a client's base_url ends in /v1."
)
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Wall:
    """Before a request is read: is it for us, does it have the key, is it too big or too slow. Plain ASGI: it sees
    each message and buffers none."""

    def __init__(self, app, *, host: str, api_key: str, max_body: int, patience: float, count: Callable[[int], None]):
        """`host` is the address that the server is bound to; on a local one only local names are answered, so that no
        web site can reach it through a name of its own (DNS rebinding). `count` is told each response's status."""
        self.app, self.local_only, self.api_key = app, host in LOCAL_NAMES, api_key
        self.max_body, self.patience, self.count = max_body, patience, count

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started, head = False, scope["method"] == "HEAD"
        if head:  # what GET would say, without its body
            scope = {**scope, "method": "GET"}

        async def send_safely(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS]}
                self.count(message["status"])
            elif head:
                message = {**message, "body": b""}
            await asyncio.wait_for(send(message), self.patience)

        try:
            refusal = self.check(scope["path"], headers)
            await (refusal or self.app)(scope, self.limited(receive), send_safely)
        except asyncio.TimeoutError:  # noqa: UP041  (its own class before Python 3.11)
            log.info(
                "a client stopped reading and was cut off" if started else "a client stopped sending and was cut off"
            )

    def check(self, path: str, headers: dict[str, str]) -> Response | None:
        if self.local_only and host_name(headers.get("host", "")) not in LOCAL_NAMES:
            message = "This server answers only to localhost. To serve a network, start it with --host=0.0.0.0."
            return JSONResponse(error_body(message, code="wrong_host"), 403)
        if not self.api_key or path in OPEN_PATHS or path.startswith("/ui/") and path != "/ui/render":
            return None
        given = headers.get("authorization", "")
        if secrets.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
            return None
        message = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
        return JSONResponse(error_body(message, "authentication_error", code="invalid_api_key"), 401)

    def limited(self, receive):
        size, complete = 0, False

        async def receive_some():
            nonlocal size, complete
            message = await (receive() if complete else asyncio.wait_for(receive(), self.patience))
            size += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            if size > self.max_body:
                raise StarletteHTTPException(413, f"The request is larger than {self.max_body:,} bytes.")
            return message

        return receive_some


def host_name(host: str) -> str:
    """ "[::1]:8000" -> "::1"; "" if it is no host at all."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def place_of(loc: tuple) -> str:
    """("body", "messages", 0, "content", "list[Part]", 0) -> "messages.0.content.0": without the types that it might
    have been."""
    return ".".join(str(step) for step in loc[1:] if "[" not in str(step))


def add_error_handlers(app: FastAPI) -> None:
    """Every error has OpenAI's shape and says what to do. None repeats what the client sent, which may be private."""

    def respond(status: int, *args, headers=None, **kwargs):
        return JSONResponse(error_body(*args, **kwargs), status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error: RequestValidationError):
        problems = [(place_of(one["loc"]), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        kind, loc = error.errors()[0]["type"], error.errors()[0]["loc"]
        if kind == "json_invalid" or loc == ("body",) and kind != "value_error":
            return respond(400, "The body must be a JSON object, sent with Content-Type: application/json.")
        first = next((name for name, _ in problems if name), "")
        within = [(name, text) for name, text in problems if name.startswith(first)]
        name, text = max(within, key=lambda problem: problem[0].count("."))  # the form that came closest
        return respond(400, f"{name or 'body'}: {text}", param=name or None)

    @app.exception_handler(Refusal)
    async def refused(request, error: Refusal):
        return respond(error.status, str(error), param=error.param, code=error.code)

    @app.exception_handler(Overloaded)
    async def overloaded(request, error: Overloaded):
        return respond(
            429, str(error), "rate_limit_error", code="overloaded", headers={"Retry-After": str(error.retry_after)}
        )

    @app.exception_handler(EngineDown)
    async def down(request, error: EngineDown):
        return respond(503, str(error), "server_error", code="engine_down", headers={"Retry-After": "5"})

    @app.exception_handler(EngineFault)
    async def fault(request, error: EngineFault):
        return respond(500, str(error), "server_error")

    @app.exception_handler(StarletteHTTPException)
    async def plain(request, error: HTTPException):
        message = NOTHING if (error.status_code, error.detail) == (404, "Not Found") else f"{error.detail}"
        return respond(error.status_code, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request, error: Exception):
        return respond(500, "The server made a mistake; its log has the details.", "server_error")
