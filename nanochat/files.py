"""Files and folders that are whole or not there: a crash at any instant leaves the old content or the new, never half.

In: a path, and what should be there. Out: the same on the disk, read back, or hashed. Nothing here knows what it means.
"""

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path


class BadFile(ValueError):
    """A file is not what it should be. The message names it, and is all that a user needs to see (configurator.py)."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk leaves no litter


def write_json(path: Path, value) -> None:
    """Replace a JSON file whole."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: Path, max_bytes: int = 64 * 2**20):
    """The value in a JSON file. OSError if it cannot be read, BadFile if it is not JSON.

    Objects take up to twenty times the room of their JSON, so a file of more than `max_bytes` is refused unread.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise BadFile(f"{path} is damaged: it has {size:,} bytes, and no such file has more than {max_bytes:,}.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} is not a valid JSON file ({error}).") from error


def read_jsonl(path: Path) -> list:
    """The value in each line of a .jsonl or .jsonl.gz that is not blank. BadFile naming the line."""
    values = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    values.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise BadFile(f"{path}, line {number}: not JSON ({error}).") from error
    return values


def sha256_of(path: Path) -> str:
    """In hexadecimal, a megabyte in memory at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Folders: made as hidden(path, "tmp"), then published


def hidden(path: Path, kind: str) -> Path:
    """The name beside `path` that it has while it is half written ("tmp") or about to be replaced ("old")."""
    return path.with_name(f".{path.name}.{kind}")


def publish(temporary: Path, path: Path) -> None:
    """Give a folder its final name, in place of a folder that has it already."""
    old = hidden(path, "old")
    if path.exists():
        os.rename(path, old)
    os.rename(temporary, path)
    flush_folder(path.parent)
    if old.exists():
        shutil.rmtree(old)


def recover(path: Path) -> None:
    """Finish what a crash interrupted: put back the folder that was about to be replaced, delete what is half written.
    For whoever writes there, and nobody else does."""
    old = hidden(path, "old")
    if old.exists() and not path.exists():
        os.rename(old, path)
    for left in (old, hidden(path, "tmp")):
        if left.is_dir():
            shutil.rmtree(left)


def remove(path: Path) -> None:
    """Delete a folder; a crash meanwhile leaves no half of it under its name."""
    os.rename(path, hidden(path, "tmp"))
    shutil.rmtree(hidden(path, "tmp"))


def flush_folder(folder: Path) -> None:
    """Have the names in it on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
