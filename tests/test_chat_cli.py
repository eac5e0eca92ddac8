"""The terminal chat, over a real checkpoint of a tiny random model."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from nanochat import checkpoint_manager
from nanochat.configurator import parse
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.terminal import MarkdownAnswer, printable
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
    assert capsys.readouterr().out == printable(expected) + "\n"


def test_a_base_model_goes_on_with_the_text(base_dir, tiny_model, tiny_tokenizer, capsys):
    folder = base_dir / "checkpoints" / "base" / "tiny"
    checkpoint_manager.save(folder, tiny_model, tiny_tokenizer, stage="base", state=State(3), settings={})
    main(Config(prompt="The sky is", source="base", temperature=0, max_tokens=12, device="cpu", weights="float32"))
    prompt = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode("The sky is")]
    expected = Engine(tiny_model, tiny_tokenizer, max_batch=1).generate([prompt], GREEDY)[0].text
    assert capsys.readouterr().out == printable(expected) + "\n"
    chat = Chat(Engine(tiny_model, tiny_tokenizer, max_batch=1), GREEDY, base=True)
    chat.say("Grass is")
    assert chat.tokens([*chat.messages, {"role": "user", "content": "The sky is"}]) == (prompt, 0), (
        "each text by itself"
    )


def test_prompt_works_without_a_terminal(checkpoint):
    command = [sys.executable, "-m", "scripts.chat_cli", "--max_tokens=5", "--device=cpu"]
    run = {"capture_output": True, "text": True, "cwd": Path(__file__).parent.parent, "timeout": 300}
    once = subprocess.run([*command, "-p", "Hello", "--seed=1"], stdin=subprocess.DEVNULL, **run)
    assert once.returncode == 0 and once.stdout.endswith("\n") and "\x1b" not in once.stdout
    piped = subprocess.run([*command, "--seed=1"], input="Hello\n/nonsense\n/quit\nnot read\n", **run)
    assert piped.returncode == 0 and once.stdout in piped.stdout and "There is no /nonsense" in piped.stdout


def test_in_a_pipe_only_answers_are_printed(checkpoint):
    command = f"printf 'one\\ntwo\\n' | {sys.executable} -m scripts.chat_cli --max_tokens=200 -t 0"
    whole = subprocess.run(["bash", "-c", command], capture_output=True)
    assert whole.returncode == 0 and b"/help" in whole.stderr and b"/help" not in whole.stdout and whole.stdout
    some = subprocess.run(["bash", "-c", f"{command} | head -c 1"], capture_output=True)
    assert some.stdout == whole.stdout[:1] and b"Traceback" not in some.stderr


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


def test_what_cannot_be_tried_again_is_kept(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>", sequence_len=64)
    talk(chat, iter(["one", f"/system {'x y z ' * 60}", "/retry"]))
    assert "the context holds 64" in capsys.readouterr().out and len(chat.messages) == 2


def test_a_message_that_is_too_long_says_so_and_is_forgotten(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>", sequence_len=64)
    talk(chat, iter(["fine", "x y z " * 60, "fine"]))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == out[2] == "Yes." and "the context holds 64" in out[1]
    assert len(chat.messages) == 4


def test_a_conversation_that_is_full_goes_on_without_its_beginning(tiny_tokenizer, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>", sequence_len=64)
    talk(chat, iter(["One more?"] * 12))
    printed = capsys.readouterr()
    assert printed.out == "Yes.\n" * 12 and len(chat.messages) == 24
    notes = [int(n) for n in re.findall(r"the first (\d+) messages no longer fit", printed.err)]
    assert len(notes) > 5 and notes == sorted(notes) and all(n % 2 == 0 for n in notes)


def test_tool_calls_are_shown_on_a_terminal_only(tiny_tokenizer, capsys, monkeypatch):
    pieces = ("It is", "<|python_start|>", "12*34", "<|python_end|>", "?" * 8, "so.", "<|assistant_end|>")
    forced = 2 + len(tiny_tokenizer.encode("408"))
    pieces = tuple("?" * forced if piece == "?" * 8 else piece for piece in pieces)
    saying(tiny_tokenizer, *pieces).say("?")
    assert capsys.readouterr().out == "It isso.\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    chat = saying(tiny_tokenizer, *pieces)
    chat.say("?")
    assert "It is 12*34 → 408 so." in re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().out)
    assert chat.messages[1]["content"][1] == {"type": "python", "text": "12*34"}


def test_commands(tiny_tokenizer, tmp_path, capsys):
    chat = saying(tiny_tokenizer, "Yes.", "<|assistant_end|>")
    run = lambda *lines: (talk(chat, iter(lines)), capsys.readouterr().out)[1]  # noqa: E731
    assert "/retry" in run("/help")
    assert "nothing to answer" in run("/retry")
    assert run("one", "two", "/retry") == "Yes.\n" * 3 and len(chat.messages) == 4
    run("/undo")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert run("/set temperature 0.5", "/set top-k=7", "/set seed none") == "temperature 0.5\ntop_k 7\nseed None\n"
    assert chat.sampling.temperature == 0.5 and chat.sampling.top_k == 7
    assert "max_tokens" in run("/set") and "temperature 0.5" in run("/set temperature")
    for wrong, words in (
        ("temperature -1", "out of range"),
        ("temperature x", "x"),
        ("top_k none", "none"),
        ("frequency_penalty 3", "from -2 to 2"),
        ("color 1", "no setting"),
    ):
        assert words in run(f"/set {wrong}")
    assert chat.sampling.temperature == 0.5
    prompts, submit = [], chat.engine.submit
    chat.engine.submit = lambda prompt, sampling: prompts.append(prompt) or submit(prompt, sampling)
    run("/system Be brief.", "three", "/system", "four")
    assert "Be brief." in tiny_tokenizer.decode(prompts[0]) and "Be brief." not in tiny_tokenizer.decode(prompts[1])
    file = tmp_path / "chat.json"
    assert "Saved" in run(f"/save {file}") and "name of a file" in run("/save")
    assert "Is a directory" in run(f"/save {tmp_path}")
    saved = json.loads(file.read_text())
    nodes = saved["chats"][0]["nodes"]
    assert saved["format"] == "nanochat-chats" and [node["parent"] for node in nodes] == [None, "0", "1", "2", "3", "4"]


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


MARKDOWN = """# Title

