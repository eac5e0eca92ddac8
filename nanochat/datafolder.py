"""The folder of a dataset: its manifest, its shards, and the lock of whoever makes it.

In: the name of a dataset. Out: paths of shards, also of those that a download has still to bring, and documents. Who
makes a dataset is dataset.py and fetch.py.
"""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import base_dir
from nanochat.files import BadFile, hidden, read_json
from nanochat.sources import PUBLISHED

GRACE = 10.0  # seconds without a process that fetches a missing shard, until a reader gives up


def data_dir(name: str) -> Path:
    """Folder of a dataset. SystemExit if the name could lead out of the data folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise SystemExit(f"{name!r} is no name for a dataset: use letters, digits, '_', '-' and '.'.")
    return base_dir() / "data" / name


def require(name: str) -> dict:
    """The manifest of a dataset. SystemExit with the command to run if it is not there."""
    path = data_dir(name) / "manifest.json"
    if path.exists() and shards(name, "train") and shards(name, "val"):
        manifest = read_manifest(path)
        if name in PUBLISHED or is_whole(path.parent, manifest):  # what was published may be on its way
            return manifest
    flags = {"wiki": "--source wiki"} | {source: f"-n 8 --source {source}" for source in PUBLISHED}
    command = f"python -m nanochat.dataset {flags.get(name, f'--from PATH --name {name}')}"
    here = sorted(manifest.parent.name for manifest in (base_dir() / "data").glob("[!.]*/manifest.json"))
    instead = "".join(f"\nOr take what is here: --data={other}" for other in here if other != name)
    raise SystemExit(f"There is no complete dataset '{name}' in {data_dir(name)}. Make it: {command}{instead}")


def shards(name: str, split: str) -> list[Path]:
    """Paths of the shards of "train" or "val", in order. Of a published source they are all that were asked for, also
    those that are still to come: `wait_for` one before opening it."""
    assert split in ("train", "val")
    folder = data_dir(name)
    found = set((folder / split).glob("shard_*.parquet"))
    if name in PUBLISHED and (folder / "manifest.json").exists():
        found |= {folder / split / shard for shard in read_manifest(folder / "manifest.json")[split]["shards"]}
    return sorted(found)


def is_whole(folder: Path, manifest: dict) -> bool:
    """Whether all shards that the manifest lists are there."""
    return all((folder / split / shard).exists() for split in ("train", "val") for shard in manifest[split]["shards"])


def read_manifest(path: Path) -> dict:
    """A dataset's manifest. BadFile if it is none, or if it names what is no file of its folder."""
    manifest = read_json(path)
    try:
        names = [name for split in ("train", "val") for name in manifest[split]["shards"]]
    except (TypeError, KeyError) as error:
        raise BadFile(f"{path} is damaged: it does not list the shards of train and val.") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"shard_\d+\.parquet", name):
            raise BadFile(f"{path} is damaged: {name!r:.80} is no name of a shard.")
    return manifest


def wait_for(shard: Path) -> Path:
    """The path, as soon as the download that runs beside us has brought it. SystemExit if no download is running."""
    name, idle, shown = shard.parent.parent.name, 0.0, False
    while not shard.exists():
        idle = 0.0 if busy(name) else idle + 0.5
        if idle > GRACE and not shard.exists():
            command = f"python -m nanochat.dataset --source {name} -n"
            counts = len(shards(name, "train")), sum(path.exists() for path in shards(name, "train"))
            raise SystemExit(
                f"{shard} is missing and nobody is fetching it. For all that were asked for, run {command} {counts[0]} "
                f"again; to do without those that are missing, {command} {counts[1]}."
            )
        if not shown:
            print(f"waiting for {shard.name} of {name}, which is still being downloaded ...", flush=True)
            shown = True
        time.sleep(0.5)
    return shard


def documents(name: str, split: str, rank: int = 0, world_size: int = 1) -> Iterator[str]:
    """The documents of a dataset, in the order of its shards, one row group in memory at a time; of several ranks each
    reads every world_size-th row group."""
    require(name)
    number = itertools.count()
    for shard in shards(name, split):
        with open_shard(shard) as file:
            for group in range(file.num_row_groups):
                if next(number) % world_size == rank:
                    yield from read_texts(file, group, shard)


def open_shard(shard: Path) -> pq.ParquetFile:
    """As soon as it is there. BadFile if it is damaged."""
    with reading(wait_for(shard)):
        return pq.ParquetFile(shard, page_checksum_verification=True)


def read_texts(file: pq.ParquetFile, group: int, shard: Path) -> list[str]:
    """The documents of a row group of `shard`, which is open as `file`. BadFile if it is damaged."""
    with reading(shard):
        return file.read_row_group(group, columns=["text"]).column("text").to_pylist()


@contextmanager
def reading(shard: Path) -> Iterator[None]:
    """BadFile if what is done with this shard shows that it is damaged."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        raise BadFile(
            f"{shard} is damaged ({error}). Delete it and prepare the dataset again: python -m nanochat.dataset --help"
        ) from error


@contextmanager
def exclusive(name: str, wait: bool = False) -> Iterator[None]:
    """Hold the dataset's lock, which the system frees even if this process is killed. If somebody has it: wait, or
    SystemExit."""
    import fcntl  # not on Windows

    path = hidden(data_dir(name), "lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        for _ in range(20):  # `busy` of another process holds the lock for an instant
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            said = f"Another process is making the dataset '{name}' right now."
            if not wait:
                raise SystemExit(f"{said} Wait for it.")
            print(f"{said} Waiting for it ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def busy(name: str) -> bool:
    """Whether a process is making this dataset now."""
    import fcntl

    path = hidden(data_dir(name), "lock")
    if not path.exists():
        return False
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
