"""What --depth decides is shown, and the rehearsal does everything and keeps nothing."""

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from pretend_gpu import GPU, gpu
from serving import byte_tokenizer

from nanochat import checkpoint_manager, dataset
from nanochat.common import Dist
from nanochat.dial import flops_in, matmul_flops, rehearse, require_memory, show_dial, training_bytes
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizers, decay_for, families, horizon
from nanochat.runlog import open_log
from nanochat.stage import device_rows, largest_that_fits
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import Batch, State
from scripts import base_train
from scripts.base_train import Config, horizon_rule
from scripts.plan import DEEPEST, plan, sizes_for
from scripts.plan import Config as PlanConfig


def test_the_horizon_follows_the_flag_that_is_given(tiny_model):
    tokens, _ = horizon(tiny_model, ratio=3.0)
    assert tokens == pytest.approx(horizon(tiny_model, ratio=12.0)[0] / 4, rel=1e-6)
    tokens, batch = horizon(tiny_model, flops=1e12)
    assert tokens * tiny_model.flops_per_token() == pytest.approx(1e12, rel=1e-4)
    assert math.log2(batch).is_integer() and horizon(tiny_model, flops=1.0)[0] == 1


WAYS = [
    ({}, lambda model: horizon(model)[0] / 12800),
    ({"target_param_data_ratio": 3.0}, lambda model: horizon(model)[0] / 4 / 12800),
    ({"target_flops": 1e11}, lambda model: 1e11 / model.flops_per_token() / 12800),
    ({"num_iterations": 7}, lambda model: 7),
    ({"minutes": 1.0}, None),
]


@pytest.mark.parametrize(("flags", "steps"), WAYS, ids=[str(list(flags)) for flags, _ in WAYS])
def test_every_way_to_say_how_long_reaches_the_run(flags, steps, base_dir, tiny_tokenizer, monkeypatch, capsys):
    tiny_tokenizer.save(base_dir / "tokenizer" / "tokenizer.json")
    dataset.prepare("mine", [(f"key {n}", f"The grass of meadow {n} is green.") for n in range(200)], "a test", "1")
    runs: list = []
    monkeypatch.setattr(base_train, "train", lambda cfg, **run: runs.append((cfg, run)))
    base_train.main(Config(device="cpu", data="mine", depth=1, max_seq_len=64, total_batch_size=12800, **flags))
    ((cfg, run),) = runs
    assert run["num_iterations"] == (steps and max(1, round(steps(run["model"]))))
    assert cfg.minutes == flags.get("minutes") and "--depth=1" in capsys.readouterr().err


def test_a_model_that_the_machine_has_no_memory_for_is_refused(monkeypatch):
    require_memory(GPTConfig.from_depth(4, 4096, 256), Dist())
    with pytest.raises(SystemExit, match=r"--depth=200 needs [\d,]+ GiB .* has \d+\. Choose a smaller"):
        require_memory(GPTConfig.from_depth(200, 4096, 256), Dist())


def test_ranks_on_one_machine_share_its_memory(monkeypatch):
    config = GPTConfig.from_depth(4, 4096, 256)
    with torch.device("meta"):
        weights = sum(p.numel() for p in GPT(config).parameters())
    monkeypatch.setattr("nanochat.dial.describe_machine", lambda device: {"memory_gib": 30 * weights / 2**30})
    require_memory(config, Dist(local_world_size=2, world_size=2))
    require_memory(config, Dist(world_size=8))  # each on a machine of its own
    with pytest.raises(SystemExit, match="--depth=4 needs .* in 4 processes"):
        require_memory(config, Dist(local_world_size=4, world_size=4))


