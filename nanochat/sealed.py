"""Sealed folders: a manifest holds the size and sha256 of every file, and of itself, so that no wrong byte goes unseen.

In: a folder of finished files. Out: the same with its manifest, ready to be published; later, a BadFile that names
the first file with a wrong byte. Checkpoints are sealed folders; nothing here knows what is in them.
"""

import hashlib
import json
import math
import os
import stat
from pathlib import Path

from nanochat.common import Progress
from nanochat.files import BadFile, flush_folder, read_json, sha256_of, write_bytes

FORMAT = 1
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 2**20  # of a manifest and what stands beside it

# ---------------------------------------------------------------------------------------------------------------------
# Writing: files into a hidden folder (files.py), then seal, then publish


def seal(folder: Path, saved_at: float) -> None:
    """Flush every file to the disk, then write the manifest. saved_at: seconds since 1970."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)  # safetensors makes its files readable by their owner only
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    write_bytes(folder / MANIFEST, _manifest_bytes(saved_at, files))
    flush_folder(folder)


def _manifest_bytes(saved_at: float, files: dict) -> bytes:
    content = {"format": FORMAT, "saved_at": saved_at, "files": files}
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps(content, indent=1) + "\n").encode()


# ---------------------------------------------------------------------------------------------------------------------
# Reading: every file is held against the manifest before anything in it is believed


def verify(folder: Path, names: tuple[str, ...] | None = None) -> None:
    """Hold the named files (or all) against the manifest. BadFile naming the first that is missing or wrong."""
    files = read_manifest(folder)["files"]
    for name in names or ():
        if name not in files:
            raise BadFile(f"{folder / MANIFEST} does not list {name}: the folder was saved without it.")
    chosen = {name: entry for name, entry in files.items() if names is None or name in names}
    for name, entry in chosen.items():  # all the cheap looks before the first expensive one
        size = regular_size(folder / name)
        if size != entry["size"]:
            raise BadFile(f"{folder / name} is damaged: it has {size:,} bytes, not {entry['size']:,}.")
    total, done = sum(entry["size"] for entry in chosen.values()), 0
    progress = Progress("verify", total / 1e6, "MB") if total > 2**31 else None  # what takes longer than about 2 s
    for name, entry in chosen.items():
        try:
            same = sha256_of(folder / name) == entry["sha256"]
        except OSError as error:  # a disk that cannot read a block is damage too
            raise BadFile(f"{folder / name} cannot be read: {error.strerror}.") from error
        if not same:
            raise BadFile(f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}.")
        done += entry["size"]
        if progress:
            progress.update(done / 1e6)


def read_manifest(folder: Path) -> dict:
    """format, saved_at, files: name -> size and sha256. BadFile if it is damaged or names an outside file."""
    path = folder / MANIFEST
    content = read_object(path, {"format", "saved_at", "files", "sha256"})
    if content["format"] != FORMAT:
        raise BadFile(
            f"{path} is of format {content['format']!r:.40}, and this code reads format {FORMAT}: "
            "update nanochat, or the file is damaged."
        )
    files, saved_at = content["files"], content["saved_at"]
    if not isinstance(files, dict) or not isinstance(saved_at, float) or not math.isfinite(saved_at):
        raise BadFile(f"{path} is damaged: its files or its saved_at are not what they should be.")
    for name, entry in files.items():
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise BadFile(f"{path} names {name!r:.80}, which is not a file in its folder.")
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"} or type(entry["size"]) is not int:
            raise BadFile(f"{path} is damaged: the entry of {name!r:.80} is not a size and a sha256.")
    if _manifest_bytes(saved_at, files) != path.read_bytes():
        raise BadFile(f"{path} is damaged: its own sha256 does not fit.")
    return content


def read_object(path: Path, keys: set[str]) -> dict:
    """The object in a JSON file, which must have exactly these keys. BadFile naming the file and the key."""
    regular_size(path)
    try:
        return check_keys(read_json(path, MAX_JSON_BYTES), keys, path)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}.") from error


def check_keys(value, keys: set[str], where) -> dict:
    """`value` if it is a dict with exactly these keys. BadFile saying where, and which key."""
    if not isinstance(value, dict):
        raise BadFile(f"{where} should hold an object with the keys {', '.join(sorted(keys))}.")
    for name in sorted(keys - set(value)):
        raise BadFile(f"{where} lacks the key {name!r}.")
    for name in sorted(set(value) - keys):
        raise BadFile(f"{where} has the unknown key {name!r:.80}.")
    return value


def regular_size(path: Path) -> int:
    """Bytes of a file. BadFile if it is missing, or a link (which may lead out of the folder), or no plain file."""
    try:
        status = path.lstat()
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(f"{path} is a link or not a plain file.")
    return status.st_size
