"""Published shards: fetched while training already runs, or made anew from what they were made of.

In: a source of sources.py. Out: a dataset folder, and its manifest.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import Progress, base_dir
from nanochat.corpus import SHARD_CHARACTERS
from nanochat.datafolder import data_dir, exclusive, read_manifest
from nanochat.download import download_all
from nanochat.files import hidden, publish, recover, write_json
from nanochat.repackage import repackage
from nanochat.sources import PUBLISHED, SOURCES, mirrored, upstream_files


def fetch_published(name: str, n: int, workers: int = 8, mirror: str = "", **options) -> dict:
    """The first `n` training shards of a published source (-1: all) and its validation shard, those not here yet.

    Training may start while this runs (see `shards`); another download of the same source is waited for. SystemExit
    with what is missing if a shard cannot be had. `options` go to `download`.
    """
    source, folder = PUBLISHED[name], data_dir(name)
    names = [f"shard_{i:05d}.parquet" for i in range(source.last + 1)]
    wanted = {"val": names[-1:], "train": names[:-1] if n < 0 else names[:-1][:n]}  # validation first: all need it
    with exclusive(name, wait=True):
        places = {folder / split / shard: shard for split in wanted for shard in wanted[split]}
        jobs = [(mirrored(source.url(shard), mirror), path) for path, shard in places.items()]
        _check_room(sum(not path.exists() for path in places) * source.shard_mb / 1000, folder)
        if (folder / "manifest.json").exists():
            if read_manifest(folder / "manifest.json").get("fingerprint") == source.upstream:
                raise SystemExit(f"{folder} was made by --prepare: its shards are others. Move it away to download.")
        here = {split: {path.name for path in (folder / split).glob("shard_*.parquet")} for split in wanted}
        manifest = {"name": name, "source": source.url(""), "fingerprint": source.url("")}
        manifest |= {split: {"shards": sorted(here[split] | set(wanted[split]))} for split in wanted}
        write_json(folder / "manifest.json", manifest)
        try:
            failed = download_all(jobs, workers, stage=name, check=_check_shard, **options)
        except KeyboardInterrupt:
            raise SystemExit("Stopped. What has arrived is kept: the same command goes on from there.") from None
        _count_documents(folder, manifest)
    if failed:
        lines = [f"  {path.parent.name}/{path.name}: {reason}" for path, reason in sorted(failed.items())]
        head = f"{len(failed)} of {len(jobs)} shards of {name} are missing:"
        tail = f"The others are in {folder}.\nRun the same command again: it fetches only what is missing."
        raise SystemExit("\n".join([head, *lines, tail]))
    return manifest


def fetch_in_background(name: str, n: int, workers: int, mirror: str, first: int) -> subprocess.Popen:
    """`fetch_published` as a process of its own; returns it when the first shards are here. SystemExit with its last
    words if it fails before."""
    folder = data_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "download.log"
    with open(log, "w") as file:
        flags = [f"-n={n}", f"--source={name}", f"-w={workers}", f"--mirror={mirror}"]
        command = [sys.executable, "-m", "nanochat.dataset", *flags]
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
    last = PUBLISHED[name].last
    needed = [folder / "val" / f"shard_{last:05d}.parquet"]
    needed += [folder / "train" / f"shard_{i:05d}.parquet" for i in range(min(first, last if n < 0 else n))]
    progress = Progress(name, len(needed), "files")
    # Until its manifest says what it will bring, a reader would not know what to wait for.
    while process.poll() is None and not (_asks_for(folder, n, last) and all(path.exists() for path in needed)):
        progress.update(min(sum(path.exists() for path in needed), len(needed) - 0.5))
        time.sleep(0.2)
    if process.poll():
        raise SystemExit(f"The download failed:\n{log.read_text()[-2000:]}")
    progress.update(len(needed))
    print(f"The first {len(needed)} shards of {name} are here; {log} tells of the rest (process {process.pid}).")
    return process


def _asks_for(folder: Path, n: int, last: int) -> bool:
    path = folder / "manifest.json"
    return path.exists() and len(read_manifest(path)["train"]["shards"]) >= (last if n < 0 else min(n, last))


def _check_room(gigabytes: float, folder: Path) -> None:
    if gigabytes > (free := shutil.disk_usage(base_dir()).free / 1e9):
        raise SystemExit(
            f"These shards need about {gigabytes:,.1f} GB; {folder} has {free:,.1f}. Ask for fewer with -n."
        )


def _count_documents(folder: Path, manifest: dict) -> None:
    """Complete the manifest with the documents of the shards that are here, and write it."""
    for split in ("train", "val"):
        here = [path for path in (folder / split / shard for shard in manifest[split]["shards"]) if path.exists()]
        manifest[split]["documents"] = sum(pq.read_metadata(path).num_rows for path in here)
    write_json(folder / "manifest.json", manifest)


def rebuild_published(name: str, path: Path | None = None, workers: int = 8, mirror: str = "") -> dict:
    """Make the shards of a published source from the set that it was made of: fetch that (or read it under `path`),
    shuffle all of it, cut it into shards. Then the dataset is as if its shards had been downloaded, but for the order
    of the documents. dev/DATA.md says what it takes. SystemExit if that set cannot be had, or is too small."""
    source, folder = PUBLISHED[name], data_dir(name)
    if path is None:
        path = folder.with_name(f"{name}-upstream")
        jobs = [(url, path / Path(url).name) for url in upstream_files(source, mirror)]
        if failed := download_all(jobs, workers, stage=f"{name} upstream"):
            raise SystemExit("\n".join(f"{file}: {reason}" for file, reason in failed.items()))
    files = sorted(Path(path).glob("**/*.parquet"))
    if not files:
        raise SystemExit(f"There are no .parquet files under {path}.")
    with exclusive(name):
        new = hidden(folder, "tmp")
        recover(folder)
        texts, total = upstream_texts(files, source.column), column_bytes(files, source.column)
        paths = repackage(texts, new / "train", total, SHARD_CHARACTERS)
        if len(paths) < 2:
            raise SystemExit(f"{path} makes {len(paths)} shard, too little to train on and to hold out from.")
        (new / "val").mkdir()
        os.replace(paths[-1], new / "val" / paths[-1].name)
        manifest = {"name": name, "source": f"{source.upstream}, shuffled", "fingerprint": source.upstream}
        manifest |= {"train": {"shards": [p.name for p in paths[:-1]]}, "val": {"shards": [paths[-1].name]}}
        _count_documents(new, manifest)
        publish(new, folder)
    return manifest


def column_bytes(files: list[Path], column: str) -> int:
    """Bytes of a column in all files, not compressed."""
    total = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise SystemExit(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}.")
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        total += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    return total


def upstream_texts(files: list[Path], column: str) -> Iterator[str]:
    """The documents of parquet files, a thousand in memory at a time."""
    decode = gpt2_decoder() if column == "tokens" else None
    progress, count = Progress("reading", len(files), "files"), 0
    for number, path in enumerate(files):
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            for done, batch in enumerate(file.iter_batches(batch_size=1024, columns=[column])):
                texts = [decode(value) if decode else value for value in batch.column(column).to_pylist() if value]
                yield from texts
                count += len(texts)
                part = min(1.0, (done + 1) * 1024 / file.metadata.num_rows)
                progress.update(number + part, documents=f"{count:,}")


def gpt2_decoder() -> Callable[[list[int]], str]:
    """Ids of GPT-2's tokens -> text, which is how ClimbMix is published."""
    try:
        import tiktoken  # its vocabulary comes from the network when it is first used
    except ImportError:
        raise SystemExit("ClimbMix comes as ids of GPT-2's tokens. To read them: pip install tiktoken") from None
    return tiktoken.get_encoding("gpt2").decode


def fetch_conversations(name: str, workers: int, mirror: str) -> None:
    """A chat set to where tasks/ look for it. SystemExit with what could not be had."""
    source, folder = SOURCES[name], base_dir() / "evals"
    jobs = [(mirrored(source.url(file), mirror), folder / f"{stem}.parquet") for stem, file in source.files]
    failed = download_all(jobs, workers, stage=name)
    if failed:
        raise SystemExit("\n".join(f"{path.name}: {reason}" for path, reason in failed.items()))
    print(f"{name} is in {folder}. {SOURCES[name].what}")


def _check_shard(path: Path) -> None:
    """ValueError unless the file is whole parquet with a column of text."""
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names or file.metadata.num_rows == 0:
                raise ValueError("it is no shard of documents: it has no rows with a column 'text'")
    except pa.ArrowException as error:
        raise ValueError(f"it is no parquet file ({error})") from error
