"""Bits per byte: how well a model compresses text, comparable between models whatever their tokenizers.

In: a model and batches of text. Out: one number, or the mean loss a token where there are masks.
"""

import math
from collections.abc import Iterable

import torch

from nanochat.common import Dist
from nanochat.trainer import Batch


@torch.no_grad()
def evaluate_bpb(
    model, batches: Iterable[list[Batch]], token_bytes: torch.Tensor, dist: Dist = Dist(), max_tokens: float = math.inf
) -> float:
    """Bits for each byte of text: the summed nats over ln 2, divided by the bytes that the targets stand for.

    token_bytes (V,) is 0 for special tokens: they are no text, so neither their nats nor their bytes count.
    Stops after max_tokens of all ranks. NaN if the batches hold no text.
    """
    seen = 0
    nats = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.float64)
    for batch in (batch for step in batches for batch in step):
        lengths = torch.where(batch.targets >= 0, token_bytes[batch.targets.clamp(min=0)], 0)
        losses = model(batch.inputs, targets=batch.targets, reduction="none")
        seen += dist.world_size * batch.inputs.numel()
        lengths = lengths.cpu()
        nats += (losses.cpu().double() * (lengths > 0)).sum()  # Apple's GPUs have no float64
        count += lengths.sum()
        if seen >= max_tokens:
            break
    nats, count = dist.all_reduce(torch.stack((nats, count))).tolist()
    return nats / math.log(2) / count if count else float("nan")


@torch.no_grad()
def evaluate_loss(model, batches: Iterable[list[Batch]], dist: Dist = Dist()) -> float:
    """Mean nats over the valid targets. NaN if there are none."""
    nats = torch.zeros((), device=dist.device)
    count = torch.zeros((), device=dist.device)
    for batch in (batch for step in batches for batch in step):
        nats += model(batch.inputs, targets=batch.targets)
        count += (batch.targets >= 0).sum()
    nats, count = dist.all_reduce(torch.stack((nats, count))).tolist()
    return nats / count if count else float("nan")
