"""The user's own files -> documents, streaming: text, Markdown, HTML, JSONL and parquet, compressed or not.

In: a file or a folder. Out: (key, text) pairs, and an account of what could not be used. Memory stays bounded: a text
file too long to be one document is cut while it streams by.
"""

import io
import itertools
import json
import lzma
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import Progress

PIECE_CHARACTERS = 4_000
HUGE_CHARACTERS = 2_000_000  # a longer text file is not one document
FEW_DOCUMENTS = 20  # fewer than this are cut into pieces, so that some can be held out
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
LONGEST_LINE = 64_000_000  # characters of a line of JSON, or of a page of HTML; what is longer is left out
TEXT_FIELDS = ("text", "content", "body")
DECOMPRESS = {  # each raises OSError, EOFError or LZMAError for a stream that was cut short
    ".gz": lambda raw: pa.CompressedInputStream(raw, "gzip"),
    ".bz2": lambda raw: pa.CompressedInputStream(raw, "bz2"),
    ".zst": lambda raw: pa.CompressedInputStream(raw, "zstd"),
    ".xz": lzma.open,
}
READABLE = (
    f"{', '.join(TEXT_SUFFIXES + HTML_SUFFIXES)}, {', '.join(JSONL_SUFFIXES)} (field {' or '.join(TEXT_FIELDS)}), "
    f".parquet (such a column); all but parquet also as {', '.join(DECOMPRESS)}"
)


class Intake:
    """The text files under a path. Iterate over it once; then `account` says what it could not use."""

    def __init__(self, path: Path):
        self.skipped, self.unreadable, self.empty = Counter(), [], []
        self.files = [path] if path.is_file() else self._walk(path)
        self.bytes, self.bytes_done = sum(file.stat().st_size for file in self.files), 0

    def _walk(self, folder: Path) -> list[Path]:
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent) / name for name in names if not name.startswith(".")):
                if kind_of(path) and path.is_file():  # no link that leads nowhere, no pipe that nobody writes to
                    found.append(path)
                else:
                    self.skipped[path.suffix or "no suffix"] += 1
        random.Random(0).shuffle(found := sorted(found))  # neighbours in a folder are alike
        return found

    def documents(self) -> Iterator[tuple[str, str]]:
        """(key, text) of every document; the key is its title, else the text. A handful of long ones is cut up."""
        texts = iter(self)
        first = list(itertools.islice(texts, FEW_DOCUMENTS))
        if len(first) < FEW_DOCUMENTS:
            pieces = (piece.strip() for _, text in first for piece in split_text(io.StringIO(text)))
            first = [(piece, piece) for piece in pieces if piece]
        yield from itertools.chain(first, texts)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        readers = {"jsonl": read_jsonl, "parquet": read_parquet, "html": read_html}
        progress, count = Progress("reading", total=self.bytes, unit="%"), 0
        for path in self.files:
            before = count
            try:
                with open(path, "rb") as raw:
                    for key, text in readers.get(kind_of(path), read_text)(path, raw):
                        if text := text.strip():
                            count += 1
                            yield key or text, text
                        if count % 10 == 0 and not raw.closed:
                            done = min(self.bytes_done + raw.tell(), self.bytes - 1)
                            progress.update(done, documents=f"{count:,}")
                if count == before:
                    self.empty.append(str(path))
            except (OSError, EOFError, ValueError, lzma.LZMAError, pa.ArrowException) as error:
                reason = f"not UTF-8 text ({error})" if isinstance(error, UnicodeDecodeError) else str(error)
                self.unreadable.append(f"{path}: {reason or type(error).__name__}")
            self.bytes_done += path.stat().st_size if path.exists() else 0
        progress.update(self.bytes, documents=f"{count:,}")

    def account(self) -> str:
        """How many files were read, and by name those that were not."""
        lines = [
            f"{len(self.files):,} files, {len(self.empty):,} empty, {len(self.unreadable):,} not (wholly) readable."
        ]
        for label, names in (("empty", self.empty), ("unreadable", self.unreadable)):
            lines += [f"  {label}: {name}" for name in names[:10]]
            lines += [f"  ... and {len(names) - 10:,} more {label} ones"] if len(names) > 10 else []
        if self.skipped:
            kinds = ", ".join(suffix for suffix, _ in self.skipped.most_common(10))
            lines.append(f"  {self.skipped.total():,} files of other kinds left out: {kinds}")
        return "\n".join(lines)


