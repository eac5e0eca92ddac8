"""A toy copy of everything that speedrun.sh downloads, served on this machine, so that it can be rehearsed offline.

python -m dev.mirror FOLDER       makes the files there, serves them, and writes its address to FOLDER/url

Shards are articles of the embedded corpus. The evaluation sets have the names and the columns of the published ones,
and rows that are made up here: what is scored on them means nothing.
"""

import gzip
import io
import json
import random
import shutil
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat import core_eval
from nanochat.dataset import wiki_articles
from nanochat.files import write_bytes
from nanochat.repackage import ROWS, repackage
from nanochat.sources import PUBLISHED
from tasks.registry import published_files

SHARDS = 3  # of training text; one more is validation
NOUNS = ("cat", "river", "stone", "moon", "engine", "letter")


def row(stem: str, number: int) -> dict:
    """A row of the published file `stem`."""
    a, b = random.Random(number).choices(range(2, 50), k=2)
    noun = NOUNS[number % len(NOUNS)]
    question, choices = f"What is {a} plus {b}, counted in {noun}s?", [str(a + b), str(a), str(b), str(a * b + 1)]
    if stem.startswith("arc"):
        labelled = {"text": choices, "label": [*"ABCD"]}
        return {"id": str(number), "question": question, "choices": labelled, "answerKey": "A"}
    if stem.startswith("mmlu"):
        return {"question": question, "subject": "sums", "choices": choices, "answer": 0}
    if stem.startswith("gsm8k"):
        return {"question": question, "answer": f"They are <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
    if stem.startswith("smoltalk"):
        turns = (("user", question), ("assistant", f"{a + b} {noun}s."), ("user", "Thanks!"), ("assistant", "Gladly."))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
    if stem == "HumanEval":
        prompt = f'def add_{number}(x):\n    """Return x plus {a}."""\n'
        test = f"def check(candidate):\n    assert candidate({b}) == {a + b}\n"
        solution = f"    return x + {a}\n"
        return {"prompt": prompt, "canonical_solution": solution, "test": test, "entry_point": f"add_{number}"}
    raise ValueError(f"{stem} is no file that this mirror knows: add its rows here.")


def core_row(kind: str, number: int) -> dict:
    noun, other = NOUNS[number % len(NOUNS)], NOUNS[(number + 1) % len(NOUNS)]
    if kind == "multiple_choice":
        return {"query": f"The {noun} is near the", "choices": [other, noun], "gold": number % 2}
    if kind == "schema":
        return {"context_options": [f"The {noun}", f"The {other}"], "continuation": "is old.", "gold": number % 2}
    return {"context": f"The {noun} and the {other}. The {noun} and the ", "continuation": other}


def encoded(rows: list[dict], url: str) -> bytes:
    if url.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO())
        return buffer.getvalue()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if url.endswith(".gz") else lines


def core_bundle() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as bundle:
        for task in {task.file: task for task in core_eval.CORE_TASKS}.values():
            rows = [core_row(task.kind, number) for number in range(14)]
            bundle.writestr(f"eval_bundle/{task.file}", "".join(json.dumps(row) + "\n" for row in rows))
        lines = [f"{task.name},{0 if task.kind == 'language_modeling' else 50}" for task in core_eval.CORE_TASKS]
        bundle.writestr(f"eval_bundle/{core_eval.BASELINES}", "\n".join(["Eval Task,Random baseline", *lines]))
    return buffer.getvalue()


def make(folder: Path) -> None:
    def place(url: str) -> Path:
        return folder / urlsplit(url).path.lstrip("/")

    source = PUBLISHED["climbmix"]
    articles = [f"{a['title']}\n\n{a['extract']}" for a in wiki_articles()[: (SHARDS + 1) * ROWS]]
    shards = repackage(articles, folder / "made", sum(map(len, articles)), characters=1)
    for number, shard in zip([*range(SHARDS), source.last], shards):
        target = place(source.url(f"shard_{number:05d}.parquet"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(shard, target)
    for stem, url, _ in published_files():
        count = 600 if stem == "gsm8k_train" else 40  # of GSM8K's, 500 are for validation
        write_bytes(place(url), encoded([row(stem, number) for number in range(count)], url))
    write_bytes(place(core_eval.URL), core_bundle())


def main(folder: Path) -> None:
    make(folder)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    SimpleHTTPRequestHandler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    write_bytes(folder / "url", f"http://127.0.0.1:{server.server_address[1]}".encode())
    server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("Usage: python -m dev.mirror FOLDER")
    main(Path(sys.argv[1]))
