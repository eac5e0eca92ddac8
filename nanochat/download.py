"""Files from the network: resumed, retried, verified, atomic; many at once with one progress line.

In: addresses and the paths where the files belong. Out: complete files, or a DownloadError that says why.
A file under its final name is always whole; what is on its way lies beside it as `<name>.part`.
"""

import errno
import gzip
import os
import random
import re
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from time import monotonic, time

import httpx

from nanochat.common import Progress
from nanochat.files import sha256_of, write_bytes

CHUNK = 1 << 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHA256 = re.compile(r"[0-9a-f]{64}")


class DownloadError(Exception):
    """A file could not be fetched, and trying again now would not help."""


class _Retry(Exception):
    """This attempt failed; `after` is how long the server asks to be left alone (seconds), if it does."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


def new_client() -> httpx.Client:
    """A client that threads may share. 30 seconds without a byte count as a dropped connection."""
    return httpx.Client(
        follow_redirects=True, timeout=httpx.Timeout(30, connect=10), headers={"Accept-Encoding": "identity"}
    )


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    size: int | None = None,
    *,
    check: Callable[[Path], None] | None = None,
    client: httpx.Client | None = None,
    attempts: int = 6,
    delay: float = 1.0,
    stop: threading.Event | None = None,
    on_bytes: Callable[[tuple[int, int | None]], None] | None = None,
) -> Path:
    """Fetch `url` to `path` and return the path; a file that is already there is not fetched again.

    A broken transfer goes on where it stopped, in this call or in a later one, if the server or `sha256` can tell that
    it is still the same file. `sha256` and `size` (bytes) are verified when given, as are those that a Hugging Face hub
    states, and archives (.gz, .zip) are read to their end; `check(file)` may raise ValueError for content that is not
    what it should be. Up to `attempts` tries in a row without a new byte, `delay` seconds apart at first
    and doubling, or as long as the server asks. `on_bytes((have, total))` hears of progress, `stop` ends the work.
    Raises DownloadError with the reason, or OSError if the disk is full.
    """
    if path.exists() and size in (None, path.stat().st_size):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, stop = path.with_name(path.name + ".part"), stop or threading.Event()
    own_client = None if client else new_client()
    failures, furthest = 0, _size(part)
    try:
        while True:
            try:
                if not sha256 and not _validator(part):
                    part.unlink(missing_ok=True)  # nothing could tell whether the rest belongs to these bytes
                known_size, known_sha256 = _fetch(client or own_client, url, part, stop, on_bytes or (lambda _: None))
                _verify(part, path.suffix, size or known_size, sha256 or known_sha256, check)
                os.replace(part, path)
                _validator_file(part).unlink(missing_ok=True)
                return path
            except (_Retry, httpx.HTTPError) as error:
                failures = 1 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                reason = str(error) or type(error).__name__
                if failures >= attempts:
                    raise DownloadError(f"{url}: {reason} ({failures} attempts).") from error
                pause = min(60.0, delay * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)
                if stop.wait(max(pause, min(getattr(error, "after", None) or 0.0, 300.0))):
                    raise DownloadError(f"{url}: stopped.") from error
    finally:
        if own_client:
            own_client.close()


def _fetch(client, url: str, part: Path, stop: threading.Event, on_bytes) -> tuple[int | None, str | None]:
    """One attempt: add to `part` what it lacks. Returns the size and sha256 that the server states, if it does."""
    have, validator = _size(part), _validator(part)
    headers = {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {}) if have else {}
    with client.stream("GET", url, headers=headers) as response:
        status, told = response.status_code, response.headers
        if status == 416 and told.get("content-range") == f"bytes */{have}":
            return have, None  # all of it had come already
        if status == 416:  # the part is longer than the file
            part.unlink(missing_ok=True)
            raise _Retry("the server has no bytes beyond those already here")
        if status in (408, 425, 429) or status >= 500:
            raise _Retry(f"HTTP {status} from the server", _retry_after(response))
        if status not in (200, 206):
            raise DownloadError(f"{url}: HTTP {status} {response.reason_phrase}.")
        open_ones = [each.url for each in [*response.history, response] if each.url.scheme != "https"]
        if url.startswith("https:") and open_ones:
            raise DownloadError(f"{url}: it leads to {open_ones[0]}, which is not encrypted.")
        if told.get("content-encoding", "identity") != "identity":
            raise DownloadError(f"{url}: the server sends it as {told['content-encoding']}, which was not asked for.")
        linked = next((r.headers for r in [*response.history, response] if "x-linked-etag" in r.headers), {})
        known = linked.get("x-linked-etag", "").strip('"')
        known_sha256 = known if SHA256.fullmatch(known) else None
        if status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.get("content-range", ""))
            if not span or int(span[1]) != have:
                part.unlink(missing_ok=True)
                raise _Retry(f"the server did not go on from byte {have:,}, which was asked for")
            if validator and _version(response) not in ("", validator):
                part.unlink(missing_ok=True)
                raise _Retry("the file has changed on the server")
            total = None if span[2] == "*" else int(span[2])
        else:
            have, total = 0, int(told["content-length"]) if "content-length" in told else None
            part.unlink(missing_ok=True)  # before the new version is noted: it must never stand beside older bytes
            write_bytes(_validator_file(part), _version(response).encode())
        with open(part, "ab") as file:
            for chunk in response.iter_raw():
                if stop.is_set():
                    raise DownloadError(f"{url}: stopped.")
                file.write(chunk)
                have += len(chunk)
                on_bytes((have, total))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Retry(f"the connection ended after {have:,} of {total:,} bytes")
    return total, known_sha256


def _verify(part: Path, suffix: str, size: int | None, sha256: str | None, check) -> None:
    """Delete what is not the file that was asked for, and have it fetched again from the start."""
    try:
        if size is not None and _size(part) != size:
            raise ValueError(f"{_size(part):,} bytes came where {size:,} were expected")
        if sha256 is not None and (found := sha256_of(part)) != sha256:
            raise ValueError(f"the sha256 of what came is {found}, not {sha256}")
        check_archive(part, suffix)
        if check is not None:
            check(part)
    except ValueError as error:
        part.unlink(missing_ok=True)
        raise _Retry(str(error)) from error


def check_archive(path: Path, suffix: str) -> None:
    """ValueError if a file of the kind that `suffix` says, .gz or .zip, is cut short or damaged. Others pass."""
    try:
        if suffix == ".gz":
            if _size(path) == 0:
                raise EOFError("it is empty")  # which gzip would let pass
            with gzip.open(path) as file:
                while file.read(CHUNK):
                    pass
        elif suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    raise ValueError(f"{bad} in it is damaged")
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is no whole {suffix} archive ({error})") from error


def _version(response: httpx.Response) -> str:
    """What names this version of the file: a strong ETag, or the time of its last change; "" if there is neither."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified", "")  # a weak one promises nothing


