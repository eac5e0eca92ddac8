"""The engine beside the plain loop, and the server under load.

python -m dev.bench.serve
python -m dev.bench.serve --depth=12 --vocab_size=32768 --context=1024 --clients --requests=0
python -m dev.bench.serve --answers=0 --clients --requests=10000          memory only

The plain loop is the original's design: one conversation at a time, the cache grown by torch.cat. The weights are
random and the same for both; prompts and answers have the same lengths; nothing is reused. Both run in turns, so that
what else the machine does slows both; the ratio is of the medians, with the least and the most of single turns.
"""

import gc
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn

from nanochat.common import compute_dtype, pick_device, synchronize
from nanochat.configurator import launch
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.server import Settings, create_app
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer


@dataclass(frozen=True)
class Config:
    """The engine beside the plain loop, and the server under load."""

    depth: int = 2
    """of the model"""
    vocab_size: int = 4096
    """of the model"""
    context: int = 256
    """tokens of the longest conversation"""
    chats: tuple[int, ...] = (1, 32)
    """conversations at once, beside the plain loop"""
    prompt: int = 32
    """tokens of a prompt, on average: half to one and a half times as many"""
    answers: int = 64
    """tokens of an answer beside the plain loop; 0: leave that out"""
    repeats: int = 5
    """turns of each"""
    clients: tuple[int, ...] = (1, 8, 32, 64)
    """at once, over HTTP; none: leave that out"""
    requests: int = 10_000
    """over HTTP, to see the memory; 0: leave that out"""
    threads: int = 0
    """of torch; 0: its own choice"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


class GrowingCache:
    """The peer's cache: one conversation, keys and values copied into longer tensors at every step."""

    def __init__(self, layers: int, device: torch.device):
        self.stored: list[tuple] = [()] * layers
        self.pos = torch.zeros(1, dtype=torch.int64, device=device)
        self.prev = torch.full((1,), -1, device=device)

    def update(self, layer, k, v):
        if self.stored[layer]:
            k, v = (torch.cat(pair, dim=1) for pair in zip(self.stored[layer], (k, v)))
        self.stored[layer] = (k, v)
        return k, v

    def advance(self, idx, n):
        self.pos, self.prev = self.pos + n, idx[:, -1]


@torch.inference_mode()
def plain_loop(model: GPT, prompts: list[list[int]], count: int) -> None:
    """The peer: greedy answers, one after another."""
    device = next(model.parameters()).device
    for prompt in prompts:
        cache = GrowingCache(model.config.n_layer, device)
        idx = torch.tensor([prompt], device=device)
        for _ in range(count):
            token = int(model(idx, cache=cache)[0, -1].argmax())
            idx = torch.tensor([[token]], device=device)


