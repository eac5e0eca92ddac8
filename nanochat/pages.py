"""The pages that people open in a browser, and what only these pages ask for.

In: HTTP requests. Out: the files of ui/, Markdown as safe HTML, the logs of training runs.
An app of its own serves them while there is no model yet that could answer.
"""

import asyncio
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from nanochat.markdown import render_markdown
from nanochat.protocol import Refusal, RenderRequest, error_body
from nanochat.wall import Wall, add_error_handlers
from nanochat.watch import list_runs, read_run

UI = Path(__file__).resolve().parent / "ui"
FRESH = {"Cache-Control": "no-cache"}  # ask each time, so that no page meets the scripts of an older one


class Files(StaticFiles):
    def file_response(self, *args, **kwargs):
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


def page(name: str) -> HTMLResponse:
    """A page of ui/, with the head that all of them share."""
    text, head = ((UI / file).read_text(encoding="utf-8") for file in (name, "head.html"))
    return HTMLResponse(text.replace("  <!-- head.html -->\n", head), headers=FRESH)


def add_pages(app: FastAPI) -> None:
    """The chat on /, training runs on /training."""
    rendering = asyncio.Semaphore(2)  # rendering holds the interpreter that the engine needs too

    @app.get("/", include_in_schema=False)
    async def chat_page():
        return page("index.html")

    @app.post("/ui/render", include_in_schema=False)
    async def render(body: RenderRequest):
        writing = [False] * (len(body.texts) - 1) + [body.writing]
        async with rendering:
            return {"html": await run_in_threadpool(lambda: list(map(render_markdown, body.texts, writing)))}

    add_training(app)


def add_training(app: FastAPI) -> None:
    @app.get("/training", include_in_schema=False)
    async def training_page():
        return page("training.html")

    @app.get("/training/runs", include_in_schema=False)
    async def runs():
        return {"runs": await run_in_threadpool(list_runs)}

    @app.get("/training/runs/{name}", include_in_schema=False)
    async def run(name: str, after: int = 0, file: int = 0):
        found = await run_in_threadpool(read_run, name, after, file)
        if found is None:
            raise Refusal("There is no log of a run with that name.", status=404)
        return found

    app.mount("/ui", Files(directory=UI))


def create_waiting_app(message: str, host: str = "127.0.0.1", api_key: str = "") -> FastAPI:
    """A server without a model: /training, and `message` for whoever wants an answer."""
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app)
    add_training(app)

    @app.get("/")
    async def chat_page():
        return RedirectResponse("/training")

    @app.get("/health")
    async def health():
        return JSONResponse({"status": "waiting", "message": message}, 503)

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST"])
    async def answers(rest: str):
        return JSONResponse(error_body(message, "server_error", code="no_model"), 503, headers={"Retry-After": "30"})

    app.add_middleware(Wall, host=host, api_key=api_key, max_body=2**21, patience=60.0, count=lambda status: None)
    return app