One **bold** word, and
a second line.

- a
- b

```python
def f():

    return 1
```

| a | b |
|---|---|
| 1 | 2 |

The end."""


def test_markdown_is_drawn_piece_by_piece():
    """Whatever the pieces, what stands on the screen in the end is what the whole text gives."""
    screens = []
    for size in (1, 3, 1000):
        out = io.StringIO()
        answer = MarkdownAnswer(Console(file=out, force_terminal=True, width=60, height=30, color_system=None))
        for place in range(0, len(MARKDOWN), size):
            answer.add(MARKDOWN[place : place + size], "text")
            if "\n\nThe" in MARKDOWN[:place]:
                assert "Title" in out.getvalue() and "Title" not in answer.pending  # what is finished stays
        answer.close()
        screens.append(screen(out.getvalue()))
    assert screens[0] == screens[1] == screens[2]
    text = "\n".join(screens[0])
    assert "One bold word, and" in text and "a second line." in text and "def f():" in text and "```" not in text
    assert "• a" in text.replace(" • ", "• ") and "─" in text


def screen(data: str) -> list[str]:
    """What a terminal shows after these bytes: enough of one for what rich writes."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[\d;?]*\w|\n|\r|[^\x1b\n\r]+", data):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\r":
            pass
        elif piece.endswith("A"):
            row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] += piece
    return [line.rstrip() for line in lines if line.strip()]


def test_long_code_shows_its_end_while_it_is_written():
    answer = MarkdownAnswer(Console(file=io.StringIO(), force_terminal=True, width=60, height=12))
    answer.add("```python\n" + "".join(f"x{i} = {i}\n" for i in range(50)), "text")
    tail = answer._tail()
    answer.close()
    assert tail.startswith("```python\n") and "x49" in tail and "x10" not in tail


def test_a_sum_stays_in_its_line_and_a_program_is_a_block():
    out = io.StringIO()
    answer = MarkdownAnswer(Console(file=out, force_terminal=True, width=60, height=30, color_system=None))
    for kind, text in [("text", "It is"), ("python", "2*"), ("python", "3"), ("python_output", "6"), ("text", "so.")]:
        answer.add(text, kind)
    assert answer.pending == "It is `2*3 → 6` so."
    answer.add("look up the Moon", "python")
    answer.add("The Moon is a moon of Earth.", "python_output")
    answer.add("It is.", "text")
    assert answer.pending == "It is."  # a long call is a paragraph
    answer.add("x = 1\nprint(x)", "python")
    assert "```python\nx = 1\nprint(x)\n```" in answer._tail()  # also while it runs
    answer.add("1\n", "python_output")
    answer.add("Done.", "text")
    assert answer.pending == "Done."  # the rest is finished
    answer.close()
    text = [line.strip() for line in screen(out.getvalue())]
    call = "look up the Moon → The Moon is a moon of Earth."
    assert text == ["It is 2*3 → 6 so.", call, "It is.", "x = 1", "print(x)", "1", "Done."]


def test_in_a_real_terminal(base_dir, tiny_tokenizer):
    """A pseudo-terminal with the program in it: help, an answer, Ctrl-C in the middle of one, the history, the end."""
    model = GPT(GPTConfig(tiny_tokenizer.vocab_size, 4096, 1, 2, 1, 32)).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # a model that says a a a a a, whatever it reads
        model.embedding.weight.fill_(1.0)
        model.head.weight.zero_()[tiny_tokenizer.encode("a")[0]] = 1.0
    folder = base_dir / "checkpoints" / "sft" / "tiny"
    checkpoint_manager.save(folder, model, tiny_tokenizer, stage="sft", state=State(3), settings={})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-m", "scripts.chat_cli", "--device=cpu", "--max_tokens=4000", "-t0"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"TERM": "xterm-256color", "NANOCHAT_BASE_DIR": str(base_dir)},
    )
    os.close(theirs)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        text = ""
        while words not in re.sub(r"\x1b\[[\d;?]*\w", "", text):
            ready, _, _ = select.select([ours], [], [], 60)
            assert ready, f"no {words!r} in {text[-500:]!r}"
            text += os.read(ours, 65536).decode("utf-8", "replace")
            if "\x1b[6n" in text:  # "where is the cursor?"
                os.write(ours, b"\x1b[1;1R")
                text = text.replace("\x1b[6n", "")
        seen += text

    try:
        until("/quit")
        until(">")
        os.write(ours, b"/help\r")
        until("Ctrl-C stops an answer.")
        os.write(ours, b"hello\r")
        until("aaaaaaaa")
        os.write(ours, b"\x03")
        until("(stopped)")
        until(">")
        os.write(ours, b"/undo\r")
        until("0 messages are left.")
        os.write(ours, b"/quit\r")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "+hello" in (base_dir / "chat_history").read_text().splitlines()


def test_lines_are_edited_and_kept(base_dir, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("hello\rtwo\x1b\rlines\r\x03after\r\x04")  # Enter; Alt-Enter within; Ctrl-C; Ctrl-D
        assert list(chat_cli.read_lines()) == ["hello", "two\nlines", "after"]
    assert "+hello" in (base_dir / "chat_history").read_text().splitlines()
