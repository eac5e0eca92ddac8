"""Every parameter has one optimizer; schedules go where they say."""

import pytest
import torch

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


def test_horizon_grows_with_depth():
    sizes = [horizon(GPT(GPTConfig.from_depth(depth, 512, 16))) for depth in (1, 2, 4)]
    assert sizes == sorted(sizes)
    tokens, batch = sizes[-1]
    assert batch & (batch - 1) == 0 and tokens > batch
