"""Documents -> a dataset folder: hold-out, exact duplicates, shuffling, parquet shards, statistics.

In: a stream of (key, text). Out: {train,val}/shard_*.parquet and what manifest.json says of them. The stream may be
longer than memory: what stays of a document is a hash of 8 bytes (about 70 as Python keeps them).
"""

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HELD_OUT = 0.05  # of the documents are validation
SHARD_CHARACTERS = 250_000_000  # about 100 MB of zstd
GROUP_CHARACTERS, GROUP_DOCUMENTS = 4_000_000, 1024  # a row group is what a reader holds at once
WINDOW_CHARACTERS = 32_000_000  # what is shuffled at once


def held_out_score(key: str) -> float:
    """A number in [0, 1) that belongs to the key on every machine and for ever: the least ones are held out."""
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def write_corpus(folder: Path, texts: Iterable[tuple[str, str]]) -> dict:
    """Write each distinct text once, to train or val by the hash of its key; returns the counts for the manifest.

    A corpus so small that chance holds out nothing gives up the document that a larger fraction would take first.
    """
    train, val = ShardWriter(folder / "train", seed=0), ShardWriter(folder / "val", seed=1)
    seen, duplicates, spare, sample = set(), 0, None, Sample()
    for key, text in texts:
        data = text.encode("utf-8", "replace")  # JSON can hold half a surrogate pair, UTF-8 cannot
        digest = hashlib.blake2b(data, digest_size=8).digest()
        if digest in seen:
            duplicates += 1
            continue
        seen.add(digest)
        text, score = data.decode("utf-8"), held_out_score(key)
        sample.add(text)
        if score < HELD_OUT:
            val.add(text)
        elif spare is None:
            spare = (score, text)
        else:
            train.add(max(spare, (score, text))[1])
            spare = min(spare, (score, text))
    if spare:
        (train if val.documents else val).add(spare[1])
    return {"duplicates": duplicates, "train": train.close(), "val": val.close(), **sample.statistics()}


class ShardWriter:
    """Documents of one split: shuffled within a window, in row groups, in shards of bounded size."""

    def __init__(self, folder: Path, seed: int):
        folder.mkdir(parents=True)
        self.folder, self.random, self.hash = folder, random.Random(seed), hashlib.blake2b(digest_size=16)
        self.window, self.window_characters = [], 0
        self.file, self.file_characters, self.shards = None, 0, []
        self.documents = self.characters = self.bytes = 0

    def add(self, text: str) -> None:
        self.window.append(text)
        self.window_characters += len(text)
        self.documents, self.characters = self.documents + 1, self.characters + len(text)
        if self.window_characters >= WINDOW_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        self.random.shuffle(self.window)
        group, characters = [], 0
        for text in self.window:
            group.append(text)
            characters += len(text)
            if len(group) >= GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
                self._write(group, characters)
                group, characters = [], 0
        if group:
            self._write(group, characters)
        self.window, self.window_characters = [], 0

    def _write(self, group: list[str], characters: int) -> None:
        for text in group:
            data = text.encode("utf-8")
            self.bytes += len(data)
            self.hash.update(len(data).to_bytes(8, "big") + data)
        table = pa.table({"text": pa.array(group, pa.string())})
        if self.file is None:
            self.shards.append(f"shard_{len(self.shards):05d}.parquet")
            path = self.folder / self.shards[-1]
            self.file = pq.ParquetWriter(
                path, table.schema, compression="zstd", use_dictionary=False, write_page_checksum=True
            )
        self.file.write_table(table)
        self.file_characters += characters
        if self.file_characters >= SHARD_CHARACTERS:
            self._end_shard()

    def _end_shard(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file, self.file_characters = None, 0

    def close(self) -> dict:
        """Finish the last shard. Counts, file names, and a hash of all documents in their order."""
        self._flush()
        self._end_shard()
        counts = {"documents": self.documents, "characters": self.characters, "bytes": self.bytes}
        return {**counts, "shards": self.shards, "hash": self.hash.hexdigest()}


# The commonest short words of a language that few others share; most hits win, and fewer than three are no evidence.
COMMON_WORDS = {
    "English": "the of and to in is that was for with it as",
    "German": "der die und das nicht ist ein zu den mit von sich",
    "French": "le les et des est une dans pour qui pas du sur",
    "Spanish": "el los y las que una por con para del se su",
    "Portuguese": "o os e as que uma por com para do não em",
    "Italian": "il gli e che una per con non del della sono di",
    "Dutch": "de het een en van niet dat is op te met zijn",
    "Polish": "i w na nie się z do jest to że jak po",
    "Swedish": "och att det som en på är av för den med till",
    "Turkish": "ve bir bu da de için ile çok olarak ne gibi daha",
    "Indonesian": "yang dan di dengan untuk ini itu dari pada adalah tidak ke",
    "Vietnamese": "và của là có một được trong cho không các người với",
    "Russian": "и в не на что с как это по но из он",
    "Ukrainian": "і в не на що з як це та до від він",
}
COMMON_WORDS = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}
SCRIPT_LANGUAGES = {"Cjk": "Chinese", "Hiragana": "Japanese", "Katakana": "Japanese", "Hangul": "Korean"}


