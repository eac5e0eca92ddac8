"""Checkpoints against what goes wrong: kill -9, full disks, wrong bits, garbage, clocks that go back, ranks."""

import copy
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import FILES, check_header, check_manifest, headers, lengths, manifests
from ranks import run_two_ranks
from safetensors.torch import save_file

from nanochat import checkpoint_manager as cm
from nanochat import sealed
from nanochat.files import hidden
from nanochat.optim import build_optimizers
from nanochat.trainer import State

GARBAGE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


@pytest.fixture
def folder(base_dir) -> Path:
    return cm.folder_of("base", "d2")


@pytest.fixture
def put(model, tiny_tokenizer, folder):
    """put(step) saves a checkpoint with the optimizers' tensors; put(step, **options) changes what is saved."""

    def put(step, **options):
        tensors = cm.tensors_of(build_optimizers(model))
        options = {"optimizer_tensors": tensors, "settings": {"depth": 2}, **options}
        return cm.save(folder, model, tiny_tokenizer, stage="base", state=State(step, data={"block": 7}), **options)

    return put


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# What goes in comes out


def test_round_trip_gives_back_every_bit(model, tiny_tokenizer, put, folder):
    optimizers = build_optimizers(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step(1.0, 0.5)
    path = put(300, optimizer_tensors=cm.tensors_of(optimizers))
    assert path == folder / "step_000300" and {p.name for p in path.iterdir()} == set(FILES)

    loaded = cm.load("base")
    assert same(model.state_dict(), loaded.model.state_dict())
    assert loaded.state == State(300, data={"block": 7}) and loaded.settings == {"depth": 2}
    assert (loaded.path, loaded.stage, loaded.tag) == (path, "base", "d2")
    assert loaded.tokenizer.hash == tiny_tokenizer.hash and loaded.model.config == model.config
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    fresh = build_optimizers(loaded.model)
    cm.load_optimizers(path, fresh)
    assert same(cm.tensors_of(optimizers), cm.tensors_of(fresh))


def test_dtype_casts_matrices_and_leaves_vectors(put, model):
    put(1)
    loaded = cm.load("base", dtype=torch.bfloat16).model
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim >= 2 else torch.float32), name
    ids = torch.arange(8)[None]
    torch.testing.assert_close(loaded(ids), model(ids), atol=0.5, rtol=0.05)


def test_settings_may_be_a_dataclass_with_paths(put):
    @dataclass(frozen=True)
    class Config:
        depth: int = 2
        data: Path = Path("texts")

    put(1, settings=Config())
    assert cm.load("base").settings == {"depth": 2, "data": "texts"}


def test_without_optimizer_there_is_no_file_and_resuming_says_so(put, model):
    path = put(1, optimizer_tensors=None)
    assert not (path / "optimizer.safetensors").exists()
    with pytest.raises(ValueError, match="does not list optimizer.safetensors"):
        cm.load_optimizers(path, build_optimizers(model))


def test_optimizer_of_another_model_is_refused(put, tiny_config, model):
    path = put(1, optimizer_tensors={"muon.blocks.9.x.momentum": torch.zeros(2)})
    with pytest.raises(ValueError, match="optimizer.safetensors does not fit"):
        cm.load_optimizers(path, build_optimizers(model))


def test_only_cuda_copies_that_are_waited_for_are_not_waited_for_at_once(put, monkeypatch):
    """From Apple's GPU a copy that does not block has arrived only some time later."""
    real, asked = torch.Tensor.copy_, []

    def copy_(self, other, non_blocking=False):
        asked.append((other.device.type, non_blocking))
        return real(self, other, non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    put(1)
    assert asked and not any(on != "cuda" and non_blocking for on, non_blocking in asked)


def test_a_window_is_part_of_a_checkpoint(put, model):
    model.config = replace(model.config, window=5)
    put(1)
    assert [block.attention.window for block in cm.load("base").model.blocks] == [5, None]


# ---------------------------------------------------------------------------------------------------------------------
# Saving in the background


def test_saver_keeps_what_was_there_when_save_was_called(model, tiny_tokenizer, folder):
    before = copy.deepcopy(model.state_dict())
    state = State(5, data={"row": 1})
    with cm.Saver(folder, tiny_tokenizer, stage="base", settings={}) as saver:
        for step in (5, 6):  # the second save uses the first one's buffers again
            state.step = step
            path = saver.save(model, state, {"adamw.x.mean": model.head.weight.data})
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1)
            state.data["row"] += 1
    first, second = cm.load(path=folder / "step_000005"), cm.load(path=path)
    assert same(first.model.state_dict(), before) and first.state.data == {"row": 1}
    assert same(second.model.state_dict(), {name: tensor + 1 for name, tensor in before.items()})
    assert second.state == State(6, data={"row": 2})


