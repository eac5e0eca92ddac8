"""The terminal chat, over a real checkpoint of a tiny random model."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from nanochat import checkpoint_manager
from nanochat.configurator import parse
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPTConfig
from nanochat.trainer import State
from scripts import chat_cli
from scripts.chat_cli import Chat, Config, main, talk

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture
def checkpoint(base_dir, tiny_model, tiny_tokenizer):
    folder = base_dir / "checkpoints" / "sft" / "tiny"
    return checkpoint_manager.save(folder, tiny_model, tiny_tokenizer, stage="sft", state=State(3), settings={})


@pytest.fixture
def chat(tiny_model, tiny_tokenizer) -> Chat:
    return Chat(Engine(tiny_model, tiny_tokenizer, max_batch=1), GREEDY)


class Saying(torch.nn.Module):
    """A model that answers every turn with the same tokens. It finds its place by the last <|assistant_start|>."""

    def __init__(self, tokenizer, *pieces: str, sequence_len: int = 512):
        super().__init__()
        self.config = GPTConfig(tokenizer.vocab_size, sequence_len, 1, 1, 1, 2)
        self.compute_dtype, self.weight = torch.float32, torch.nn.Parameter(torch.zeros(1))
        self.start = tokenizer.special["<|assistant_start|>"]
        self.script = []
        for piece in pieces:
            self.script += [tokenizer.special[piece]] if piece in tokenizer.special else list(piece.encode())
        self.place = 0

    def __deepcopy__(self, memo):
        return self

    def forward(self, idx, cache, at):
        logits = torch.full((1, self.config.vocab_size), -10.0)
        self.place = 0 if idx[0, at[0]] == self.start else self.place + 1
        logits[0, self.script[self.place % len(self.script)]] = 10.0
        cache.advance(idx, at + 1)
        return logits


def saying(tokenizer, *pieces: str, **options) -> Chat:
    return Chat(Engine(Saying(tokenizer, *pieces, **options), tokenizer, max_batch=1), Sampling(temperature=0))


def test_prompt_prints_only_the_answer(checkpoint, chat, tiny_tokenizer, capsys):
    expected = chat.say("Why is the sky blue?").text
    capsys.readouterr()
    main(Config(prompt="Why is the sky blue?", temperature=0, max_tokens=12, device="cpu"))
    assert capsys.readouterr().out == chat_cli.printable(expected) + "\n"


def test_prompt_works_without_a_terminal(checkpoint):
    command = [sys.executable, "-m", "scripts.chat_cli", "--max_tokens=5", "--device=cpu"]
    run = {"capture_output": True, "text": True, "cwd": Path(__file__).parent.parent, "timeout": 300}
    once = subprocess.run([*command, "-p", "Hello", "--seed=1"], stdin=subprocess.DEVNULL, **run)
    assert once.returncode == 0 and once.stdout.endswith("\n") and "\x1b" not in once.stdout
    piped = subprocess.run([*command, "--seed=1"], input="Hello\n/nonsense\n/quit\nnot read\n", **run)
    assert piped.returncode == 0 and once.stdout in piped.stdout and "There is no /nonsense" in piped.stdout


def test_flags():
    cfg = parse(Config, "-p hi -i rl -g d4 -s 7 -t 0 -k 3 --top_p 0.5 --seed 0 --max-tokens 9".split())
    assert cfg == Config("hi", "rl", "d4", 7, 0.0, 3, 0.5, 0, 9)


def test_what_goes_wrong_is_one_sentence(checkpoint, base_dir):
    with pytest.raises(SystemExit, match="no rl checkpoint"):
        main(Config(prompt="hi", source="rl", device="cpu"))
    with pytest.raises(SystemExit, match="temperature=-1"):
        main(Config(prompt="hi", temperature=-1, device="cpu"))
    with pytest.raises(SystemExit, match="the context holds 64"):
        main(Config(prompt="no end " * 100, device="cpu"))


def test_turns_are_remembered_until_new(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>")
    talk(chat, iter(["one", "", "two"]))
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[3]["content"] == [{"type": "text", "text": "Yes."}]
    assert capsys.readouterr().out == "Yes.\nYes.\n"
    talk(chat, iter(["/new"]))
    assert chat.messages == []


def test_a_conversation_that_is_full_says_so_and_goes_on(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>", sequence_len=64)
    talk(chat, iter(["fine", "x y z " * 60, "fine"]))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == out[2] == "Yes." and "the context holds 64" in out[1] and "/new" in out[1]
    assert len(chat.messages) == 4


def test_tool_calls_are_shown_dim_on_a_terminal_only(tiny_tokenizer, capsys, monkeypatch):
    pieces = ("It is", "<|python_start|>", "12*34", "<|python_end|>", "?" * 8, " so.", "<|assistant_end|>")
    forced = 2 + len(tiny_tokenizer.encode("408"))
    pieces = tuple("?" * forced if piece == "?" * 8 else piece for piece in pieces)
    saying(tiny_tokenizer, *pieces).say("?")
    assert capsys.readouterr().out == "It is so.\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    chat = saying(tiny_tokenizer, *pieces)
    chat.say("?")
    out = capsys.readouterr().out
    assert out.replace("\x1b[2m", "").replace("\x1b[0m", "") == "It is 12*34 = 408 so.\n"
    assert "\x1b[2m 12*34 = 4" in out
    assert chat.messages[1]["content"][1] == {"type": "python", "text": "12*34"}


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "on and ")  # without an end
    step, steps = chat.engine.step, []

    def interrupted_step():
        steps.append(1)
        if len(steps) == 10:
            signal.raise_signal(signal.SIGINT)
        return step()

    chat.engine.step = interrupted_step
    before = signal.getsignal(signal.SIGINT)
    answer = chat.say("go")
    assert answer.finish_reason == "cancelled" and 5 < len(answer.ids) < 12
    assert chat.messages[-1]["content"][0]["text"] == answer.text != ""
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped" in capsys.readouterr().err
    assert not chat.engine.has_work


def test_control_characters_of_the_model_do_nothing(tiny_tokenizer, capsys):
    saying(tiny_tokenizer, "a\x1b]0;title\x07\tb\x9b\r\n", "<|assistant_end|>").say("?")
    assert capsys.readouterr().out == "a]0;title\tb\n\n"


def test_lines_are_edited_and_kept(base_dir, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("hello\rtwo\x1b\rlines\r\x03after\r\x04")  # Enter; Alt-Enter within; Ctrl-C; Ctrl-D
        assert list(chat_cli.read_lines()) == ["hello", "two\nlines", "after"]
    assert "+hello" in (base_dir / "chat_history").read_text().splitlines()
