"""What --depth decides is shown, and the rehearsal does everything and keeps nothing."""

import copy
import math

import pytest
import torch

from nanochat.common import Dist
from nanochat.dial import matmul_flops, rehearse, show_dial, training_bytes
from nanochat.optim import build_optimizers, families, horizon
from nanochat.trainer import Batch
from scripts.base_train import Config, horizon_rule


def test_the_horizon_follows_the_flag_that_is_given(tiny_model):
    tokens, _ = horizon(tiny_model, ratio=3.0)
    assert tokens == pytest.approx(horizon(tiny_model, ratio=12.0)[0] / 4, rel=1e-6)
    tokens, batch = horizon(tiny_model, flops=1e12)
    assert tokens * tiny_model.flops_per_token() == pytest.approx(1e12, rel=1e-4)
    assert math.log2(batch).is_integer() and horizon(tiny_model, flops=1.0)[0] == 1


def test_two_ways_to_say_how_long_contradict_each_other():
    assert horizon_rule(Config(num_iterations=3)) == "--num_iterations"
    assert "12" in horizon_rule(Config())
    with pytest.raises(SystemExit, match="--minutes and --target_flops"):
        horizon_rule(Config(minutes=1.0, target_flops=1e12))


def test_the_table_names_every_family_and_every_figure(tiny_model, capsys):
    optimizers = build_optimizers(tiny_model)
    options = {"batch_tokens": 2048, "device_rows": 8, "dist": Dist(), "horizon_rule": "a rule"}
    show_dial(tiny_model, optimizers, num_iterations=7, minutes=None, **options)
    text = " ".join(capsys.readouterr().err.split())
    for word in (*families(tiny_model), "14,336", "a rule", "GFLOP/s", "GiB", "Muon, rate 0.03", "about 0:00"):
        assert word in text
    show_dial(tiny_model, optimizers, num_iterations=None, minutes=2.0, **options)
    assert "about 2:00" in capsys.readouterr().err
    show_dial(tiny_model, optimizers, num_iterations=7, minutes=None, **options | {"dist": Dist(rank=1, world_size=2)})
    assert capsys.readouterr().err == ""


def test_memory_grows_with_the_rows_and_is_shared_among_ranks(tiny_model):
    optimizers = build_optimizers(tiny_model)
    one, more = (training_bytes(tiny_model, optimizers, rows, 1, "cpu", 4) for rows in (1, 64))
    assert one < more and training_bytes(tiny_model, optimizers, 1, 4, "cpu", 4) < one
    assert matmul_flops(torch.device("cpu"), torch.float32) > 1e8


def test_a_rehearsal_does_everything_and_keeps_nothing(tiny_model, tiny_tokenizer, base_dir, capsys):
    idx = torch.randint(tiny_tokenizer.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    seen = []
    model = copy.deepcopy(tiny_model)
    rehearse(
        model,
        build_optimizers(model),
        [[Batch(idx[:, :-1], idx[:, 1:])]] * 3,
        lambda model, last: seen.append(model.training) or {"val_bpb": 1.5},
        tiny_tokenizer,
        stage="base",
        settings={},
        num_iterations=100,
        dist=Dist(),
    )
    text = capsys.readouterr().out
    for word in ("first step", "val_bpb 1.5000", "an answer", "checkpoint", "MB", "100 steps", "--dry_run"):
        assert word in text
    assert seen == [False] and not list(base_dir.rglob("*"))