def test_training_waits_only_for_the_copy(model, tiny_tokenizer, folder, monkeypatch):
    write, written = cm._write, threading.Event()
    monkeypatch.setattr(cm, "_write", lambda *what: written.wait() and write(*what))
    with cm.Saver(folder, tiny_tokenizer, stage="base", settings={}) as saver:
        path = saver.save(model, State(1))  # comes back although nothing is written
        assert not path.exists()
        written.set()
    assert cm.latest_valid(folder) == path


def test_saver_raises_at_the_next_call_and_can_go_on(model, tiny_tokenizer, folder):
    saver = cm.Saver(folder, tiny_tokenizer, stage="base", settings={})
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    saver.save(model, State(1))
    with pytest.raises(cm.SaveError, match="Cannot save .*step_000001"):
        saver.save(model, State(2))
    folder.unlink()
    saver.save(model, State(3))
    saver.close()
    assert [path.name for path in cm.steps(folder)] == ["step_000003"]


def test_weights_that_are_not_finite_are_not_saved(put, model, folder):
    put(1)
    with torch.no_grad():
        model.head.weight[3, 2] = float("nan")
    with pytest.raises(cm.SaveError, match="head.weight holds numbers that are not finite"):
        put(2)
    assert cm.latest_valid(folder).name == "step_000001"


# ---------------------------------------------------------------------------------------------------------------------
# Which one is the newest


def test_newest_is_by_time_even_if_the_clock_goes_back(put, folder, monkeypatch):
    put(500)
    monkeypatch.setattr(cm.time, "time", lambda: 1000.0)
    put(100)
    put(200)
    assert [path.name for path in cm.steps(folder)] == ["step_000200", "step_000100", "step_000500"]
    assert cm.find("base").name == "step_000200" and cm.find("base", "d2", 500).name == "step_000500"


def test_keep_last_deletes_the_oldest(put, folder):
    for step in (1, 2, 3, 4):
        put(step, keep_last=2)
    assert sorted(os.listdir(folder)) == ["step_000003", "step_000004"]
    with pytest.raises(ValueError, match="at least one"):
        cm.prune(folder, 0)


def test_saving_a_step_again_replaces_it(put, folder, model):
    put(1)
    with torch.no_grad():
        model.head.weight.zero_()
    put(1)
    assert os.listdir(folder) == ["step_000001"] and not cm.load("base").model.head.weight.any()


def test_find_says_what_to_run(put, base_dir):
    for stage, script in (("base", "base_train"), ("mid", "mid_train"), ("sft", "chat_sft"), ("rl", "chat_rl")):
        with pytest.raises(SystemExit, match=f"no {stage} checkpoint.*scripts.{script}.*bash quickstart.sh"):
            cm.find(stage)
    put(7)
    with pytest.raises(SystemExit, match="no base checkpoint at step 8.*d2/step_000007"):
        cm.find("base", step=8)
    with pytest.raises(SystemExit, match="no base checkpoint of d9"):
        cm.find("base", "d9")


