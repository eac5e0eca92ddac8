"""Every parameter has one optimizer; schedules go where they say."""

import pytest
import torch

from nanochat.adamw import AdamW
from nanochat.common import Dist
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizers, horizon, linear, warmup_flat_warmdown


def test_every_parameter_is_moved_by_exactly_one_optimizer():
    model = GPT(GPTConfig.from_depth(2, 64, 16)).init_weights(torch.Generator().manual_seed(0))
    names = [name for optimizer in build_optimizers(model) for name in optimizer.params]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_schedules():
    schedule = warmup_flat_warmdown(warmup=0.1, warmdown=0.5, final=0.2)
    assert schedule(0.0) > 0 and schedule(0.05) == pytest.approx(0.5) and schedule(0.3) == 1
    assert schedule(0.75) == pytest.approx(0.6) and schedule(1.0) == pytest.approx(0.2)
    assert [linear(1.0, 0.5)(p) for p in (0, 0.5, 1)] == [1.0, 0.75, 0.5]


def test_every_depth_from_1_to_32_is_sensible():
    """Heads fit; weights, tokens and FLOPs grow with the depth; a step is a power of two and small beside the run."""
    with torch.device("meta"):
        models = [GPT(GPTConfig.from_depth(depth, 32768, 2048, window=512)) for depth in range(1, 33)]
    sizes = [(sum(p.numel() for p in m.parameters()), *horizon(m), m.flops_per_token()) for m in models]
    assert all(all(a < b for a, b in zip(before, after) if a != before[2]) for before, after in zip(sizes, sizes[1:]))
    for model, (_, tokens, batch, _) in zip(models, sizes):
        assert model.config.n_embd // model.config.n_head in (64, 128) and batch & (batch - 1) == 0
        assert 100 < tokens / batch < 30_000
    batches = [batch for _, _, batch, _ in sizes]
    assert batches == sorted(batches)


def test_every_rank_keeps_its_share_of_the_state():
    """ZeRO-2: also of what does not divide among the ranks."""
    model = GPT(GPTConfig.from_depth(3, 61, 16))

    def kept(dist: Dist) -> list[int]:
        return [
            sum(b.numel() for b in [*o.mean.values(), *o.square.values()]) if isinstance(o, AdamW)
            else sum(group.momentum.numel() for group in o.groups)
            for o in build_optimizers(model, dist)
        ]  # fmt: skip

    whole, share = kept(Dist()), kept(Dist(rank=3, world_size=4))
    assert all(a <= 4 * b for a, b in zip(whole, share)) and sum(share) < 0.35 * sum(whole)