def language_of(text: str) -> str:
    """A guess by common words, else by the script, good enough to see what a corpus is made of; "unknown" if neither
    says anything."""
    words = Counter(text.lower().split())
    hits = {language: sum(words[word] for word in common) for language, common in COMMON_WORDS.items()}
    best = max(hits, key=hits.get)
    if hits[best] >= 3:
        return best
    scripts = Counter(script_of(letter) for letter in text if letter.isalpha())
    if scripts["Hiragana"] + scripts["Katakana"] > 0.1 * scripts.total():
        return "Japanese"  # among characters that are Chinese, too
    script = scripts.most_common(1)[0][0] if scripts else ""
    return SCRIPT_LANGUAGES.get(script, "unknown" if script in ("", "Latin", "Cyrillic") else f"{script} script")


def script_of(letter: str) -> str:
    """ "Latin", "Greek", "Cjk" ...: the first word of the letter's name in Unicode."""
    return unicodedata.name(letter, "other").split()[0].capitalize()


class Sample:
    """A fair sample of a stream (Vitter's algorithm R), and what can be said from it."""

    def __init__(self, size: int = 1000):
        self.size, self.count, self.longest, self.random, self.kept = size, 0, 0, random.Random(0), []

    def add(self, text: str) -> None:
        self.count, self.longest = self.count + 1, max(self.longest, len(text))
        place = len(self.kept) if len(self.kept) < self.size else self.random.randrange(self.count)
        if place < self.size:
            self.kept[place : place + 1] = [(len(text), text[:400])]

    def statistics(self) -> dict:
        """Lengths in characters, languages of the documents, scripts of their letters, and ten openings."""
        lengths = sorted(length for length, _ in self.kept)
        quantiles = {f"{q}%": lengths[q * (len(lengths) - 1) // 100] for q in (5, 50, 95)} if lengths else {}
        scripts = Counter()
        for letter, count in Counter(c for _, head in self.kept for c in head if c.isalpha()).items():
            scripts[script_of(letter)] += count
        shares = {script: count / scripts.total() for script, count in scripts.most_common(5)}
        languages = Counter(language_of(head) for _, head in self.kept)
        return {
            "lengths": {**quantiles, "longest": self.longest},
            "languages": {name: round(n / len(self.kept), 3) for name, n in languages.most_common(6)},
            "scripts": {script: round(share, 4) for script, share in shares.items() if share >= 0.0005},
            "samples": [one_line(head) for _, head in self.kept[:10]],
        }


def one_line(text: str, width: int = 120) -> str:
    """The beginning of a text for a terminal: no line breaks, no control characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    return line if len(line) <= width else line[: width - 1] + "…"