def test_a_run_is_not_resumed_in_another_shape_or_with_another_tokenizer(base_dir, tiny_model, tiny_tokenizer):
    folder, c = checkpoint_manager.folder_of("base", "mine"), tiny_model.config
    checkpoint_manager.save(folder, tiny_model, tiny_tokenizer, stage="base", state=State(step=1), settings={})

    def resume(depth: int, max_seq_len: int, tokenizer: Tokenizer) -> str:
        tokenizer.save(base_dir / "tokenizer" / "tokenizer.json")
        with pytest.raises(SystemExit) as refused:
            base_train.main(Config(device="cpu", model_tag="mine", resume=True, depth=depth, max_seq_len=max_seq_len))
        return str(refused.value)

    shape = f"was trained with --depth={c.n_layer} and --max_seq_len={c.sequence_len}. Go on with that"
    assert shape in resume(c.n_layer + 1, c.sequence_len + 1, tiny_tokenizer)
    assert "another tokenizer" in resume(c.n_layer, c.sequence_len, byte_tokenizer())
    assert "no complete dataset" in resume(c.n_layer, c.sequence_len, tiny_tokenizer)  # so these were all taken


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
    for word in (*families(tiny_model), "14,336", "a rule", "GFLOP/s", "GiB", "Muon, rate 0.03", "about 0:"):
        assert word in text
    show_dial(tiny_model, optimizers, num_iterations=None, minutes=2.0, **options)
    assert "about 2:00" in capsys.readouterr().err
    show_dial(tiny_model, optimizers, num_iterations=7, minutes=None, **options | {"dist": Dist(rank=1, world_size=2)})
    assert capsys.readouterr().err == ""


def test_only_what_reads_its_text_again_decays_the_tables(tiny_model):
    assert [decay_for(passes, 5) for passes in (0.1, 1.0, 2.0, 3.0, 40.0)] == pytest.approx([0, 0, 0.018, 0.072, 0.1])
    assert decay_for(2.0, 0.05) < 0.001  # a large text is not learned by heart
    decays = lambda optimizers: [optimizer.weight_decay for optimizer in optimizers]  # noqa: E731
    none, some = decays(build_optimizers(tiny_model)), decays(build_optimizers(tiny_model, table_decay=0.01))
    changed = [name for name, a, b in zip(families(tiny_model), none, some) if a != b]
    assert changed == ["head", "embedding", "value embeddings"]


def test_memory_grows_with_the_rows_and_is_shared_among_ranks(tiny_model):
    optimizers = build_optimizers(tiny_model)
    one, more = (training_bytes(tiny_model, optimizers, rows, 1, "cpu", 4) for rows in (1, 64))
    assert one < more and training_bytes(tiny_model, optimizers, 1, 4, "cpu", 4) < one
    assert matmul_flops(torch.device("cpu"), torch.float32) > 1e8
    assert matmul_flops(torch.device("cpu"), torch.float32) == matmul_flops(torch.device("cpu"), torch.float32)


