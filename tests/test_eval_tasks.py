"""Published tasks: rows become the right conversations, right answers pass and wrong ones do not."""

import gzip
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import execution
from tasks import published
from tasks.arc import ARC
from tasks.common import reference_text, visible_text
from tasks.gsm8k import GSM8K, VALIDATION, final_number, parse_answer
from tasks.humaneval import HumanEval, build_program
from tasks.mmlu import MMLU
from tasks.published import MissingFile, ask, read_rows
from tasks.registry import PUBLISHED, evaluation_task, evaluation_tasks, published_files
from tasks.smoltalk import SmolTalk


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def said(text: str, parts: list[dict] | None = None):
    return SimpleNamespace(text=text, parts=parts or [{"type": "text", "text": text}])


def arc_row(i: int, labels: str = "ABCD") -> dict:
    choices = {"text": [f"choice {i}.{j}" for j in range(len(labels))], "label": list(labels)}
    return {"id": str(i), "question": f"Question {i}?", "choices": choices, "answerKey": labels[i % len(labels)]}


def mmlu_row(i: int, answer: int = 3) -> dict:
    return {
        "subject": f"s{i % 5}",
        "question": f"Question {i}?",
        "choices": [f"{i}.{j}" for j in range(4)],
        "answer": answer,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_rows_are_the_same_from_every_form_of_file(tmp_path):
    rows = [mmlu_row(i) for i in range(10)]
    write(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text() + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:6]), tmp_path / "d-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[6:]), tmp_path / "d-00001-of-00002.parquet")
    for stem in "abcd":
        assert list(read_rows(tmp_path, stem, "http://x", ("question",))) == rows


def test_a_missing_or_wrong_file_is_named(tmp_path):
    with pytest.raises(MissingFile, match="mmlu_test.jsonl.*tasks.published"):
        MMLU("test", tmp_path)
    with pytest.raises(ValueError, match="split must be one of auxiliary, dev, validation, test"):
        MMLU("training", tmp_path)
    (tmp_path / "mmlu_test.jsonl").write_text('{"question": "?"}\n{"question\n')
    with pytest.raises(ValueError, match="mmlu_test.jsonl, line 2: not JSON"):
        MMLU("test", tmp_path)
    (tmp_path / "mmlu_test.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ValueError, match="no subject, choices, answer"):
        MMLU("test", tmp_path)
    (tmp_path / "mmlu_test.jsonl").write_text("")
    with pytest.raises(ValueError, match="no question"):
        MMLU("test", tmp_path)


def test_by_default_files_are_looked_for_under_the_base_directory(base_dir):
    (base_dir / "evals").mkdir(parents=True)
    write(base_dir / "evals" / "mmlu_test.jsonl", [mmlu_row(0)])
    assert len(MMLU()) == 1


def test_the_bundle_is_unpacked_flat(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "core_bundle.zip", "w") as archive:
        archive.writestr("eval_bundle/eval_data/reading/squad.jsonl", "{}\n")
        archive.writestr("eval_bundle/eval_meta_data.csv", "Eval Task\n")
        archive.writestr("eval_bundle/../../etc.jsonl", "x")
        archive.writestr("eval_bundle/run.py", "x")
    published.unpack(tmp_path / "core_bundle.zip", tmp_path / "core")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "etc.jsonl",
        "eval_meta_data.csv",
        "squad.jsonl",
    ]
    assert {p.parent for p in tmp_path.rglob("*") if p.is_file()} == {tmp_path / "core"}


def test_every_published_file_has_an_address_and_its_own_name():
    files = published_files()
    assert len({stem for stem, _, _ in files}) == len({url for _, url, _ in files}) == len(files) == 18
    for stem, url, _ in files:
        assert url.startswith("https://") and published.form_of(url) in published.FORMS and "/" not in stem


# ---------------------------------------------------------------------------------------------------------------------
# Multiple choice


def test_the_order_of_choices_favours_no_letter_and_keeps_the_answer():
    letters = Counter()
    for i in range(1200):
        conversation = ask(f"Question {i}?", ["right", "wrong", "worse", "worst"], 0)
        letter = reference_text(conversation)
        letters[letter] += 1
        assert f"- right={letter}\n" in conversation["messages"][0]["content"]
        assert conversation == ask(f"Question {i}?", ["right", "wrong", "worse", "worst"], 0)
    assert all(240 < letters[letter] < 360 for letter in "ABCD")


@pytest.mark.parametrize("last", ["A and B", "Both B and C.", "A, B, and C", "A B and C", "Neither A nor D"])
def test_choices_that_name_others_stay_where_they_are(last):
    for i in range(20):
        conversation = ask(f"{i}?", ["one", "two", "three", last], 3)
        assert (
            reference_text(conversation) == "D"
            and "- one=A\n- two=B\n- three=C\n" in conversation["messages"][0]["content"]
        )


