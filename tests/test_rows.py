"""What --dry_run shows of a chat stage is what the loader hands to the model, in colours and without."""

import re
from dataclasses import replace

import numpy as np
import pytest
from corpus import require_corpus

from nanochat import checkpoint_manager
from nanochat.dataloader import Batches, ChatSource
from nanochat.gpt import GPT
from nanochat.rows import show_rows, stretches
from nanochat.trainer import State
from scripts import chat_sft, mid_train
from tasks.common import exchange

LINE = re.compile(r"^(  learn|padding|       ) ([ \d]{5})  (.*)$")


def conversation(number, words=4):
    """Two exchanges, the second with a call of the calculator."""
    parts = [
        {"type": "python", "text": f"{number}+1"},
        {"type": "python_output", "text": f"{number + 1}"},
        {"type": "text", "text": f"It is {number + 1}."},
    ]
    return {"messages": [*exchange(f"Say {number}!", "word\n" * words), *exchange(f"{number} + 1?", parts)]}


def shown(batches, tokenizer, capsys):
    show_rows(batches, tokenizer)
    return capsys.readouterr().out


def read_back(text):
    """[(kind, number of tokens, text)] of the first row that was shown; lines that were wrapped are joined."""
    found = []
    for line in text.split("\n\nRow ")[1].splitlines()[1:]:
        if match := LINE.match(line):
            if match[2].strip():
                found.append([match[1].strip(), int(match[2]), match[3]])
            else:
                found[-1][2] += "\n" + match[3]
    return found


def test_the_rows_shown_are_those_of_the_first_step(tiny_tokenizer, capsys):
    source = ChatSource(tiny_tokenizer, [conversation(n) for n in range(20)], 200, 0)
    text = shown(Batches(source, 4, 4), tiny_tokenizer, capsys)
    (step,) = next(iter(Batches(source, 4, 4)))
    inputs, targets = step.inputs[0].numpy(), step.targets[0].numpy()
    row = read_back(text)
    decoded = tiny_tokenizer.decode(targets[targets >= 0])
    assert "".join(line[2] for line in row if line[0] == "learn") == decoded
    assert "<|python_end|>" in decoded and "<|output_start|>" not in decoded
    whole = "".join(line[2] for line in row if line[0] != "padding")
    assert whole == tiny_tokenizer.decode(inputs).removesuffix("<|bos|>" * row[-1][1])
    learned, begun = int((targets >= 0).sum()), whole.count("<|bos|>")
    assert sum(line[1] for line in row) == 200 and begun > 1
    assert sum(line[1] for line in row if line[0] == "learn") == learned
    assert row[-1][0] == "padding" and row[-1][2] == f"<|bos|> x {row[-1][1]}"
    assert f"Row 1 of {len(source.block(0, 0, 0).inputs)}: {begun} conversations; of 200 tokens {learned} (" in text
    assert (
        text.count("\n\nRow ") == 5 and "20 conversations; " in text and "No conversation was longer than a row" in text
    )


def test_colours_change_nothing_but_the_colour(tiny_tokenizer, capsys, monkeypatch):
    batches = Batches(ChatSource(tiny_tokenizer, [conversation(n) for n in range(5)], 120, 0), 1, 1)
    plain = shown(batches, tiny_tokenizer, capsys)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "110")
    coloured = shown(batches, tiny_tokenizer, capsys)
    assert "\x1b[" not in plain and re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain != coloured


def test_it_shows_the_targets_and_not_what_they_should_be():
    """A loader that taught the wrong token would be seen."""
    row = stretches(np.array([9, 1, 2, 3, 9, 9]), np.array([-1, 7, 3, -1, -1, -1]), bos_id=9)
    assert [(s.kind, s.ids.tolist(), s.begins) for s in row] == [
        ("", [9, 1], True),
        ("learn", [7, 3], False),
        ("padding", [9, 9], False),
    ]
    full = stretches(np.array([9, 1, 9, 1]), np.array([1, -1, 1, 2]), bos_id=9)
    assert [(s.kind, s.ids.tolist(), s.begins) for s in full] == [
        ("", [9], True),
        ("learn", [1], False),
        ("", [9], True),
        ("learn", [1, 2], False),
    ]
    assert [(s.kind, len(s.ids)) for s in stretches(np.full(3, 9), np.full(3, -1), bos_id=9)] == [("padding", 3)]


def test_what_was_cut_and_left_out_is_counted_and_a_resumed_run_shows_where_it_stands(tiny_tokenizer, capsys):
    answer_first = conversation(1, words=80)  # its first answer is longer than a row
    answer_last = {"messages": [*exchange("Hello?", "Hello."), *exchange("More!", "word\n" * 80)]}
    source = ChatSource(tiny_tokenizer, [answer_first, answer_last, *map(conversation, range(9))], 100, None)
    batches = Batches(source, 1, 1)
    text = shown(batches, tiny_tokenizer, capsys)
    assert "cut after the last answer that fits: 1. Without one that fits, and left out: 1." in text
    next(iter(batches))
    assert "\n\nRow 2 of " in shown(batches, tiny_tokenizer, capsys)


def test_about_how_many_steps(tiny_tokenizer):
    source = ChatSource(tiny_tokenizer, [conversation(n) for n in range(30)], 100, 0)
    assert Batches(source, 4, 4, epochs=3).steps() == pytest.approx(len(list(Batches(source, 4, 4, epochs=3))), abs=1)
    assert Batches(source, 4, 4).steps() is None


@pytest.mark.parametrize("script, source, flags", [(mid_train, "base", {}), (chat_sft, "mid", {"lora_rank": 2})])
def test_a_dry_run_of_a_chat_stage_keeps_nothing(
    script, source, flags, base_dir, tiny_model, tiny_tokenizer, capsys, monkeypatch
):
    require_corpus()
    model = GPT(replace(tiny_model.config, sequence_len=192))
    model.load_state_dict(tiny_model.state_dict())
    checkpoint_manager.save(
        checkpoint_manager.folder_of(source, "tiny"),
        model,
        tiny_tokenizer,
        stage=source,
        state=State(step=1),
        settings={"total_batch_size": 768},
    )
    before, saved, save = sorted(base_dir.rglob("*")), [], checkpoint_manager.save
    monkeypatch.setattr(
        checkpoint_manager, "save", lambda path, model, *a, **k: saved.append(model) or save(path, model, *a, **k)
    )
    script.main(script.Config(device="cpu", mixture="quickstart", device_batch_size=2, dry_run=True, **flags))
    text = capsys.readouterr().out
    for words in (
        "  learn ",
        "Row 5 of",
        "packed together",
        "first step",
        "loss Topic",
        "MB",
        "At this speed",
    ):
        assert words in text
    assert sorted(base_dir.rglob("*")) == before
    assert list(saved[0].state_dict()) == list(model.state_dict())  # the low-rank products are merged, as in a run