def seconds(run, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def beside_the_plain_loop(model: GPT, tokenizer: Tokenizer, cfg: Config, device: torch.device) -> None:
    endless = {id: -1e9 for id in tokenizer.special.values()}  # no answer ends before its length
    greedy = Sampling(temperature=0, max_tokens=cfg.answers, logit_bias=endless)
    drawn = Sampling(temperature=0.8, top_k=50, seed=1, max_tokens=cfg.answers, logit_bias=endless)
    print(f"{'chats':>5} {'':<18}{'tok/s':>9}{'ratio':>8}{'from':>8}{'to':>8}")
    for chats in cfg.chats:
        prompts = random_prompts(chats, cfg)
        engine = Engine(model, tokenizer, max_batch=chats, guess=0)
        kinds = {"engine, greedy": (engine, greedy), "engine, drawn": (engine, drawn)}
        if device.type == "cpu":
            for weights in ("bfloat16", "int8"):
                kinds[f"{weights}, greedy"] = (Engine(model, tokenizer, chats, guess=0, weights=weights), greedy)
            kinds["bfloat16, drawn"] = (kinds["bfloat16, greedy"][0], drawn)
        if chats == 1:
            kinds["guesses, greedy"] = (Engine(model, tokenizer, max_batch=1), greedy)
        times: dict[str, list[float]] = {name: [] for name in ("plain loop", *kinds)}
        for _ in range(cfg.repeats):
            times["plain loop"].append(seconds(lambda p=prompts: plain_loop(model, p, cfg.answers), device))
            for name, (one, sampling) in kinds.items():
                one.refresh()
                times[name].append(seconds(lambda e=one, s=sampling, p=prompts: e.generate(p, s), device))
        for name, taken in times.items():
            ratios = np.divide(times["plain loop"], taken)
            ratio = np.median(times["plain loop"]) / np.median(taken)
            rate = chats * cfg.answers / np.median(taken)
            print(
                f"{chats:>5} {name:<18}{rate:>9,.0f}{ratio:>7.1f}x{min(ratios):>7.1f}x{max(ratios):>7.1f}x", flush=True
            )


def random_prompts(count: int, cfg: Config) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(cfg.prompt // 2, cfg.prompt * 3 // 2 + 1, (count,), generator=generator).tolist()
    return [torch.randint(cfg.vocab_size - 16, (n,), generator=generator).tolist() for n in lengths]


# ---------------------------------------------------------------------------------------------------------------------
# Over HTTP


@contextmanager
def server(engine: Engine, tokenizer: Tokenizer) -> Iterator[str]:
    # With this protocol named, asyncio turns Nagle's algorithm off, which would hold each first token back for 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(engine, tokenizer, Settings(max_queue=1000))
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not app.state.workers.ready:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


def random_server(context: int, max_batch: int):
    """`server` with a small model of random weights and a vocabulary of bytes."""
    tokenizer = Tokenizer(np.zeros((0, 2), np.int32))
    config = GPTConfig(tokenizer.vocab_size, context, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0)).eval()
    return server(Engine(model, tokenizer, max_batch), tokenizer)


def time_to_first_token(url: str, client: httpx.Client, prompt: list[int]) -> float:
    start, first = time.perf_counter(), 0.0
    body = {"prompt": prompt, "max_tokens": 32, "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line and not first:
                first = time.perf_counter() - start
    return first


def under_load(url: str, cfg: Config) -> None:
    print(f"{'clients':>7}{'requests':>10}{'first token p50':>17}{'p99':>12}")
    for count in cfg.clients:
        prompts = random_prompts(max(100, 5 * count), cfg)
        with ThreadPoolExecutor(count) as pool, httpx.Client(timeout=600, limits=httpx.Limits()) as client:
            firsts = list(pool.map(lambda prompt, c=client: time_to_first_token(url, c, prompt), prompts))
        p50, p99 = np.percentile(firsts, [50, 99]) * 1e3
        print(f"{count:>7}{len(prompts):>10}{p50:>14,.1f} ms{p99:>9,.1f} ms", flush=True)


def memory(url: str, cfg: Config) -> None:
    """Resident memory of this process, server and clients, while requests come."""
    body = {"messages": [{"role": "user", "content": "Hello there, how are you?"}], "max_tokens": 4}
    print(f"{'requests':>8}{'MB':>9}")
    with httpx.Client(timeout=60) as client:
        for number in range(cfg.requests + 1):
            if number % max(1, cfg.requests // 10) == 0:
                gc.collect()
                print(f"{number:>8}{resident() / 2**20:>9.1f}", flush=True)
            body["messages"][0]["content"] = f"Hello number {number}, how are you?"
            client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()


def resident() -> int:
    """Bytes; on systems without /proc the most there have been."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(cfg: Config) -> None:
    device = pick_device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig.from_depth(cfg.depth, cfg.vocab_size, cfg.context)).init_weights(generator)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model = model.to(device).eval()
    model.compute_dtype = compute_dtype(device)
    merges = [(n // 256, n % 256) for n in range(cfg.vocab_size - 256 - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer(np.array(merges, np.int32))
    print(f"d{cfg.depth}, V {cfg.vocab_size}, T {cfg.context}, {device}, {torch.get_num_threads()} threads")
    if cfg.answers:
        print(f"Prompts of about {cfg.prompt} tokens, answers of {cfg.answers}, {cfg.repeats} turns")
        beside_the_plain_loop(model, tokenizer, cfg, device)
    if cfg.clients or cfg.requests:
        with server(Engine(model, tokenizer, max_batch=32), tokenizer) as url:
            under_load(url, cfg)
            if cfg.requests:
                memory(url, cfg)


if __name__ == "__main__":
    launch(main, Config)
