"""The experiments of dev/: the fits find what was put in, and every variant of the model still is one."""

import re
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dev.ablations import VARIANTS, noise, table
from dev.bench import train_cpu
from dev.scaling import best_batches, envelope, jackknife, power_law
from nanochat import gpt, optim
from nanochat.common import Dist
from nanochat.stage import in_words
from nanochat.trainer import Batch, next_token_loss, train_step


def test_the_benchmark_of_training_reads_what_training_says():
    assert re.search(train_cpu.LINES, f"Pretraining: step 9, {in_words({'val_bpb': 1.5})}")[2] == "1.5000"


def test_a_power_law_is_found():
    x = np.geomspace(1e12, 1e14, 6)
    E, A, a = power_law(x, 1.2 + 300 * x**-0.2)
    assert (E, A, a) == pytest.approx((1.2, 300, 0.2), rel=0.02)
    assert all(fit == pytest.approx((1.2, 300, 0.2), rel=0.1) for fit in jackknife(x, 1.2 + 300 * x**-0.2))


def test_the_best_run_of_each_amount_of_compute_and_the_best_step():
    runs = [{"flops": f, "bpb": b, "depth": d} for f, b, d in ((1e12, 2.0, 2), (1.1e12, 1.9, 3), (2.1e12, 1.7, 2))]
    assert [run["depth"] for run in envelope(runs)] == [3, 2]
    steps = [{"tokens": 9, "batch": 2**k, "bpb": 2 + (k - 10.5) ** 2} for k in range(8, 14)]
    assert best_batches(steps) == [(9, pytest.approx(2**10.5))]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_trains(variant):
    before = dict(vars(gpt))
    with patch.multiple(gpt, **variant.functions) if variant.functions else nullcontext():
        config = variant.config(gpt.GPTConfig(64, 16, n_layer=2, n_head=2, n_kv_head=2, n_embd=32))
        model = gpt.GPT(config).init_weights(torch.Generator().manual_seed(0))
        optimizers = optim.build_optimizers(model)
        variant.change(model, optimizers)
        idx = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(1))
        batch = Batch(idx[:, :-1].contiguous(), idx[:, 1:].contiguous())
        losses = [train_step(model, optimizers, [batch], next_token_loss, Dist(), 1.0, 0.5) for _ in range(8)]
    assert losses[-1] < losses[0] and vars(gpt) == before


def test_the_table_compares_runs_of_the_same_seed():
    runs = [("baseline", 0, 2.0), ("baseline", 1, 2.5), ("gelu", 0, 2.1), ("gelu", 1, 2.7), ("tied", 2, 9.0)]
    about = dict.fromkeys(("depth", "tokens", "batch", "vocabulary", "context", "eval_tokens"), 1)
    about |= {"data": "", "dtype": ""}
    record = {"about": about, "runs": [{"variant": v, "seed": s, "bpb": b} for v, s, b in runs]}
    assert "| GELU instead of ReLU^2 | 2.4000 | +0.1000, +0.2000 |" in table(record) and "9.0" not in table(record)
    assert noise(record) == 0.5
    with pytest.raises(SystemExit, match="add it to --only"):
        table({"about": about, "runs": record["runs"][2:]})
