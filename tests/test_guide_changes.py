"""The worked changes of docs/guide/changes.md: each applies to a copy of the repository, is short, and does what it
says when the commands below it are run. So does the command that makes one text of the repository."""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import require_corpus

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "guide" / "changes.md"
SECTIONS = {"A task": "task", "A tool": "tool", "A personality": "personality", "A dataset": "dataset"}


def blocks(language: str) -> dict[str, str]:
    """Heading -> what its blocks in that language hold."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    found = zip(parts[1::2], parts[2::2])
    return {title: "".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)) for title, text in found}


def copy_repository(folder: Path) -> Path:
    """The code, and the machine code that numba has kept beside it, which is valid for files of the same age."""
    for name in ("nanochat", "tasks", "scripts", "tests", "dev"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path):
    """A server with the shards of the dataset that the page adds. Its address."""
    folder = tmp_path / "server" / "datasets" / "me" / "stories" / "resolve" / "main"
    folder.mkdir(parents=True)
    for number in range(2):
        texts = [f"Story {number} of {i}: the fox went to the {i}th river and slept.\n" * 20 for i in range(60)]
        pq.write_table(pa.table({"text": texts}), folder / f"shard_{number:05d}.parquet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "server"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown(), server.server_close()


def test_each_change_is_short_applies_and_works(tmp_path, published):
    require_corpus()
    if not shutil.which("git"):
        pytest.skip("git applies the changes of the page: apt-get install git")
    arguments = []
    commands, changes = blocks("sh"), blocks("diff")
    for title, name in SECTIONS.items():
        folder = copy_repository(tmp_path / name)
        change = changes[title]
        added = [line for line in change.splitlines() if re.match(r"\+(?!\+\+ )", line)]
        assert 0 < len(added) < 30, f"{title}: {len(added)} lines"
        applied = subprocess.run(["git", "apply", "-v"], cwd=folder, input=change, capture_output=True, text=True)
        assert applied.returncode == 0, f"{title}: {applied.stderr}"
        assert "Skipped" not in applied.stderr, applied.stderr
        lines = [
            f"{line} --mirror={published}" if "nanochat.dataset" in line else line for line in lines_of(commands[title])
        ]
        assert lines
        arguments += [name, str(folder), "\n".join(lines)]
    worker = [sys.executable, str(ROOT / "tests" / "changes_worker.py"), str(tmp_path / "home"), *arguments]
    done = subprocess.run(worker, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    for name in SECTIONS.values():
        assert f"{name} is as it should be" in done.stdout


def lines_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def test_the_repository_becomes_one_text(tmp_path):
    (block,) = [text for title, text in blocks("sh").items() if title.startswith("Ask a language model")]
    line = block.splitlines()[0].replace("> nanochat.txt", f"> {tmp_path / 'all.txt'}")
    if subprocess.run(["sh", "-c", "git ls-files"], cwd=ROOT, capture_output=True).stdout == b"":
        pytest.skip("the page's command asks git for the files: apt-get install git, and git clone")
    subprocess.run(["sh", "-c", line], cwd=ROOT, check=True)
    text = (tmp_path / "all.txt").read_text(encoding="utf-8")
    for name in ("nanochat/gpt.py", "README.md", "quickstart.sh", "nanochat/ui/chat.js", "docs/guide/changes.md"):
        content = (ROOT / name).read_text(encoding="utf-8")
        assert f"\n=== {name}\n{content}" in text
