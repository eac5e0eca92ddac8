"""Which attention is fastest on this GPU: forward and backward of one layer, by each way that is here.

In: heads and context. Out: a table for layers that see all, and for those with a window. What a way cannot do, it says.

    python -m dev.bench.attention
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.attention import attend, window_blocks, window_kernels
from nanochat.common import compute_dtype, describe_machine, setup, synchronize
from nanochat.configurator import launch


@dataclass(frozen=True)
class Config:
    """Which attention is fastest on this GPU."""

    rows: int = 16
    """of a micro-batch"""
    heads: tuple[int, ...] = (6, 8)
    """of a layer, one for each of head_dims; depth 12 has 6 of 128 channels, depth 8 has 4, smaller ones have 64"""
    head_dims: tuple[int, ...] = (128, 64)
    """channels of a head"""
    max_seq_len: int = 2048
    """tokens of context"""
    window: int = 512
    """tokens that a token sees"""
    repeats: int = 10
    """of a measurement, whose median of five counts"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # q, k, v (B, T, H, D) -> (B, H, T, D)


def full(T: int, scale: float, device: torch.device) -> dict[str, Callable[[], Way]]:
    """The ways for layers that see all, by name. Each is made by a call, whose failure is one line of the table."""
    positions = torch.arange(T, device=device)[None]

    def by_default(q, k, v):
        return attend(q, k, v, positions, scale)

    def only(backend: SDPBackend) -> Way:
        def function(q, k, v):
            with sdpa_kernel(backend):
                return by_default(q, k, v)

        return function

    ways = {"torch's choice": lambda: by_default}
    if device.type == "cuda":
        ways["cuDNN"] = lambda: only(SDPBackend.CUDNN_ATTENTION)
        ways["FlashAttention 2"] = lambda: only(SDPBackend.FLASH_ATTENTION)
    return ways


def narrow(T: int, scale: float, device: torch.device, window: int) -> dict[str, Callable[[], Way]]:
    """The same with a window."""
    positions = torch.arange(T, device=device)[None]

    def by_blocks(kernels: str) -> Way:
        blocks = window_blocks(T, window, device, kernels)
        return lambda q, k, v: attend(q, k, v, positions, scale, window, blocks)

    def flash() -> Way:
        from torch.nn.attention.varlen import varlen_attn

        def function(q, k, v):
            starts = torch.arange(0, T * len(q) + 1, T, dtype=torch.int32, device=device)
            flat = [heads.flatten(0, 1) for heads in (q, k, v)]
            y = varlen_attn(*flat, starts, starts, T, T, scale=scale, window_size=(window - 1, 0))
            return y.unflatten(0, (len(q), T)).transpose(1, 2)

        return function

    ways = {"a mask": lambda: lambda q, k, v: attend(q, k, v, positions, scale, window)}
    if device.type == "cuda":
        ways["FlexAttention on Triton"] = lambda: by_blocks("AUTO")
        if window_kernels(device) == "FLASH":
            ways["FlexAttention on FlashAttention 4"] = lambda: by_blocks("FLASH")
        ways["FlashAttention 2, torch's varlen_attn"] = flash
    return ways


def measure(function: Callable, heads: list[torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Seconds of forward and backward, and what came of them, in one tensor."""
    torch._dynamo.reset()
    device = heads[0].device
    compiled = torch.compile(function, dynamic=False) if device.type == "cuda" else function
    seconds = []
    for turn in range(6):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats if turn else 1):  # the first turn compiles
            y = compiled(*heads)
            grads = torch.autograd.grad(y, heads, torch.ones_like(y))
        synchronize(device)
        seconds.append((time.perf_counter() - start) / repeats)
    return statistics.median(seconds[1:]), torch.cat([x.detach().float().flatten() for x in (y, *grads)])


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        machine = describe_machine(dist.device)
        print(f"{machine['device']} ({machine['processor']}), torch {machine['torch']}, commit {machine['commit']}")
        T, window, dtype = cfg.max_seq_len, cfg.window, compute_dtype(dist.device)
        for H, D in zip(cfg.heads, cfg.head_dims):
            generator = torch.Generator(dist.device).manual_seed(0)
            shape, options = (cfg.rows, T, H, D), {"generator": generator, "device": dist.device, "dtype": dtype}
            heads = [torch.randn(shape, **options).requires_grad_() for _ in range(3)]
            for title, pairs, ways in (
                ("all", T * T / 2, full(T, D**-0.5, dist.device)),
                (f"a window of {window}", T * window - window**2 / 2, narrow(T, D**-0.5, dist.device, window)),
            ):
                print(f"\n{cfg.rows} rows, {H} heads of {D} channels, {T:,} tokens, {title}")
                print(f"{'':<40}{'ms':>8}{'TFLOP/s':>10}{'differs by':>12}")
                first = None
                for name, make in ways.items():
                    try:
                        seconds, result = measure(make(), heads, cfg.repeats)
                    except Exception as error:  # what this GPU or this version of torch lacks
                        print(f"{name:<40}{type(error).__name__}: {str(error).splitlines()[0]:.100}", flush=True)
                        continue
                    first = result if first is None else first
                    flops = 3.5 * 4 * cfg.rows * H * D * pairs  # the backward pass is two and a half forward ones
                    error = ((result - first).norm() / first.norm()).item()
                    print(f"{name:<40}{1e3 * seconds:>8.2f}{flops / seconds / 1e12:>10.1f}{error:>12.4f}", flush=True)


if __name__ == "__main__":
    launch(main, Config)