@pytest.mark.parametrize("tag", ["..", "../../etc", "a/b", "", ".hidden", "a\\b", "/etc"])
def test_a_tag_is_the_name_of_one_folder(tag):
    with pytest.raises(SystemExit, match="plain name"):
        cm.find("base", tag)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def check_all(path: Path, model) -> None:
    cm.load(path=path)
    cm.load_optimizers(path, build_optimizers(model))


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_and_the_file_named(put, model, name):
    path = put(1)
    check_all(path, model)
    original = (path / name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    count = len(original) if name == "manifest.json" else 40
    places = [0, 7, 8, len(original) - 1, *torch.randint(len(original), (count,), generator=generator).tolist()]
    if name == "manifest.json":
        places = range(len(original))
    for place in places:
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        (path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            sealed.verify(path) if name == "manifest.json" else check_all(path, model)
    (path / name).write_bytes(original)
    check_all(path, model)


@pytest.mark.parametrize("name", FILES)
def test_truncated_longer_missing_and_swapped_files_are_found(put, model, name):
    path, other = put(1), put(2)
    original = (path / name).read_bytes()
    for cut in [*range(0, len(original), max(1, len(original) // 20)), len(original) - 1]:
        (path / name).write_bytes(original[:cut])
        with pytest.raises(ValueError, match=name):
            check_all(path, model)
    (path / name).write_bytes(original + b"\0")
    with pytest.raises(ValueError, match=name):
        check_all(path, model)
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        check_all(path, model)
    (path / name).symlink_to(other / name)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        check_all(path, model)
    (path / name).unlink()
    os.mkfifo(path / name)  # opening it would wait for ever
    with pytest.raises(ValueError, match="not a plain file"):
        check_all(path, model)


def test_resuming_passes_over_damage_and_says_so(put, folder, capsys):
    assert cm.latest_valid(folder) is None
    for step in (1, 2, 3):
        put(step)
    (folder / "step_000003" / "model.safetensors").write_bytes(b"")
    with open(folder / "step_000002" / "optimizer.safetensors", "rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert cm.latest_valid(folder).name == "step_000001"
    said = capsys.readouterr().err
    assert "step_000003/model.safetensors is damaged" in said and "step_000002/optimizer.safetensors is damaged" in said
    (folder / "step_000001" / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit, match="Every checkpoint in .* is damaged"):
        cm.latest_valid(folder)


def test_a_crash_between_the_two_renames_loses_nothing(put, folder):
    path = put(1)
    os.rename(path, hidden(path, "old"))
    (folder / ".step_000002.tmp").mkdir()
    assert cm.latest_valid(folder) == path and os.listdir(folder) == ["step_000001"]


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole but wrong: somebody wrote them so, and the manifest fits


def reseal(path: Path, name: str, change) -> None:
    value = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(change(value) or value))
    (path / "manifest.json").unlink()
    sealed.seal(path, time.time())


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("config.json", lambda v: v.update(extra=1), "config.json has the unknown key 'extra'"),
        ("config.json", lambda v: v.pop("stage") and None, "config.json lacks the key 'stage'"),
        ("config.json", lambda v: v["model"].pop("n_head") and None, "config.json: model lacks the key 'n_head'"),
        ("config.json", lambda v: v["model"].update(x=1), "config.json: model has the unknown key 'x'"),
        ("config.json", lambda v: v["model"].update(n_embd="32"), "model.n_embd is '32'"),
        ("config.json", lambda v: v["model"].update(n_layer=0), "model.n_layer is 0"),
        ("config.json", lambda v: v["model"].update(n_layer=10**9), "model.n_layer is 1000000000"),
        ("config.json", lambda v: v["model"].update(n_layer=5000), "n_layer=5000, but .*model.safetensors has"),
        ("config.json", lambda v: v["model"].update(vocab_size=10**5), "config.json asks for"),
        ("config.json", lambda v: v["model"].update(n_head=True), "model.n_head is True"),
        ("config.json", lambda v: v["model"].update(n_head=3), "n_head=3"),
        ("config.json", lambda v: v["model"].update(attention_sharpness=-1.0), "model.attention_sharpness is -1.0"),
        ("config.json", lambda v: v["model"].update(value_embeddings=1), "model.value_embeddings is 1"),
        ("config.json", lambda v: v.update(settings=[]), "config.json: settings is"),
        ("config.json", lambda v: [v], "config.json should hold an object"),
        ("state.json", lambda v: v.update(lr=1), "state.json has the unknown key 'lr'"),
        ("state.json", lambda v: v.pop("data") and None, "state.json lacks the key 'data'"),
        ("state.json", lambda v: v.update(step="3"), "state.json: step is '3'"),
        ("tokenizer.json", lambda v: v.pop("model") and None, "tokenizer.json"),
    ],
)
def test_schema_errors_name_file_and_key(put, name, change, message):
    path = put(1)
    reseal(path, name, change)
    with pytest.raises(ValueError, match=message):
        cm.load(path=path)


STRANGE = [
    None,
    True,
    -1,
    1.5,
    2**70,
    float("nan"),
    "",
    "\ud800",
    [],
    [[]],
    ["a", "b"],
    {},
    {"a": 1},
    10**9,
    -(2**31) - 1,
]


def spoil(value, chance: random.Random):
    """The same JSON value, but for one place in it that is gone, or strange, or one too many."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice(STRANGE)
    place = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value, how = value.copy(), chance.random()
    if how < 0.15:
        del value[place]
    elif how < 0.25 and isinstance(value, list):
        value.append(chance.choice(STRANGE))
    else:
        value[place] = spoil(value[place], chance)
    return value


@pytest.mark.parametrize("name", ["config.json", "state.json", "tokenizer.json"])
def test_a_spoilt_file_is_a_clear_error_or_still_fits(put, name):
    path, chance = put(1), random.Random(0)
    original, files = json.loads((path / name).read_text()), json.loads((path / "manifest.json").read_text())["files"]
    refused = 0
    for _ in range(100):
        data = json.dumps(spoil(original, chance)).encode()
        (path / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path / "manifest.json").write_bytes(sealed._manifest_bytes(1.0, files))
        try:
            cm.load(path=path)
        except ValueError as error:
            assert name in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("change", [{"head.weight": None}, {"odd": torch.zeros(3)}, {"head.weight": torch.zeros(2, 2)}])
def test_weights_that_do_not_fit_are_refused(put, model, change):
    path = put(1)
    tensors = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
    save_file(tensors, path / "model.safetensors")
    reseal(path, "state.json", lambda v: None)
    with pytest.raises(ValueError, match=f"model.safetensors.*{list(change)[0]}"):
        cm.load(path=path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", "", "a\\b", "nul\0"])
def test_a_manifest_cannot_point_outside_its_folder(put, name):
    path = put(1)
    manifest = json.loads((path / "manifest.json").read_text())
    files = {**manifest["files"], name: {"size": 1, "sha256": "0" * 64}}
    (path / "manifest.json").write_bytes(sealed._manifest_bytes(1.0, files))
    with pytest.raises(ValueError, match="manifest.json names .* not a file in its folder"):
        cm.load(path=path)


@GARBAGE
@given(data=manifests)
def test_garbage_in_a_manifest_is_a_clear_error(tmp_path, data):
    check_manifest(tmp_path, data)


def test_deep_nesting_and_huge_numbers_are_clear_errors(tmp_path):
    for data in (b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**5, b'"' + b"\\ud800" * 1000, b" " * (17 * 2**20)):
        (tmp_path / "manifest.json").write_bytes(data)
        with pytest.raises(ValueError, match="manifest.json"):
            sealed.verify(tmp_path)


def test_no_json_takes_much_memory(tmp_path):
    """The worst there is: empty lists take 21 bytes for each of the file's; so files have a limit."""
    (tmp_path / "manifest.json").write_bytes(b"[" + b"[]," * (2**20 // 3 - 1) + b"1]")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="should hold an object"):
            sealed.verify(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    (tmp_path / "manifest.json").write_bytes(b"[" + b"[]," * (2**20 // 3) + b"1]")
    with pytest.raises(ValueError, match="no such file has more than"):
        sealed.verify(tmp_path)


def test_what_could_not_be_read_again_is_not_saved(put, folder, model, tiny_tokenizer):
    path = put(1)
    with pytest.raises(cm.SaveError, match="state.json is damaged: it has .* before it are intact"):
        cm.save(folder, model, tiny_tokenizer, stage="base", settings={}, state=State(2, data={"x": "x" * 2**20}))
    with pytest.raises(cm.SaveError, match="optimizer.safetensors .* its header would have"):
        put(2, optimizer_tensors={f"{i:0100}": torch.zeros(1) for i in range(7000)})
    assert os.listdir(folder) == ["step_000001"] and cm.latest_valid(folder) == path


@GARBAGE
@given(header=headers | st.binary(max_size=100), length=lengths, tail=st.binary(max_size=64))
def test_garbage_in_a_header_is_a_clear_error_and_takes_no_memory(tmp_path, header, length, tail):
    check_header(tmp_path, header, length, tail)


def test_a_header_has_a_limit(tmp_path):
    names = {f"{i:060}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(12_000)}
    header = json.dumps(names).encode()
    for length in (len(header), 2**63, 2**64 - 1):
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=f"its header would have {length:,} bytes"):
            cm._read_tensors(tmp_path / "model.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def test_a_save_that_fails_leaves_the_checkpoint_before_it(put, folder, model):
    path = put(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 5_000, (path / "model.safetensors").stat().st_size + 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(cm.SaveError, match="Cannot save .*File too large.*before it are intact"):
                put(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.listdir(folder) == ["step_000001"] and cm.latest_valid(folder) == path
    assert put(2) == cm.latest_valid(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("the kernel lets only root mount a small disk: run as root outside of containers")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_and_read_only_disks(small_disk, put, monkeypatch, model):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(small_disk))
    folder = cm.folder_of("base", "d2")
    tokenizer = cm.load(path=put(1)).tokenizer
    save = lambda step: cm.save(folder, model, tokenizer, stage="base", state=State(step), settings={})  # noqa: E731
    path = save(1)
    needed = sum(file.stat().st_size for file in path.iterdir())
    ballast = small_disk / "ballast"
    for free in (0, 4096, needed // 2, needed - 8192):
        statistics = os.statvfs(small_disk)
        ballast.write_bytes(b"\1" * (statistics.f_bavail * statistics.f_frsize - free))
        with pytest.raises(cm.SaveError, match="Cannot save .*No space left"):
            save(2)
        ballast.unlink()
        assert os.listdir(folder) == ["step_000001"] and cm.latest_valid(folder) == path
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(cm.SaveError, match="Cannot save .*Read-only file system"):
        save(2)
    assert cm.latest_valid(folder) == path


# ---------------------------------------------------------------------------------------------------------------------
# Processes

KILL = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from nanochat import checkpoint_manager as cm
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import State

torch.set_num_threads(1)
folder, tokenizer, rounds = Path(sys.argv[1]), Tokenizer.load(sys.argv[2]), int(sys.argv[3])
model = GPT(GPTConfig(tokenizer.vocab_size, 64, 2, 4, 2, 32))

def save_until_killed(step):
    with cm.Saver(folder, tokenizer, stage="base", settings={}, keep_last=2) as saver:
        while True:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(step)
            saver.save(model, State(step), {"adamw.x.mean": torch.full((100, 100), float(step))})
            step += 1 if random.random() < 0.7 else 0  # sometimes the same step again

random.seed(0)
step, interrupted = 1, 0
for round in range(rounds):
    child = os.fork()
    if child == 0:
        save_until_killed(step)
    while not cm.steps(folder):
        time.sleep(0.001)
    time.sleep(random.random() * 0.06)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    interrupted += any(name.startswith(".") for name in os.listdir(folder))
    for path in cm.steps(folder):
        cm.verify(path)
    newest = cm.latest_valid(folder)
    loaded = cm.load(path=newest)
    assert loaded.state.step >= step - 1, (loaded.state.step, step)
    assert all((parameter == loaded.state.step).all() for parameter in loaded.model.parameters())
    assert (cm._read_tensors(newest / cm.OPTIMIZER)["adamw.x.mean"] == loaded.state.step).all()
    step = loaded.state.step + 1
print("interrupted", interrupted)
"""


def test_kill_at_any_moment_of_a_save(tmp_path, tiny_tokenizer, folder):
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-c", KILL, str(folder), str(tmp_path / "tokenizer.json"), "20"]  # dev/faults.py: 200
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= 5, "too few of the kills fell into a save for this test to mean anything"


RANK = """
import sys
from pathlib import Path
import torch
from nanochat import checkpoint_manager as cm
from nanochat.common import setup
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import State

folder, tokenizer = Path(sys.argv[1]), Tokenizer.load(sys.argv[2])
with setup("cpu") as dist:
    model = GPT(GPTConfig(tokenizer.vocab_size, 64, 1, 1, 1, 32)).init_weights(torch.Generator().manual_seed(dist.rank))
    assert cm.latest_valid(folder, dist) is None
    path = cm.save(folder, model, tokenizer, stage="base", state=State(1), settings={}, dist=dist)
    cm.verify(path)  # it is there on every rank as soon as save returns
    assert cm.latest_valid(folder, dist) == path
    with torch.no_grad():
        model.head.weight.fill_(float("inf"))
    try:
        cm.save(folder, model, tokenizer, stage="base", state=State(2), settings={}, dist=dist)
    except cm.SaveError as error:
        assert "head.weight" in str(error)
        print("refused", dist.rank)
"""


def test_two_ranks_write_one_checkpoint_and_share_its_errors(tmp_path, tiny_tokenizer, folder):
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    for rank, (_, out, error) in enumerate(run_two_ranks(RANK, folder, tmp_path / "tokenizer.json")):
        assert out == f"refused {rank}\n", error
    assert [path.name for path in cm.steps(folder)] == ["step_000001"]
