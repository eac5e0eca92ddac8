"""Ranks, progress and metrics: what every module stands on."""

import json
import os
import resource
import sys

import pytest
import torch
from ranks import run_two_ranks

from nanochat import common, gpus
from nanochat.common import Dist, MetricsLog, Progress

CPU = torch.device("cpu")


def test_base_dir_follows_the_environment(base_dir, monkeypatch, tmp_path):
    assert common.base_dir() == base_dir and base_dir.is_dir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert common.base_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    assert common.base_dir() == tmp_path / ".cache" / "nanochat"


def test_pick_device():
    assert common.pick_device("cpu") == CPU
    assert common.pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA GPU"):
            common.pick_device("cuda")
    with pytest.raises(SystemExit, match="--device=gpu"):
        common.pick_device("gpu")


def test_facts_of_the_machine_are_json():
    machine = common.describe_machine(CPU)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] == os.cpu_count() and machine["torch"] == torch.__version__
    assert gpus.peak_flops(CPU) is None and common.peak_memory(CPU) > 50 * 2**20
    assert common.compute_dtype(CPU) == torch.float32


@pytest.mark.parametrize(
    "facts, dtype",
    [
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),  # as fast as fp32 or slower
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"architecture": "arm64"}, torch.float32),
    ],
)
def test_a_cpu_trains_in_what_it_multiplies_fast(monkeypatch, facts, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)
    assert common.training_dtype(CPU) == dtype and common.compute_dtype(CPU) == torch.float32
    assert common.training_dtype(CPU, "float32") == torch.float32
    assert common.training_dtype(CPU, "bfloat16") == torch.bfloat16


def test_more_specific_names_of_gpus_come_first():
    for gpu in gpus.GPUS:
        assert gpus.gpu_called(f"NVIDIA {gpu.name}") is gpu, f"{gpu.name} would be taken for another"
    for device, name in (("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("NVIDIA A100-SXM4-80GB", "A100"), ("Tesla T4", "T4")):
        assert gpus.gpu_called(device).name == name
    assert (
        gpus.gpu_called("NVIDIA TITAN V") is None and gpus.price_an_hour({"device": "NVIDIA GeForce RTX 4080"}) is None
    )
    assert gpus.price_an_hour({"device": "NVIDIA H100 80GB HBM3", "ranks": 8})[0] == 24


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (65.2, "1:05"), (59.9, "1:00"), (3600, "1:00:00"), (3700, "1:01:40"), (-3, "0:00")]
)
def test_format_seconds(seconds, text):
    assert common.format_seconds(seconds) == text


def test_alone_the_collectives_do_nothing():
    with common.setup("cpu") as dist:
        assert dist == Dist() and dist.is_main
        tensor = torch.arange(4.0)
        for same in (
            dist.all_reduce(tensor),
            dist.reduce_scatter(tensor),
            dist.all_gather(tensor),
        ):
            assert same is tensor
        assert dist.gather_objects({"a": 1}) == [{"a": 1}]
        dist.barrier()


RANK = """
import torch
from nanochat.common import Progress, setup
with setup("cpu") as dist:
    assert (dist.world_size, dist.local_world_size) == (2, 2)
    mine = torch.full((4,), dist.rank + 1.0)
    assert dist.all_reduce(mine.clone()).tolist() == [3.0] * 4
    assert dist.all_reduce(mine.clone(), "max").tolist() == [2.0] * 4
    assert dist.all_reduce(mine.clone(), "min").tolist() == [1.0] * 4
    assert dist.reduce_scatter(torch.arange(4.0)).tolist() == [[0, 2], [4, 6]][dist.rank]
    assert dist.all_gather(mine[:2]).tolist() == [1, 1, 2, 2]
    assert dist.gather_objects({"rank": dist.rank}) == [{"rank": 0}, {"rank": 1}]
    dist.barrier()
    dist.print("from", dist.rank)
    Progress("work", 1, dist=dist).update(1)
assert not torch.distributed.is_initialized()
"""


def test_two_ranks_do_together_what_one_does_alone():
    for rank, (status, out, error) in enumerate(run_two_ranks(RANK)):
        assert status == 0, error
        assert out == ("from 0\n" if rank == 0 else "")
        assert ("work" in error) == (rank == 0)  # the others are silent