def test_arc(tmp_path):
    rows = [arc_row(i, labels) for i, labels in enumerate(["ABCD", "1234", "ABC", "ABCDE"] * 6)]
    write(tmp_path / "arc_easy_validation.jsonl", rows)
    task = ARC("Easy", "validation", tmp_path)
    assert (task.name, task.kind, len(task)) == ("ARC-Easy", "categorical", 24)
    assert task.chance == pytest.approx((1 / 4 + 1 / 4 + 1 / 3 + 1 / 5) / 4)
    asked = set()
    for conversation in map(task.__getitem__, range(24)):
        question, letter = conversation["messages"][0]["content"], reference_text(conversation)
        number = int(question.split("?")[0].split()[-1])
        row = rows[number]
        text = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        assert f"- {text}={letter}\n" in question
        assert conversation["letters"] == list("ABCDE")[: len(row["choices"]["text"])]
        assert [letter for letter in conversation["letters"] if task.grade(conversation, said(letter))] == [
            reference_text(conversation)
        ]
        asked.add(number)
    assert asked == set(range(24))
    with pytest.raises(IndexError):
        task[24]
    with pytest.raises(ValueError, match="Easy, Challenge"):
        ARC("Hard", "test", tmp_path)


def test_mmlu_is_shuffled_and_keeps_subjects(tmp_path):
    write(tmp_path / "mmlu_test.jsonl", [mmlu_row(i) for i in range(50)])
    task = MMLU("test", tmp_path)
    order = [int(task[i]["messages"][0]["content"].split("?")[0].split()[-1]) for i in range(50)]
    assert sorted(order) == list(range(50)) != order
    assert order == [
        int(MMLU("test", tmp_path)[i]["messages"][0]["content"].split("?")[0].split()[-1]) for i in range(50)
    ]
    assert all(task[i]["subject"] == f"s{order[i] % 5}" for i in range(50))


# ---------------------------------------------------------------------------------------------------------------------
# GSM8K


def test_calculator_calls_are_parts():
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all <<48+24=72>>72.\n#### 72"
    parts = parse_answer(answer)
    assert parts == [
        {"type": "text", "text": "She sold 48/2 = "},
        {"type": "python", "text": "48/2"},
        {"type": "python_output", "text": "24"},
        {"type": "text", "text": "24 clips.\nIn all "},
        {"type": "python", "text": "48+24"},
        {"type": "python_output", "text": "72"},
        {"type": "text", "text": "72.\n#### 72"},
    ]
    assert visible_text(parts) == "She sold 48/2 = 24 clips.\nIn all 72.\n#### 72"
    assert parse_answer("#### 5") == [{"type": "text", "text": "#### 5"}]


