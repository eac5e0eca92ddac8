"""Tokens per second of the engine beside the plain loop: one conversation at a time, the cache grown by torch.cat.

python -m dev.bench.engine
python -m dev.bench.engine --depth=12 --vocab_size=32768 --batches 1 32

The weights are random and the same for both; prompts and answers have the same lengths; nothing is reused.
CPU seconds are shown beside wall-clock, since other work on the machine slows one and hardly the other.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from nanochat.common import compute_dtype, pick_device, synchronize
from nanochat.configurator import parse
from nanochat.engine import Delta, Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer


@dataclass(frozen=True)
class Config:
    """Tokens per second of the engine beside the plain loop."""

    depth: int = 4
    """of the model"""
    vocab_size: int = 4096
    """of the model"""
    context: int = 1024
    """tokens of the longest conversation"""
    batches: tuple[int, ...] = (1, 8, 32)
    """conversations at once"""
    prompt: int = 32
    """tokens of a prompt, on average: half to one and a half times as many"""
    answer: int = 64
    """tokens of an answer"""
    repeats: int = 3
    """the best counts"""
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
def plain_loop(model: GPT, prompts: list[list[int]], count: int) -> list[float]:
    """The peer: greedy answers, one after another. Seconds to each first token."""
    device, start, firsts = next(model.parameters()).device, time.perf_counter(), []
    for prompt in prompts:
        cache = GrowingCache(model.config.n_layer, device)
        idx = torch.tensor([prompt], device=device)
        for n in range(count):
            token = int(model(idx, cache=cache)[0, -1].argmax())
            idx = torch.tensor([[token]], device=device)
            if n == 0:
                firsts.append(time.perf_counter() - start)
    return firsts


def engine_loop(engine: Engine, prompts: list[list[int]], count: int) -> list[float]:
    """Ours: all at once. Seconds to each first piece of text."""
    visible = {id: -1e9 for id in range(engine.vocab_size) if id >= 128}  # one character each, and no end
    start, firsts = time.perf_counter(), {}
    for prompt in prompts:
        engine.submit(prompt, Sampling(temperature=0, max_tokens=count, logit_bias=visible))
    while engine.has_work:
        for request, event in engine.step():
            if isinstance(event, Delta):
                firsts.setdefault(request.id, time.perf_counter() - start)
    return list(firsts.values())


def measure(run, prepare, cfg: Config, device: torch.device, tokens: int) -> dict[str, float]:
    best = {}
    for _ in range(cfg.repeats):
        prepare()
        synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        firsts = run()
        synchronize(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        p50, p99 = np.percentile(firsts, [50, 99])
        now = {"rate": tokens / wall, "cpu_rate": tokens / cpu, "p50": p50, "p99": p99}
        best = {k: (max if "rate" in k else min)(v, best.get(k, v)) for k, v in now.items()}
    return best


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
    shown = "tok/s", "per CPU s", "first p50", "p99"
    print(f"d{cfg.depth}, V {cfg.vocab_size}, {device}, {torch.get_num_threads()} threads, answers of {cfg.answer}")
    print(f"{'chats':>5} {'':<10}" + "".join(f"{name:>11}" for name in shown))
    for chats in cfg.batches:
        lengths = torch.randint(cfg.prompt // 2, cfg.prompt * 3 // 2 + 1, (chats,), generator=generator).tolist()
        prompts = [torch.randint(cfg.vocab_size, (n,), generator=generator).tolist() for n in lengths]
        engine = Engine(model, tokenizer, max_batch=chats)
        tokens = chats * cfg.answer
        rows = {
            "plain loop": measure(
                lambda p=prompts: plain_loop(model, p, cfg.answer), lambda: None, cfg, device, tokens
            ),
            "engine": measure(
                lambda e=engine, p=prompts: engine_loop(e, p, cfg.answer), engine.refresh, cfg, device, tokens
            ),
        }
        for name, row in rows.items():
            times = f"{row['p50'] * 1e3:>8,.0f} ms{row['p99'] * 1e3:>8,.0f} ms"
            print(f"{chats:>5} {name:<10}{row['rate']:>11,.0f}{row['cpu_rate']:>11,.0f}{times}")
        ratios = [rows["engine"][k] / rows["plain loop"][k] for k in ("rate", "cpu_rate")]
        print(f"{'':>5} {'ratio':<10}" + "".join(f"{ratio:>10.1f}x" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main(parse(Config))
