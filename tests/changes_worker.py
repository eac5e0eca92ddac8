"""Runs the commands of worked changes, each in a copy of the repository with the change applied, and looks at what came
of it. One process for all: the heavy packages are imported once, and a child is forked for each change.

    python changes_worker.py HOME NAME FOLDER COMMANDS [NAME FOLDER COMMANDS ...]
"""

import os
import sys
from pathlib import Path

import numba  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import pytest
import torch


def commands(home: Path, lines: str) -> None:
    """The commands of a page as tests/test_docs.py runs them, on a midtrained model that says nothing sensible."""
    from test_docs import run

    from nanochat import checkpoint_manager
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.tokenizer import Tokenizer
    from nanochat.trainer import State

    tokenizer = Tokenizer.train(["What day is it? Which is larger, 12 or 7? My name is Ada."] * 9, 300)
    model = GPT(GPTConfig(tokenizer.vocab_size, 256, 1, 1, 1, 32)).init_weights(torch.Generator().manual_seed(0))
    folder = checkpoint_manager.folder_of("mid", "quickstart")
    checkpoint_manager.save(folder, model, tokenizer, stage="mid", state=State(), settings={"total_batch_size": 512})
    for line in lines.splitlines():
        run(line, home, pytest.MonkeyPatch())


def section(name: str) -> dict:
    from nanochat.common import base_dir
    from nanochat.files import read_json

    return read_json(base_dir() / "report" / f"{name}.json")


def task() -> None:
    from tasks.compare import Compare

    assert [score["name"] for score in section("chat_eval_sft")["scores"]] == ["Compare"]
    trained_on(lambda content: content.startswith("Which is larger"))
    items = [Compare(split)[0]["messages"] for split in Compare.splits]
    assert items[0] != items[1]
    graded("Compare", items[1][1]["content"], "101")


def tool() -> None:
    import datetime

    from nanochat import checkpoint_manager
    from nanochat.engine import Engine, Sampling

    trained_on(lambda content: content == "What day is it?")
    chat = checkpoint_manager.load("sft", "changed")
    special, encode = chat.tokenizer.special, chat.tokenizer.encode
    engine = Engine(chat.model, chat.tokenizer, max_batch=1)
    for code, said in (("today()", datetime.date.today().isoformat()), ("2+3", "5"), ("tomorrow()", "error")):
        begin = [special["<|python_start|>"], *encode(code).tolist(), special["<|python_end|>"]]
        (answer,) = engine.generate([[chat.tokenizer.bos_id]], Sampling(max_tokens=40, temperature=0, begin=begin))
        assert answer.parts[1] == {"type": "python_output", "text": said}


def personality() -> None:
    assert [score["name"] for score in section("chat_eval_sft")["scores"]] == ["Identity"]
    trained_on(lambda content: "name is Ada, dear reader" in content)
    graded("Identity", "I am Ada.", "I am nanochat.", key="who")


def dataset() -> None:
    from nanochat.dataset import documents

    assert len(list(documents("stories", "train"))) == 60 and section("base_train")["metrics"]["steps"] == 2


def trained_on(wanted) -> None:
    """The mixture of finetuning has such messages."""
    from tasks.mixtures import sft_mixture

    mixture = sft_mixture(4000)
    found = [m for i in range(len(mixture)) for m in mixture[i]["messages"] if isinstance(m["content"], str)]
    assert sum(wanted(message["content"]) for message in found) > 5


def graded(name: str, right: str, wrong: str, key: str | None = None) -> None:
    """The task accepts one answer, and not the other."""
    from types import SimpleNamespace

    from tasks.mixtures import built_in_tasks

    (found,) = [task for task in built_in_tasks() if task.name == name]
    item = 0 if key is None else [k for k, _ in found.phrasings].index(key)
    for text, expected in ((right, True), (wrong, False)):
        answer = SimpleNamespace(text=text, parts=[{"type": "text", "text": text}])
        assert found.grade(found[item], answer) == expected, (text, found[item])


def main(home: Path, *rest: str) -> None:
    for name, folder, lines in zip(rest[::3], rest[1::3], rest[2::3]):
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            sys.path[:1] = [folder, f"{folder}/tests"]  # in place of where this file lies
            os.environ["NANOCHAT_BASE_DIR"] = f"{home}/{name}/.cache/nanochat"
            commands(home / name, lines)
            globals()[name]()
            print(f"\n{name} is as it should be", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