def _validator(part: Path) -> str:
    """The version of the file that the bytes in `part` are of; "" if that is not known."""
    return _validator_file(part).read_text() if _size(part) and _validator_file(part).exists() else ""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the Retry-After header asks for: a number, or a date."""
    value = response.headers.get("retry-after", "")
    try:
        return float(value) if value.isdigit() else max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def download_all(jobs: list[tuple[str, Path]], workers: int, stage: str = "download", **options) -> dict[Path, str]:
    """Fetch (url, path) pairs, `workers` at a time, the first ones first. Returns {path: reason} of those that failed.

    `options` go to `download`. On Ctrl-C what has arrived stays, and the same call goes on from there; so it is if the
    disk is full, which is a SystemExit.
    """
    have: dict[Path, tuple[int, int | None]] = {}
    stop, failed, finished, start = threading.Event(), {}, set(), monotonic()
    progress = Progress(stage, total=len(jobs), unit="files")
    at_start = sum(_on_disk(path) for _, path in jobs)

    def show() -> None:
        under_way = sum(
            min(b / total, 0.99) for path, (b, total) in list(have.items()) if total and path not in finished
        )
        new = sum(_on_disk(path) for _, path in jobs) - at_start
        rate = new / 1e6 / max(monotonic() - start, 1e-9)
        fields = {"failed": len(failed)} if failed else {}
        progress.update(len(finished) + under_way, new=f"{new / 1e6:,.0f} MB", rate=f"{rate:,.1f} MB/s", **fields)

    with new_client() as client, ThreadPoolExecutor(workers) as pool:
        futures = {}
        for url, path in jobs:
            listen = partial(have.__setitem__, path)
            futures[pool.submit(download, url, path, client=client, stop=stop, on_bytes=listen, **options)] = path
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    finished.add(futures[future])
                    if error := future.exception():
                        failed[futures[future]] = str(error)
                    if isinstance(error, OSError) and error.errno in DISK_FULL:
                        raise SystemExit(
                            f"There is no room for {futures[future]} ({error.strerror}). What has arrived is kept: "
                            "make room, and the same command goes on from there."
                        )
                show()
        finally:  # also on Ctrl-C: the threads end at their next chunk
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _on_disk(path: Path) -> int:
    return _size(path) or _size(path.with_name(path.name + ".part"))
