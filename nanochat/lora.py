"""Low-rank fine-tuning: the model stays as it is, and each matrix W gets a small product added, W + B A.

In: a model and a rank. Out: one optimizer, in the place of all others, that trains A and B only; and the model with the
products merged in, which is an ordinary one. Hu et al., 2021, https://arxiv.org/abs/2106.09685.
"""

import math

import torch
import torch.nn as nn
from torch.nn.utils import parametrize

from nanochat.adamw import AdamW
from nanochat.common import Dist
from nanochat.gpt import GPT
from nanochat.optim import families

RATE = 0.08  # of AdamW, divided by the root of the rank


class LowRank(nn.Module):
    """W (..., n) -> W + B A in W's type, with A (rank, n) drawn at random and B zero, so that training starts at W."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.numel() // weight.shape[-1], weight.shape[-1]
        a = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight + (self.b @ self.a).view_as(weight)).to(weight.dtype)


class LowRankAdamW(AdamW):
    """Freezes `model`, keeping its matrices in `dtype`, adds products to those of the blocks, the head and the token
    embedding, and trains the products. What a stage saves is merged, so the state has the matrices beneath, too."""

    def __init__(
        self, model: GPT, rank: int, dtype: torch.dtype, dist: Dist = Dist(), lr_scale: float = 1.0, seed: int = 0
    ):
        found = families(model)
        names = [name for family in ("matrices", "head", "embedding") for name in found[family]]
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(dtype)
        self.low_rank: dict[str, LowRank] = {}
        self.beneath: dict[str, torch.Tensor] = {}
        for name in names:
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            weight = getattr(module, attribute)
            self.beneath[name] = weight
            self.low_rank[name] = LowRank(weight, rank, generator)
            parametrize.register_parametrization(module, attribute, self.low_rank[name])
        params = {f"{name}.{side}": p for name, low in self.low_rank.items() for side, p in low.named_parameters()}
        super().__init__(params, lr=RATE * lr_scale / math.sqrt(rank), betas=(0.9, 0.95), dist=dist)

    def state_dict(self) -> dict[str, torch.Tensor]:
        sides = {f"lora.{name}": p.detach().clone() for name, p in self.params.items()}
        return super().state_dict() | sides | {f"lora.{n}.beneath": w.clone() for n, w in self.beneath.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(tensors)
        for name, parameter in self.params.items():
            parameter.copy_(tensors[f"lora.{name}"])
        for name, weight in self.beneath.items():
            weight.copy_(tensors[f"lora.{name}.beneath"])


@torch.no_grad()
def merged(model: GPT) -> GPT:
    """An ordinary model that computes the same, the products added to the matrices; the other weights are shared.
    `model` itself if it has no products."""
    if not any(map(parametrize.is_parametrized, model.modules())):
        return model
    with torch.device("meta"):  # shapes without memory
        plain = GPT(model.config)
    weights = {}
    for name in plain.state_dict():
        owner, _, attribute = name.rpartition(".")
        weights[name] = getattr(model.get_submodule(owner), attribute).detach()
    plain.load_state_dict(weights, assign=True)
    plain.compute_dtype = model.compute_dtype
    return plain.train(model.training)
