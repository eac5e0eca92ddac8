"""Talk to the model in a browser, or through any OpenAI client.

python -m scripts.chat_web
python -m scripts.chat_web -i base --port=8001 --host=0.0.0.0 --api_key=SECRET
"""

import logging
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
import uvicorn

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import STAGES, compute_dtype, pick_device
from nanochat.configurator import launch
from nanochat.cpu_matmul import KINDS
from nanochat.engine import Engine
from nanochat.execution import open_sandbox
from nanochat.pages import create_waiting_app
from nanochat.server import Settings, create_app
from nanochat.wall import LOCAL_NAMES
from nanochat.watch import list_runs


@dataclass(frozen=True)
class Config:
    """Talk to the model in a browser, or through any OpenAI client."""

    source: Annotated[Literal[STAGES], tyro.conf.arg(aliases=["-i"])] = "sft"
    """stage of the model"""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """name of the model's folder; by default the newest"""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """step of the checkpoint; by default the newest"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 serves the whole network, then set an --api_key"""
    port: int = 8000
    """port to listen on"""
    api_key: str = ""
    """clients must send this key; by default none is needed"""
    cors_origin: tuple[str, ...] = ()
    """other web sites whose pages may call the API, such as https://example.org"""
    gpus: int = 0
    """GPUs to use, each with a copy of the model; 0: all that there are"""
    weights: Literal[KINDS] = "bfloat16"
    """on a CPU: smaller weights are faster, and less exact (see dev/LOG.md); a GPU has its own type"""
    max_batch: int = 8
    """answers that are written at the same time, on each GPU"""
    max_queue: int = 32
    """requests that may wait for a place, for each GPU; the next is told to come back later"""
    temperature: float = 0.6
    """default of requests that name none; 0 is greedy"""
    top_k: int = 50
    """default: choose among so many tokens; 0: all"""
    top_p: float = 1.0
    """default: choose among the likeliest tokens that share this probability"""
    max_tokens: int = 1024
    """default: tokens of an answer at most"""
    python: bool = False
    """run the programs that the model writes, in the sandbox. Off, since the quickstart's models know only
    the calculator and the encyclopedia, and running what strangers make a model write should be asked for"""
    sandbox: Literal["strict", "basic"] = "strict"
    """least level of the sandbox for --python"""


def main(cfg: Config) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    with listen(cfg.host, cfg.port) as listener:  # before the model is loaded: a taken port is known at once
        try:
            path = checkpoint_manager.find(cfg.source, cfg.model_tag, cfg.step)
        except SystemExit as missing:
            if not list_runs():
                raise
            path = wait_for_model(cfg, listener, str(missing))
        if path:
            serve(cfg, listener, path)


def wait_for_model(cfg: Config, listener: socket.socket, missing: str) -> Path | None:
    """Serve /training until there is a model to load. None if the user stops it."""
    found: list[Path] = []
    message = f"There is no {cfg.source} model to chat with yet. The chat begins by itself when there is one."
    app = create_waiting_app(message, cfg.host, cfg.api_key)
    server = uvicorn.Server(web_config(app))

    def look() -> None:
        while not (found or server.should_exit):
            try:
                found.append(checkpoint_manager.find(cfg.source, cfg.model_tag, cfg.step))
            except SystemExit:
                time.sleep(1)
        server.should_exit = True

    print(f"{missing}\n\n  Watch the training   {address(cfg)}/training\n  {message}\n\n  Ctrl-C stops.", flush=True)
    threading.Thread(target=look, daemon=True).start()
    run(server, listener)
    return found[0] if found else None


def serve(cfg: Config, listener: socket.socket, path: Path) -> None:
    device = pick_device(cfg.device)
    if cfg.python:
        open_sandbox(cfg.sandbox)
    print(f"Loading {path} ...", flush=True)
    try:
        engines = []
        for each in devices(device, cfg.gpus):
            checkpoint = checkpoint_manager.load(path=path, device=each, dtype=compute_dtype(each))
            weights = cfg.weights if each.type == "cpu" else None
            engines.append(Engine(checkpoint.model, checkpoint.tokenizer, max_batch=cfg.max_batch, weights=weights))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    settings = Settings(
        model_name=f"nanochat-{checkpoint.tag}",
        host=cfg.host,
        api_key=cfg.api_key,
        cors_origin=cfg.cors_origin,
        max_queue=cfg.max_queue,
        defaults={name: getattr(cfg, name) for name in ("temperature", "top_k", "top_p", "max_tokens")},
        python=cfg.python,
        about=describe(checkpoint),
    )
    app = create_app(engines, checkpoint.tokenizer, settings)
    app.state.workers.on_ready = lambda: print(greeting(cfg, settings, device.type), flush=True)
    run(uvicorn.Server(web_config(app)), listener)


def web_config(app) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=30)


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        server.run(sockets=[listener.dup()])  # the server closes the one that it is given
    except KeyboardInterrupt:
        print("Stopped.")


def devices(device: torch.device, gpus: int) -> list[torch.device]:
    """Where a copy of the model goes. SystemExit if there are fewer GPUs than asked for."""
    if device.type != "cuda":
        return [device]
    there = torch.cuda.device_count()
    if gpus > there:
        raise SystemExit(f"--gpus={gpus}, but this machine has {there}.")
    return [torch.device("cuda", index) for index in range(gpus or there)]


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. SystemExit if the port is taken or the address is none of this machine's."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        if listener:
            listener.close()
        raise SystemExit(
            f"Cannot listen on {host} port {port}: {error}. Another --port, such as {port + 1}, may be free."
        ) from error
    return listener


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    """What the page says of the model."""
    count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    parameters = f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    return {"parameters": f"{parameters} parameters", "stage": checkpoint.stage, "step": f"{checkpoint.state.step:,}"}


def address(cfg: Config) -> str:
    shown = "localhost" if cfg.host in (*LOCAL_NAMES, "0.0.0.0", "::") else cfg.host
    return f"http://{shown}:{cfg.port}"


def greeting(cfg: Config, settings: Settings, device: str) -> str:
    about = settings.about
    lines = [
        "",
        f"  {settings.model_name}: {about['parameters']}, stage {about['stage']}, step {about['step']}, on {device}",
        "",
        f"  Chat       {address(cfg)}",
        f"  Training   {address(cfg)}/training",
        f"  API        {address(cfg)}/v1   (for OpenAI clients: base_url; the model is {settings.model_name!r})",
        "",
        "  Ctrl-C stops.",
    ]
    if cfg.host not in LOCAL_NAMES and not cfg.api_key:
        lines.append(f"  Everyone who can reach {cfg.host} can use it: there is no --api_key.")
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main, Config)