@pytest.mark.parametrize(
    "text, number",
    [
        ("so\n#### 72", 72),
        ("#### 1,234,567", 1234567),
        ("#### $18.00.", 18),
        ("####-3", -3),
        ("#### .5", "0.5"),
        ("#### 10 and then #### 11", 10),
        ("the answer is 72", None),
        ("#### none", None),
        ("####", None),
        ("#### -", None),
        ("", None),
        ("#### ٣", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_gsm8k(tmp_path):
    row = lambda i: {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1:,}"}  # noqa: E731
    write(tmp_path / "gsm8k_test.jsonl", [row(i) for i in range(990, 1010)])
    write(tmp_path / "gsm8k_train.jsonl", [row(i) for i in range(600)])
    task = GSM8K("test", tmp_path)
    assert task.kind == "generative" and task.chance == 0
    for conversation in map(task.__getitem__, range(20)):
        value = final_number(reference_text(conversation))
        content = conversation["messages"][-1]["content"]
        assert task.grade(conversation, said(visible_text(content), content))
        assert task.grade(conversation, said(f"#### {value}"))
        for wrong in (f"#### {value + 1}", f"{value}", "", "####", f"#### {value}1", f"#### {value + 1}\n#### {value}"):
            assert not task.grade(conversation, said(wrong))

    def questions(split):
        return {conversation["messages"][0]["content"] for conversation in GSM8K(split, tmp_path)}

    train, validation = questions("train"), questions("validation")
    assert len(validation) == VALIDATION and len(train) == 600 - VALIDATION and not train & validation


# ---------------------------------------------------------------------------------------------------------------------
# HumanEval

PROMPT = 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef area(r):\n    """ Area of a circle. """\n'
BODY = "    return math.pi * r * r\n"
ALWAYS_EQUAL = """def area(r):
    class Always(float):
        __eq__ = __lt__ = __le__ = lambda self, other: True
        __sub__ = __rsub__ = lambda self, other: self
        __abs__ = lambda self: self
    return Always(9)
"""
TEST = "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-3\n    assert helper(1) == 2\n"


def test_what_program_an_answer_means():
    namespace = {}
    whole = "def area(r):\n" + BODY
    for answer in (
        BODY,
        PROMPT + BODY,
        f"Here it is:\n```python\n{PROMPT}{BODY}```\nIt squares.",
        f"```python\n{whole}```",
        f"```py\n{whole}",  # cut off before the closing fence
        f"An example:\n```\narea(1)\n```\nand the code:\n```python\n{whole}\n```",
        f"```python\n{BODY}```",
    ):
        program = build_program(PROMPT, answer, "area")
        namespace = {}
        exec(program, namespace)  # written above, not by a model
        assert namespace["area"](1) == pytest.approx(3.14159265) and namespace["helper"](1) == 2


def humaneval_task(tmp_path):
    row = {"task_id": "T/0", "prompt": PROMPT, "canonical_solution": BODY, "test": TEST, "entry_point": "area"}
    write(tmp_path / "HumanEval.jsonl", [row])
    return HumanEval("test", tmp_path)


def require_sandbox():
    try:
        execution.check_program("def f(): return 1", "assert f() == 1", "f")
    except execution.SandboxError as error:
        pytest.skip(f"no sandbox on this machine (its kernel must allow one): {error}")


def test_humaneval_grades_what_the_code_does(tmp_path):
    require_sandbox()
    task = humaneval_task(tmp_path)
    conversation = task[0]
    assert task.grade(conversation, said(reference_text(conversation)))
    assert task.grade(conversation, said("```python\n" + PROMPT + BODY + "```"))
    for wrong in (
        "    return 3\n",
        "    import sys; sys.exit(0)\n",
        "    raise SystemExit\n",
        "    import os; os._exit(0)\n",
        "```python\nimport sys\nsys.exit(0)\n```",
        ALWAYS_EQUAL,
        "",
        "I do not know.",
    ):
        assert not task.grade(conversation, said(wrong)), wrong


# ---------------------------------------------------------------------------------------------------------------------
# SmolTalk, names


def test_smoltalk_reads_parts_and_drops_other_columns(tmp_path):
    turn = lambda role, text: {"role": role, "content": text, "weight": 1}  # noqa: E731
    rows = [{"messages": [turn("user", f"Hi {i}"), turn("assistant", "Hello")], "source": "x"} for i in range(6)]
    for part in range(2):
        pq.write_table(
            pa.Table.from_pylist(rows[part * 3 : part * 3 + 3]),
            tmp_path / f"smoltalk_train-0000{part}-of-00004.parquet",
        )
    task = SmolTalk("train", tmp_path)
    assert sorted(task[i]["messages"][0]["content"] for i in range(6)) == [f"Hi {i}" for i in range(6)]
    assert task[0]["messages"][1] == {"role": "assistant", "content": "Hello"} and set(task[0]) == {"messages"}
    with pytest.raises(NotImplementedError):
        task.grade(task[0], said("Hello"))


def test_evaluation_takes_what_is_there_and_says_what_is_not(tmp_path):
    write(tmp_path / "arc_easy_validation.jsonl", [arc_row(0)])
    write(tmp_path / "mmlu_test.jsonl", [mmlu_row(0)])
    write(tmp_path / "mmlu_validation.jsonl", [mmlu_row(0)] * 2)
    assert evaluation_task("ARC-Easy", tmp_path).split == "validation"
    assert evaluation_task("MMLU", tmp_path).split == "test"
    tasks, left_out = evaluation_tasks((), tmp_path)
    names = [task.name for task in tasks]
    assert names[:2] == ["ARC-Easy", "MMLU"] and "Spelling" in names
    assert len(left_out) == 1 and "not here: ARC-Challenge, GSM8K, HumanEval (" in left_out[0]
    assert [task.name for task in evaluation_tasks(("MMLU",), tmp_path)[0]] == ["MMLU"]
    with pytest.raises(MissingFile, match="gsm8k_test"):
        evaluation_tasks(("MMLU", "GSM8K"), tmp_path)
    with pytest.raises(SystemExit, match="No task is called Spelin"):
        evaluation_tasks(("Spelin",), tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The published sets themselves, where they are

EVALS = os.environ.get("NANOCHAT_EVALS")  # a folder as `python -m tasks.published` makes it
SIZES = {"ARC-Easy": (570, 2376), "ARC-Challenge": (299, 1172), "MMLU": (14042,), "GSM8K": (1319,), "HumanEval": (164,)}

if EVALS:  # not a skip: no package brings these files

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_a_planted_oracle_is_always_right_and_a_planted_fool_never(name):
        """On every item of every published set. HumanEval runs all its canonical solutions in the sandbox."""
        task = evaluation_task(name, Path(EVALS))
        assert len(task) in SIZES[name]
        if name == "HumanEval":
            require_sandbox()
        for conversation in map(task.__getitem__, range(len(task))):
            content = conversation["messages"][-1]["content"]
            assert task.grade(conversation, said(visible_text(content), content if isinstance(content, list) else None))
            wrong = "    pass\n" if name == "HumanEval" else "#### -123456.5" if name == "GSM8K" else None
            letters = [letter for letter in conversation.get("letters", ()) if letter != content]
            assert not any(task.grade(conversation, said(answer)) for answer in ([wrong] if wrong else letters))
        if name == "MMLU":
            assert len({task[i]["subject"] for i in range(len(task))}) == 57
