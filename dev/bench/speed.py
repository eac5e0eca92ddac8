"""How fast this device trains and answers, at several depths: tokens a second, MFU, share of the memory's bandwidth.

In: depths. Out: two tables. Random tokens and weights: speed does not depend on what they say.

    python -m dev.bench.speed --depths 4 8 12
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanochat import fp8
from nanochat.attention import windows_by
from nanochat.common import (
    Dist,
    cannot_compile,
    compute_dtype,
    describe_machine,
    peak_memory,
    setup,
    synchronize,
    training_dtype,
)
from nanochat.configurator import launch
from nanochat.dial import matmul_flops, training_bytes
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpus import peak_flops
from nanochat.optim import build_optimizers
from nanochat.stage import largest_that_fits
from nanochat.tokenizer import SPECIAL_TOKENS
from nanochat.trainer import Batch, next_token_loss, train_step


@dataclass(frozen=True)
class Config:
    """How fast this device trains and answers, at several depths."""

    depths: tuple[int, ...] = (4, 8, 12)
    """models to measure"""
    vocab_size: int = 32768
    """tokens of vocabulary"""
    max_seq_len: int = 2048
    """tokens of context"""
    window: int = 512
    """tokens that three of four layers see; 0 for all"""
    fp8: bool = False
    """train in 8 bits"""
    device_batch_size: int = 32
    """rows of a micro-batch; halved until it fits the memory"""
    micro_batches: int = 4
    """of an optimizer step: as few as --depth chooses on one GPU, or fewer"""
    steps: int = 20
    """optimizer steps, of which the median counts; three more go before"""
    batches: tuple[int, ...] = (1, 8, 32, 128)
    """answers at once"""
    answer_tokens: int = 128
    """tokens of each answer; its prompt has as many"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


