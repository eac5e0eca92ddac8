"""Documents -> shards in an order that is random over the whole set, however large it is.

In: a stream of documents. Out: shard_00000.parquet and so on, as published for nanochat: about 250 M characters, zstd,
row groups of 1,024 documents. Memory holds one bucket: the stream is dealt to buckets on disk by a seeded generator,
then each bucket is shuffled by itself, which together is a uniform shuffle (Rao, 1961; Sandelius, 1962).
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1024  # documents of a row group
BUCKET_CHARACTERS = 4_000_000_000  # what is shuffled in memory at once; each bucket is an open file while they fill
BUFFER_CHARACTERS = 200_000_000  # waiting in memory to be written to the buckets, all together


def repackage(documents: Iterable[str], folder: Path, total: float, characters: int, seed: int = 42) -> list[Path]:
    """Write all documents to `folder`, shuffled, in shards of `characters`; returns their paths in order.

    `total` is about how many characters there will be: it says how many buckets to make, no more. The same documents in
    the same order give the same shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buckets = folder / ".buckets"
    shutil.rmtree(buckets, ignore_errors=True)
    buckets.mkdir()
    try:
        count = max(1, -(-int(total) // BUCKET_CHARACTERS))
        deal(documents, buckets, count, np.random.default_rng((seed, 0)))
        return write_shards(undeal(buckets, count, seed), folder, characters)
    finally:
        shutil.rmtree(buckets, ignore_errors=True)


def deal(documents: Iterable[str], folder: Path, count: int, random: np.random.Generator) -> None:
    """Each document to a bucket drawn for it; a bucket is one file."""
    schema = pa.schema([("text", pa.large_string())])
    files = [pq.ParquetWriter(folder / f"{i}.parquet", schema, compression="lz4") for i in range(count)]
    waiting: list[list[str]] = [[] for _ in range(count)]
    held = 0

    def flush() -> None:
        for file, texts in zip(files, waiting):
            if texts:
                file.write_table(pa.table({"text": pa.array(texts, pa.large_string())}))
                texts.clear()

    try:
        for text in documents:
            waiting[random.integers(count)].append(text)
            held += len(text)
            if held >= BUFFER_CHARACTERS:
                flush()
                held = 0
        flush()
    finally:
        for file in files:
            file.close()


def undeal(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Bucket after bucket, each shuffled; what has been read is deleted."""
    for number in range(count):
        path = folder / f"{number}.parquet"
        texts = pq.read_table(path).column("text")
        path.unlink()
        for index in np.random.default_rng((seed, 1, number)).permutation(len(texts)):
            yield texts[int(index)].as_py()


def write_shards(documents: Iterable[str], folder: Path, characters: int) -> list[Path]:
    """Shards of whole row groups; what is left at the end, less than a shard, goes into the last one."""
    paths: list[Path] = []
    whole, shard, length = [], [], 0

    def write(texts: list[str]) -> None:
        paths.append(folder / f"shard_{len(paths):05d}.parquet")
        pq.write_table(
            pa.table({"text": pa.array(texts, pa.string())}),
            paths[-1],
            row_group_size=ROWS,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=False,
        )

    for text in documents:
        shard.append(text)
        length += len(text)
        if length >= characters and len(shard) % ROWS == 0:
            if whole:
                write(whole)
            whole, shard, length = shard, [], 0
    if whole or shard:
        write(whole + shard)
    return paths
