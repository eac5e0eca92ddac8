"""Whatever script meets a damaged file ends in one sentence that names the file and says what to do."""

import errno
import runpy
import sys

import pytest
from test_checkpoint_manager import reseal

from nanochat import checkpoint_manager, dataset
from nanochat.checkpoint_manager import folder_of
from nanochat.common import STAGES
from nanochat.configurator import launch
from nanochat.files import BadFile
from nanochat.optim import build_optimizers
from nanochat.trainer import State


def said(monkeypatch, script: str, *flags: str) -> str:
    """With what sentence the script ends, run as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.delitem(sys.modules, script, raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(script, run_name="__main__")
    assert isinstance(stopped.value.code, str), stopped.value.code  # which Python prints, and nothing else
    return stopped.value.code


@pytest.fixture
def models(tiny_model, tiny_tokenizer, base_dir):
    """A checkpoint of every stage, in the middle of its run."""
    tiny_tokenizer.save(base_dir / "tokenizer" / "tokenizer.json")
    tensors = checkpoint_manager.tensors_of(build_optimizers(tiny_model))
    settings = {"total_batch_size": 128, "data": "mine", "table_decay": 0.0}
    return {
        stage: checkpoint_manager.save(
            folder_of(stage, "x"), tiny_model, tiny_tokenizer, stage=stage, settings=settings,
            state=State(1, progress=0.5), optimizer_tensors=tensors,
        )
        for stage in STAGES
    }  # fmt: skip


SCRIPTS = [
    ("base_eval", "base", []),
    ("base_loss", "base", []),
    ("mid_train", "base", ["--mixture=quickstart"]),
    ("chat_sft", "mid", ["--mixture=quickstart"]),
    ("chat_rl", "sft", ["--task=Arithmetic"]),
    ("chat_eval", "rl", ["-i", "rl", "-a", "Arithmetic"]),
    ("chat_cli", "sft", ["-p", "Hello"]),
    ("chat_web", "sft", ["--port=0"]),
    ("export", "sft", []),
]


@pytest.mark.parametrize(("script", "stage", "flags"), SCRIPTS, ids=[script for script, *_ in SCRIPTS])
def test_a_damaged_checkpoint(monkeypatch, models, script, stage, flags):
    path = models[stage]
    (path / "model.safetensors").write_bytes(b"\0" * (path / "model.safetensors").stat().st_size)
    device = [] if script == "export" else ["--device=cpu"]
    sentence = said(monkeypatch, f"scripts.{script}", *flags, *device)
    assert f"{path / 'model.safetensors'} is damaged" in sentence and sentence.endswith("train it again.")


def test_the_sentence_names_what_is_left(monkeypatch, models, tiny_model, tiny_tokenizer):
    path = checkpoint_manager.save(
        folder_of("base", "x"), tiny_model, tiny_tokenizer, stage="base", settings={}, state=State(2)
    )
    (path / "config.json").unlink()
    sentence = said(monkeypatch, "scripts.export", "-i", "base")
    assert "config.json cannot be read" in sentence
    assert sentence.endswith(f"Move {path} away: then step_000001 is taken instead.")


def test_going_on_from_what_does_not_fit(monkeypatch, models, tiny_model):
    """A checkpoint of an older program, and one of a run with other flags; every byte is right in both."""
    reseal(models["base"], "config.json", lambda values: values["model"].pop("rope_base") and None)
    sentence = said(monkeypatch, "scripts.base_train", "--resume", "--model_tag=x", "--device=cpu")
    assert "config.json: model lacks the key 'rope_base'" in sentence
    resume = ["--resume", "--model_tag=x", "--device=cpu", "--mixture=quickstart", "--num_iterations=2"]
    sentence = said(monkeypatch, "scripts.chat_sft", *resume, "--lora_rank=2")
    assert "optimizer.safetensors does not fit these optimizers" in sentence and "the flags that" in sentence


def test_other_damaged_files(monkeypatch, models, base_dir):
    """The tokenizer, the log, a dataset's manifest and its shards."""
    texts = [(f"key {n}", f"The grass of meadow {n} is green.") for n in range(200)]
    dataset.prepare("mine", texts, "a test", "1")
    train = "scripts.base_train", "--device=cpu", "--data=mine", "--depth=1", "--num_iterations=2", "--model_tag=y"
    (shard,) = dataset.shards("mine", "train")
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], content[:9] + bytes(64) + content[73:]):
        shard.write_bytes(damaged)
        for script in (train, ("scripts.tok_train", "--data=mine", "--vocab_size=300")):
            assert f"{shard} is damaged" in said(monkeypatch, *script)
    shard.write_bytes(content)
    for path in (
        base_dir / "data" / "mine" / "manifest.json",
        base_dir / "tokenizer" / "tokenizer.json",
    ):
        before = path.read_bytes()
        path.write_bytes(before[:-9])
        assert str(path) in said(monkeypatch, *train)
        path.write_bytes(before)
    log = base_dir / "logs" / "sft-x.jsonl"
    log.parent.mkdir()
    log.write_text("loss\n")
    resume = ["--resume", "--model_tag=x", "--device=cpu", "--mixture=quickstart", "--num_iterations=2"]
    assert f"{log}, line 1, is damaged" in said(monkeypatch, "scripts.chat_sft", *resume)


def test_faults_of_the_program_keep_their_traceback():
    def fail(error):
        raise error

    sentences = {BadFile("a"): "\na", OSError("b"): "\nb", KeyboardInterrupt(): 130}
    sentences[OSError(errno.ENOSPC, "full", "c")] = "\nc: full. NANOCHAT_BASE_DIR says where all files go."
    for error, sentence in sentences.items():
        with pytest.raises(SystemExit) as stopped:
            launch(lambda error=error: fail(error))
        assert stopped.value.code == sentence
    for error in (ValueError("a"), OSError(errno.ENOENT, "b", "c"), RuntimeError("d")):
        with pytest.raises(type(error), match=str(error).replace("[", r"\[")):
            launch(lambda error=error: fail(error))