def test_progress_in_a_log_file_is_rare_and_says_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    progress = Progress("pretraining", 100, "step", every=10)
    for step in range(1, 101):
        now[0] += 1
        progress.update(step, loss=f"{10 / step:.2f}", bits_per_byte="1.5")
    progress.message("saved")
    *lines, message = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and message == "saved"  # at once, every ten seconds, and at the end
    assert "11/100 step" in lines[1] and "loss 0.91  bits per byte 1.5" in lines[1] and "1:29 left" in lines[1]
    assert "100/100" in lines[-1] and "1:40 taken" in lines[-1]


def test_progress_of_a_resumed_run_counts_only_its_own_steps(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    progress = Progress("pretraining", 100, done=50)
    progress.update(50)
    now[0] = 20.0
    progress.update(60)  # 10 steps in 20 s, so 40 steps take 80 s
    assert "1:20 left" in capsys.readouterr().err.splitlines()[-1]


def test_the_time_left_is_not_that_of_the_first_step_which_compiles(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    progress = Progress("pretraining", 100)
    for now[0], step in ((60.0, 1), (80.0, 11)):  # a minute, then two seconds each
        progress.update(step)
    assert "2:58 left" in capsys.readouterr().err.splitlines()[-1]


def test_a_first_item_does_not_say_when_the_last_will_come(capsys, monkeypatch):
    """Two hundred answers are written at once and handed over one by one: it said "5:11 left", and was done."""
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    progress = Progress("Spelling", 200, "items")
    for now[0], done in ((1.5, 1), (1.6, 200)):
        progress.update(done)
    first, last = capsys.readouterr().err.splitlines()
    assert "1/200 items" in first and "left" not in first and last.endswith("0:02 taken")


def test_a_narrow_terminal_has_room_for_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(common.os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    progress = Progress("Pretraining", 1.0, "%")
    now[0] = 60.0
    progress.update(0.5, step="782", loss="3.562", speed="9,084 tok/s")
    line = capsys.readouterr().err.split("\x1b[K")[-1]
    assert line.endswith("1:00 left") and len(line) < 80 and "━━╌" in line


def test_progress_of_nothing(capsys):
    Progress("downloading", 0).update(0)
    assert "0/0" in capsys.readouterr().err


def test_metrics_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    path = tmp_path / "log.jsonl"
    assert MetricsLog.read(path) == []
    log = MetricsLog(path)
    for step in range(1, 6):
        log.log(step, loss=1 / step)
    whole = path.read_bytes()

    path.write_bytes(whole[:-7])  # killed while it wrote
    assert [row["step"] for row in MetricsLog.read(path)] == [1, 2, 3, 4]
    log = MetricsLog(path, step=3)
    for step in (4, 5):
        log.log(step, loss=1 / step)
    assert path.read_bytes() == whole

    MetricsLog(path, dist=Dist(rank=1, world_size=2)).log(9, loss=0.0)
    assert path.read_bytes() == whole  # only the main rank writes
    MetricsLog(path)
    assert path.read_bytes() == b""  # a run that starts anew


@pytest.mark.parametrize(
    "row", ["[]", "3", "{}", '{"step": "1"}', '{"step": 1.5}', '{"step": 1, "loss": "x"}', "{", "["]
)
def test_metrics_log_names_a_damaged_line(tmp_path, row):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{row}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="log.jsonl, line 2, is damaged .* Mend it or move it away"):
        MetricsLog(path, step=1)
    MetricsLog(path)  # a run that starts anew does not care


def test_a_log_keeps_what_a_full_disk_does_not_take(tmp_path, capsys):
    log = MetricsLog(tmp_path / "log.jsonl")
    log.log(1, loss=0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 5, hard))  # half of a line fits
    try:
        log.log(2, loss=0.25)
        log.log(3, loss=0.125)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("cannot be written now") == 1
    assert [row["step"] for row in MetricsLog.read(log.path)] == [1]
    log.log(4, loss=0.0)
    assert [row["step"] for row in MetricsLog.read(log.path)] == [1, 2, 3, 4]


def test_what_a_gpu_cannot_be_compiled_without_is_named(monkeypatch):
    common.cannot_compile.cache_clear()
    monkeypatch.setenv("CC", "mycc")
    here = common.cannot_compile()
    assert "C compiler" not in here
    common.cannot_compile.cache_clear()
    monkeypatch.delenv("CC")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: None)
    assert "lacks a C compiler and Python's headers" in common.cannot_compile()
    common.cannot_compile.cache_clear()
