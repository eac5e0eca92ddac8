"""A dataclass as a command line: spelling, help, and what a typo gets."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest

from nanochat.configurator import parse


@dataclass(frozen=True)
class Config:
    depth: int = 4
    """Layers; everything else follows from it."""
    device_batch_size: int = 32
    """Rows a device takes at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    resume: bool = False
    """Go on from the newest checkpoint."""
    minutes: float | None = None
    """How long to train."""


def test_defaults_and_values():
    assert parse(Config, []) == Config()
    flags = ["--depth=6", "--device", "cpu", "--resume", "--minutes=1.5"]
    assert parse(Config, flags) == Config(depth=6, device="cpu", resume=True, minutes=1.5)
    with pytest.raises(FrozenInstanceError):
        parse(Config, []).depth = 5


@pytest.mark.parametrize("flag", ["--device_batch_size", "--device-batch-size"])
def test_underscore_and_hyphen_are_one_flag(flag):
    assert parse(Config, [f"{flag}=8"]) == parse(Config, [flag, "8"]) == Config(device_batch_size=8)


def test_a_leading_double_hyphen_is_ignored():
    assert parse(Config, ["--", "--depth=2"]) == Config(depth=2)


def test_argv_is_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["base_train", "--", "--depth", "3"])
    assert parse(Config) == Config(depth=3)


def test_help_names_the_command_that_was_typed(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], command="bash quickstart.sh")
    assert "usage: bash quickstart.sh [-h]" in capsys.readouterr().out
    help = subprocess.run([sys.executable, "-m", "scripts.chat_cli", "-i", "nothing"], capture_output=True, text=True)
    assert "python -m scripts.chat_cli --help" in help.stderr and ".py" not in help.stderr


def test_help_shows_every_flag_and_its_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for words in ("--depth", "Layers; everything else follows", "--device-batch-size", "Rows a device", "--resume"):
        assert words in text


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dept=3"], "--depth"),
        (["--dpeth", "3"], "--depth"),
        (["--device_batch_sise=3"], "--device-batch-size"),
        (["--depth=many"], "many"),
        (["--device=tpu"], "cuda"),
        (["--depth"], "--depth"),
    ],
)
def test_a_wrong_flag_is_explained_with_exit_code_2(capsys, flags, words):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, flags)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
