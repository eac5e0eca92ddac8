"""Which optimizer moves which parameter, how fast, and how the rates change over a run.

In: a model, the size of a step in tokens. Out: optimizers with their peak rates; schedules, which are functions of
progress in [0, 1] to a multiplier of those rates.
"""

import math
from collections.abc import Callable

import torch

from nanochat.adamw import AdamW
from nanochat.common import Dist
from nanochat.gpt import GPT
from nanochat.muon import Muon

Schedule = Callable[[float], float]


def families(model: GPT) -> dict[str, dict[str, torch.nn.Parameter]]:
    """The parameters by what they are, each in exactly one family."""
    named = dict(model.named_parameters())
    found = {
        "matrices": {n: p for n, p in named.items() if n.startswith("blocks.") and "value_gate" not in n},
        "head": {n: p for n, p in named.items() if n == "head.weight"},
        "embedding": {n: p for n, p in named.items() if n == "embedding.weight"},
        "value embeddings": {n: p for n, p in named.items() if n.startswith("value_embeddings.")},
        "scalars": {n: p for n, p in named.items() if n.endswith("_scale")},
        "gates": {n: p for n, p in named.items() if "gate" in n},
    }
    assert sum(map(len, found.values())) == len(named)
    return found


def build_optimizers(
    model: GPT, dist: Dist = Dist(), lr_scale: float = 1.0, table_decay: float = 0.0
) -> list[Muon | AdamW]:
    """One for each family, in that order: Muon for the matrices of the blocks, AdamW for the rest. `table_decay` is
    the weight decay of the embeddings and the head."""
    matrices, head, embedding, values, scalars, gates = families(model).values()
    # Tuned at 128 to 256 channels and 2^11 tokens a step (dev/LOG.md); flat within a factor of two. The first four are
    # about those of Karpathy's nanochat at 768 channels and 2^19 tokens, so neither size scales them.
    return [
        Muon(matrices, lr=0.03 * lr_scale, weight_decay=0.05, dist=dist),
        AdamW(head, lr=0.008 * lr_scale, betas=(0.8, 0.96), weight_decay=table_decay, dist=dist),
        AdamW(embedding, lr=0.3 * lr_scale, betas=(0.8, 0.99), weight_decay=table_decay, dist=dist),
        AdamW(values, lr=0.15 * lr_scale, betas=(0.8, 0.99), weight_decay=table_decay, dist=dist),
        AdamW(scalars, lr=0.03 * lr_scale, betas=(0.9, 0.95), dist=dist),
        AdamW(gates, lr=0.02 * lr_scale, betas=(0.8, 0.95), dist=dist),
    ]


def decay_for(passes: float, weights_a_token: float) -> float:
    """`table_decay` of a run that goes through its text so often with so many weights for each of its tokens. What is
    read again, the tables learn by heart, the sooner the larger they are. With 5.5 weights a token (depth 4 on the
    embedded corpus) 0.1 saved 0.070 bits per byte in 3.3 passes (0.03 saved 0.055); with 1.5 (depth 2)
    0.1 was too much in three; in 1.8 passes 0.05 saved none (dev/LOG.md)."""
    return min(0.1, 0.0036 * weights_a_token * max(0.0, passes - 1) ** 2)


def warmup_flat_warmdown(warmup: float = 0.02, warmdown: float = 0.65, final: float = 0.05) -> Schedule:
    """Up over the first part, flat, then straight down to `final` over the last part; all parts are fractions."""

    def schedule(progress: float) -> float:
        rising = progress / warmup if progress < warmup else 1.0
        falling = final + (1 - final) * (1 - progress) / warmdown if progress > 1 - warmdown else 1.0
        return min(max(rising, 0.01), falling)

    return schedule


def linear(start: float = 1.0, final: float = 0.0) -> Schedule:
    """Straight from `start` to `final`."""
    return lambda progress: start + (final - start) * progress


def horizon(model: GPT, ratio: float = 12.0, flops: float | None = None) -> tuple[int, int]:
    """How long to pretrain: (tokens in all, tokens of an optimizer step), from the size of the model.

    `ratio` tokens for each weight that multiplies (the lookup tables do not), or what `flops` pay for. The batch is a
    power of two: 2^18 tokens at 0.5 B tokens, growing from there with their number to the power 0.383, all as published
    for Karpathy's nanochat, 2026. Shorter runs are on the line from there to what dev/scaling.py found best at
    depth 2, 1,381 at 0.52 M tokens, and are rounded down: 4,096 was best in runs of 2.4 M, where 8,192 cost 0.03 bits
    per byte.
    """
    matrices = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    tokens = max(1, round(flops / model.flops_per_token() if flops else ratio * matrices))
    if tokens > 0.5e9:
        return tokens, 2 ** round(18 + 0.383 * math.log2(tokens / 0.5e9))
    power = math.log(2**18 / 1381) / math.log(0.5e9 / 524288)  # 0.76
    return tokens, 2 ** max(0, math.floor(18 + power * math.log2(tokens / 0.5e9)))