def kind_of(path: Path) -> str:
    """ "text", "html", "jsonl", "parquet", or "" for a file that is none of them. book.txt.xz -> "text"."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix in DECOMPRESS:
        suffix = Path(path.stem).suffix.lower()
    kinds = {"text": TEXT_SUFFIXES, "html": HTML_SUFFIXES, "jsonl": JSONL_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "")


def open_text(path: Path, raw: io.BufferedReader) -> io.TextIOWrapper:
    """The decompressed characters of an open file; UnicodeDecodeError later on, if they are not UTF-8."""
    decompress = DECOMPRESS.get(path.suffix.lower())
    return io.TextIOWrapper(io.BufferedReader(decompress(raw)) if decompress else raw, encoding="utf-8-sig")


def read_text(path: Path, raw: io.BufferedReader) -> Iterator[tuple[str, str]]:
    """One document, or pieces of a huge one."""
    with open_text(path, raw) as file:
        head = file.read(HUGE_CHARACTERS)
        rest = iter(lambda: file.readline(PIECE_CHARACTERS), "")
        if following := next(rest, ""):
            yield from (("", piece) for piece in split_text(itertools.chain(io.StringIO(head), [following], rest)))
        else:
            yield "", head


def read_jsonl(path: Path, raw: io.BufferedReader) -> Iterator[tuple[str, str]]:
    """A document a line. ValueError at the end if there were lines without one; the good ones have been yielded."""
    bad, first = 0, 0
    with open_text(path, raw) as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text = next(row[field] for field in TEXT_FIELDS if isinstance(row.get(field), str))
                title = row.get("title")
            except (json.JSONDecodeError, RecursionError, AttributeError, StopIteration):
                bad, first = bad + 1, first or number
                continue
            yield title if isinstance(title, str) else "", text
    if bad:
        wanted = " or ".join(f'"{field}"' for field in TEXT_FIELDS)
        raise ValueError(f"{bad:,} lines are no JSON object with a string in {wanted}; the first is line {first}")


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a file; of one that is too long for memory only the beginning, which is no JSON."""
    while line := file.readline(LONGEST_LINE):
        yield line
        while len(line) == LONGEST_LINE and not line.endswith("\n"):
            line = file.readline(LONGEST_LINE)


class PageText(HTMLParser):
    """What a reader sees of an HTML page: `title`, and `text` with an empty line between blocks."""

    UNSEEN = {"script", "style", "noscript", "template", "head", "svg", "nav", "footer", "form", "iframe"}
    BLOCKS = {"p", "div", "li", "tr", "pre", "br", "blockquote", "section", "article", *(f"h{n}" for n in range(1, 7))}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.unseen, self.in_title, self.title, self.blocks = [], False, "", [""]

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.in_title = tag == "title" and self.unseen in ([], ["head"])
        if tag in self.UNSEEN or tag == "body":
            self.unseen = [] if tag == "body" else [*self.unseen, tag]  # a head may have no end
        if tag in self.BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_title = False
        if tag in self.unseen:
            del self.unseen[self.unseen.index(tag) :]
        if tag in self.BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
        elif not self.unseen:
            self.blocks[-1] += data

    @property
    def text(self) -> str:
        return "\n\n".join(block for block in (" ".join(block.split()) for block in self.blocks) if block)


def read_html(path: Path, raw: io.BufferedReader) -> Iterator[tuple[str, str]]:
    """One document: the text of a page, without what is not for reading. ValueError if it is too long for one."""
    with open_text(path, raw) as file:
        content = file.read(LONGEST_LINE)
        if file.read(1):
            raise ValueError(f"it is longer than {LONGEST_LINE:,} characters")
    page = PageText()
    page.feed(content)
    page.close()
    yield " ".join(page.title.split()), page.text


def read_parquet(path: Path, raw: io.BufferedReader) -> Iterator[tuple[str, str]]:
    """A document a row."""
    with pq.ParquetFile(raw, buffer_size=1 << 20) as file:
        schema = file.schema_arrow
        strings = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        text = next((name for name in TEXT_FIELDS if name in strings), None)
        if text is None:
            raise ValueError(f"no column {' or '.join(TEXT_FIELDS)} with strings; it has {', '.join(schema.names)}")
        for batch in file.iter_batches(batch_size=256, columns=[text] + ["title"] * ("title" in strings)):
            titles = batch.column("title").to_pylist() if "title" in strings else itertools.repeat("")
            yield from ((title or "", value or "") for title, value in zip(titles, batch.column(text).to_pylist()))


def split_text(lines: Iterable[str], size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a stream of lines at blank lines into pieces of about `size` characters, at most twice that and a line.

    The pieces, joined, are the text.
    """
    piece, length = [], 0
    for line in lines:
        piece.append(line)
        length += len(line)
        if length >= 2 * size or (length >= size and not line.strip()):
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)
