"""The user's own files -> documents, streaming: text, Markdown, JSONL and parquet, compressed or not.

In: a file or a folder. Out: (key, text) pairs, and an account of what could not be used. Memory stays bounded: a text
file too long to be one document is cut while it streams by.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nanochat.common import Progress

PIECE_CHARACTERS = 4_000
FEW_DOCUMENTS = 20  # fewer than this are cut into pieces, so that some can be held out
HUGE_CHARACTERS = 2_000_000  # a longer text file is not one document
TEXT_SUFFIXES = {".txt", ".md", ".text", ".markdown"}
TEXT_FIELDS = ("text", "content", "body")
OPENERS = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda raw: io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)),
}
READABLE = f"{', '.join(sorted(TEXT_SUFFIXES))}, .jsonl (field {' or '.join(TEXT_FIELDS)}), .parquet; text and JSONL also with {', '.join(OPENERS)}"


class Intake:
    """Turns files into (key, text) documents and remembers what it could not use."""

    def __init__(self, path: Path):
        self.root, self.skipped, self.unreadable, self.empty = path, Counter(), [], []
        self.files = [path] if path.is_file() else self._walk(path)
        self.bytes = sum(file.stat().st_size for file in self.files)
        self.bytes_before, self.raw = 0, None

    def _walk(self, folder: Path) -> list[Path]:
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent) / name for name in names if not name.startswith(".")):
                if self.kind(path):
                    found.append(path)
                else:
                    self.skipped[path.suffix or "(no suffix)"] += 1
        random.Random(0).shuffle(found := sorted(found))  # neighbours in a folder are alike
        return found

    @staticmethod
    def kind(path: Path) -> str:
        """ "text", "jsonl", "parquet", or "" for a file that is none of them."""
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return "parquet"
        if suffix in OPENERS:
            suffix = Path(path.stem).suffix.lower()
        return "text" if suffix in TEXT_SUFFIXES else "jsonl" if suffix in (".jsonl", ".ndjson") else ""

    def documents(self) -> Iterator[tuple[str, str]]:
        """(key, text) of every document, with a progress line; a handful of long documents is cut into pieces."""
        progress = Progress("reading", total=self.bytes / 1e6, unit="MB")
        texts = self._watched(progress)
        first = list(itertools.islice(texts, FEW_DOCUMENTS))
        if len(first) < FEW_DOCUMENTS:
            pieces = (piece.strip() for _, text in first for piece in split_text(io.StringIO(text)))
            first = [(piece, piece) for piece in pieces if piece]
        yield from itertools.chain(first, texts)

    def _watched(self, progress: Progress) -> Iterator[tuple[str, str]]:
        for count, document in enumerate(self, 1):
            yield document
            if count % 100 == 0:
                progress.update(self.bytes_done / 1e6, documents=f"{count:,}")

    def account(self) -> str:
        """What was read, and by name what was not."""
        lines = [
            f"{len(self.files):,} files read, {len(self.empty):,} of them without text, {len(self.unreadable):,} not or not wholly readable."
        ]
        lines += [f"  empty: {name}" for name in self.empty[:10]] + [
            f"  unreadable: {reason}" for reason in self.unreadable[:10]
        ]
        if self.skipped:
            lines.append(
                f"  {self.skipped.total():,} files of other kinds left out: {', '.join(sorted(self.skipped))}."
            )
        return "\n".join(lines)

    @property
    def bytes_done(self) -> int:
        return self.bytes_before + (self.raw.tell() if self.raw and not self.raw.closed else 0)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        readers = {
            "text": self._read_text,
            "jsonl": self._read_jsonl,
            "parquet": self._read_parquet,
            "": self._read_text,
        }
        for path in self.files:
            found = 0
            try:
                with open(path, "rb") as self.raw:
                    for key, text in readers[self.kind(path)](path):
                        text = text.strip()
                        if text:
                            found += 1
                            yield (key or text), text
                if not found:
                    self.empty.append(str(path))
            except (OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError, pa.ArrowException) as error:
                self.unreadable.append(f"{path}: {error or type(error).__name__}")
            self.bytes_before += path.stat().st_size if path.exists() else 0

    def _open(self, path: Path) -> io.TextIOWrapper:
        opener = OPENERS.get(path.suffix.lower(), lambda raw: raw)
        return io.TextIOWrapper(opener(self.raw), encoding="utf-8-sig")

    def _read_text(self, path: Path) -> Iterator[tuple[str, str]]:
        with self._open(path) as file:
            head = file.read(HUGE_CHARACTERS)
            rest = iter(lambda: file.readline(PIECE_CHARACTERS), "")
            if (following := next(rest, "")) == "":
                yield "", head
            else:
                lines = itertools.chain(io.StringIO(head), [following], rest)
                yield from (("", piece) for piece in split_text(lines))

    def _read_jsonl(self, path: Path) -> Iterator[tuple[str, str]]:
        bad, first = 0, ""
        with self._open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line) if line.strip() else {"text": ""}
                    yield (
                        str(row.get("title") or ""),
                        next(row[field] for field in TEXT_FIELDS if isinstance(row.get(field), str)),
                    )
                except (json.JSONDecodeError, AttributeError, StopIteration):
                    bad, first = bad + 1, first or f"line {number}"
        if bad:
            raise ValueError(
                f"{bad:,} lines without a JSON object that has {' or '.join(TEXT_FIELDS)}, the first at {first}"
            )

    def _read_parquet(self, path: Path) -> Iterator[tuple[str, str]]:
        with pq.ParquetFile(self.raw) as file:
            names = file.schema_arrow.names
            column = next((field for field in TEXT_FIELDS if field in names), None)
            if column is None:
                raise ValueError(f"no column {' or '.join(TEXT_FIELDS)} among {', '.join(names)}")
            columns = [column] + ["title"] * ("title" in names)
            for batch in file.iter_batches(batch_size=256, columns=columns):
                titles = batch.column("title").to_pylist() if "title" in names else itertools.repeat("")
                yield from (
                    (str(t or ""), s) for t, s in zip(titles, batch.column(column).to_pylist()) if isinstance(s, str)
                )


def split_text(lines: Iterable[str], size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a stream of lines at blank lines into pieces of about `size` characters, never above twice that plus a line.
    The pieces joined are the text."""
    piece, length = [], 0
    for line in lines:
        piece.append(line)
        length += len(line)
        if (length >= size and not line.strip()) or length >= 2 * size:
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)