class Words:
    """The least of a tokenizer that an engine needs, for a vocabulary of any size that stands for nothing."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.special = {name: vocab_size - len(SPECIAL_TOKENS) + k for k, name in enumerate(SPECIAL_TOKENS)}
        self.bos_id = self.special[SPECIAL_TOKENS[0]]

    def decode_bytes(self, ids) -> bytes:
        return b"." * len(list(ids))


def median_step(model: GPT, optimizers: list, rows: int, cfg: Config, dist: Dist) -> tuple[float, float]:
    """Seconds of an optimizer step, and of the first one, which waits for the compiler."""
    torch._dynamo.reset()  # what was compiled before holds memory
    forward = model.compiled()
    idx = torch.randint(cfg.vocab_size, (cfg.micro_batches, rows, cfg.max_seq_len + 1), device=dist.device)
    batches = [Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in idx]
    seconds = []
    for _ in range(cfg.steps + 3):
        synchronize(dist.device)
        start = time.perf_counter()
        train_step(forward, optimizers, batches, next_token_loss, dist, 0.01, 0.5)
        synchronize(dist.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:]), seconds[0]


def rows_to_try(model: GPT, optimizers: list, cfg: Config, device: torch.device) -> int:
    """The most that should fit, by the rule of dial.py: to find out by trying, each number would be compiled for."""
    rows = 2 ** (cfg.device_batch_size.bit_length() - 1)
    if device.type != "cuda":
        return rows
    room, number = 0.8 * torch.cuda.mem_get_info(device)[1], model.compute_dtype.itemsize
    while rows > 1 and training_bytes(model, optimizers, rows, 1, device.type, number) > room:
        rows //= 2
    return rows


def training(model: GPT, cfg: Config, dist: Dist, peak: float) -> str:
    def attempt(rows: int) -> bool:
        nonlocal seconds, first
        if dist.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, first = median_step(model, optimizers, rows, cfg, dist)
        return True

    def clear() -> None:
        model.zero_grad(set_to_none=True)
        if dist.device.type == "cuda":
            torch.cuda.empty_cache()

    seconds = first = 0.0
    optimizers = build_optimizers(model, dist)
    rows = largest_that_fits(rows_to_try(model, optimizers, cfg, dist.device), attempt, clear)
    speed = cfg.micro_batches * rows * cfg.max_seq_len / seconds
    flops, published = speed * model.flops_per_token(), peak_flops(dist.device)
    mfu = f"{flops / published:.1%}" if published else "-"
    memory = peak_memory(dist.device) / 2**30
    return f"{rows:>6}{1e3 * seconds:>11.1f}{speed:>13,.0f}{flops / peak:>9.1%}{mfu:>14}{memory:>8.1f}{first:>14.1f}"


def answering(model: GPT, count: int, cfg: Config, dist: Dist, bandwidth: float) -> str:
    """Different prompts, answers of one length, all at once. Reading the prompts is timed apart and taken off."""
    length = cfg.answer_tokens
    engine = Engine(model, Words(cfg.vocab_size), max_batch=count, max_context=min(cfg.max_seq_len, 4 * length))
    prompts = torch.randint(cfg.vocab_size - len(SPECIAL_TOKENS), (2, count, length)).tolist()

    def run(prompts: list, tokens: int) -> float:
        start = time.perf_counter()
        sampling = Sampling(max_tokens=tokens, temperature=0.0, logit_bias=dict.fromkeys(stop, -100.0), tools=False)
        engine.generate(prompts, sampling)
        synchronize(dist.device)
        return time.perf_counter() - start

    stop = list(engine.tokenizer.special.values())
    run(prompts[0], 4)
    read = run(prompts[1], 1)
    seconds = run([[*p[:1], *q[1:]] for p, q in zip(*prompts)], length) - read
    width = torch.finfo(compute_dtype(dist.device)).bits // 8
    weights = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    speed = count * (length - 1) / seconds
    share = weights * width * (length - 1) / seconds / bandwidth
    return f"{count:>6}{read:>12.2f}{speed:>14,.0f}{share:>12.1%}"


def tried(measurement: Callable[..., str], *arguments) -> str:
    """A line of a table. One that fails says why, and the others are measured all the same."""
    try:
        return measurement(*arguments)
    except (Exception, SystemExit) as error:
        return f"  {type(error).__name__}: {str(error).strip()[:200]!r}"


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that this device reads: half of what a copy moves, times two."""
    a = torch.zeros(64 << 20 if device.type == "cpu" else 256 << 20, dtype=torch.float32, device=device)
    b, best = torch.empty_like(a), 0.0
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        b.copy_(a)
        synchronize(device)
        best = max(best, 2 * a.nbytes / (time.perf_counter() - start))
    return best


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        peak, bandwidth = matmul_flops(dist.device, training_dtype(dist.device)), copy_bandwidth(dist.device)
        machine = describe_machine(dist.device)
        print(f"{machine['device']} ({machine['processor']}), torch {machine['torch']}, commit {machine['commit']}")
        print(f"matrix products {peak / 1e12:.2f} TFLOP/s, copying {bandwidth / 1e9:.0f} GB/s, both measured now")
        if dist.device.type == "cuda" and cannot_compile():
            print(cannot_compile())
        window = cfg.window if dist.device.type == "cuda" else 0
        print(f"windows of {window} tokens by {windows_by(dist.device)}" if window else "no windows")
        for depth in cfg.depths:
            model = GPT(GPTConfig.from_depth(depth, cfg.vocab_size, cfg.max_seq_len, window)).to(dist.device)
            if cfg.fp8:
                fp8.require(dist.device)
                model.use_fp8()
            model.init_weights(torch.Generator(dist.device).manual_seed(0))
            model.compute_dtype = training_dtype(dist.device)
            heads = f"{'rows':>6}{'ms a step':>11}{'tokens/s':>13}{'of peak':>9}{'of published':>14}{'GiB':>8}"
            print(f"\ndepth {depth}\n  training{heads}{'first step, s':>14}")
            print(f"          {tried(training, model, cfg, dist, peak)}", flush=True)
            model.compute_dtype = compute_dtype(dist.device)
            print(f"  answers {'at once':>6}{'prompts, s':>11}{'tokens/s':>14}{'bandwidth':>12}")
            for count in cfg.batches:
                print(f"          {tried(answering, model, count, cfg, dist, bandwidth)}", flush=True)


if __name__ == "__main__":
    launch(main, Config)