def test_a_rehearsal_does_everything_and_keeps_nothing(tiny_model, tiny_tokenizer, base_dir, capsys):
    idx = torch.randint(tiny_tokenizer.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    seen = []
    model = copy.deepcopy(tiny_model)
    rehearse(
        model,
        build_optimizers(model),
        [[Batch(idx[:, :-1], idx[:, 1:])] * 2],
        lambda model, last: seen.append(model.training) or {"val_bpb": 1.5},
        tiny_tokenizer,
        stage="base",
        settings={},
        num_iterations=100,
        dist=Dist(),
    )
    text = capsys.readouterr().out
    for word in (
        "first step",
        "val_bpb 1.5000",
        "an answer",
        "checkpoint",
        "MB",
        "100 steps of 2 micro-batches",
        "--dry_run",
    ):
        assert word in text
    assert seen == [False] and not list(base_dir.rglob("*"))


def test_more_minutes_are_more_flops_and_a_larger_step(tiny_model):
    short, long = (flops_in(minutes, tiny_model, Dist()) for minutes in (1.0, 1000.0))
    assert long > 100 * short
    assert horizon(tiny_model, flops=long)[1] > horizon(tiny_model, flops=short)[1]


def test_the_step_grows_as_it_was_measured(tiny_model):
    at = lambda tokens: horizon(tiny_model, flops=tokens * tiny_model.flops_per_token())[1]  # noqa: E731
    assert at(524288) == 1024 and at(2_400_000) == at(4_400_000) == 4096  # ours: 1,381 at 524,288 tokens
    assert at(0.5e9) == 2**18 and at(0.5e9 * 2 ** (1 / 0.383)) == 2**19  # as published


def test_the_quickstart_takes_a_larger_model_where_a_smaller_one_would_read_the_text_too_often():
    # 2, 3, 4 and 10 minutes of pretraining on two cores; what was best there: dev/LOG.md
    assert [sizes_for(minutes * 60 * 160e9)[0] for minutes in (2.2, 3, 3.7, 10)] == [2, 3, 3, 4]
    assert sizes_for(3.5e13) == (3, 4096)
    depths, batches = zip(*(sizes_for(flops) for flops in (1e12, 2e13, 5e13, 1e17)))
    assert depths == tuple(sorted(depths)) and depths[0] == 2 and depths[-1] == DEEPEST
    assert batches == tuple(sorted(batches))
    assert sizes_for(1e12, 7)[0] == 7
    sizes = [plan(PlanConfig(minutes=minutes), "cpu") for minutes in (3, 12, 12, 60)]
    assert sizes[1] == sizes[2] and int(sizes[0]["DEPTH"]) <= int(sizes[1]["DEPTH"]) <= int(sizes[3]["DEPTH"])
    minutes = [float(sizes[1][f"{stage}_MINUTES"]) for stage in ("BASE", "MID", "SFT")]
    assert 0.7 * 12 < sum(minutes) < 12


def test_the_most_rows_that_fit_are_found():
    tried, cleared = [], []

    def attempt(rows):
        tried.append(rows)
        if rows > 16:
            raise torch.OutOfMemoryError("too much")
        return rows <= 8  # it ran, but left too little room

    assert largest_that_fits(64, attempt, lambda: cleared.append(1)) == 8
    assert tried == [64, 32, 16, 8] and len(cleared) == 4
    with pytest.raises(SystemExit, match="Not even one row"):
        largest_that_fits(4, lambda rows: False, lambda: None)
    assert [device_rows(Config(), None, T, 64, Dist()) for T in (128, 256, 2048, 4096)] == [16, 8, 1, 1]
    assert device_rows(Config(device_batch_size=3), None, 128, 64, Dist()) == 3


def test_rows_are_tried_on_top_of_the_gradients_of_the_micro_batch_before(tiny_model):
    with gpu():
        model, there = copy.deepcopy(tiny_model).to(GPU), []
        model.register_forward_pre_hook(lambda *_: there.append(model.head.weight.grad is not None))
        assert device_rows(Config(), model, 16, 6, Dist(device=GPU)) == 4
    assert there == [False, True] and model.head.weight.grad is None


def test_wandb_gets_the_numbers_and_is_missed_with_a_sentence(monkeypatch, tmp_path, base_dir):
    log = open_log(Config(), "base", "d2", 0, Dist())
    log.log(1, loss=2.0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"nanochat\[wandb\].*base-d2.jsonl"):
        open_log(Config(run="first try"), "base", "d2", 1, Dist())
    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    seen = []
    run = SimpleNamespace(log=lambda numbers, step: seen.append((step, numbers)))
    wandb = SimpleNamespace(init=lambda **options: seen.append(options) or run, __spec__=True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = open_log(Config(run="first try"), "base", "d2", 1, Dist())
    log.log(2, loss=1.5, samples=[["text"]])
    assert seen[0]["name"] == "first try base-d2" and seen[0]["id"] == "first-try-base-d2" and seen[0]["resume"]
    assert seen[1:] == [(2, {"loss": 1.5})] and [row["step"] for row in log.read(log.path)] == [1, 2]
