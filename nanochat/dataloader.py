"""Documents and conversations -> batches. The only place where training tensors are made.

In: shards of text, or tasks of conversations, and a position in them. Out: Batches, and the position to resume at.

A block is a row group of a shard, or some hundred conversations. It is packed into rows by itself, so a position is
just (epoch, shard, block, row). Every rank goes through all rows in the same order and takes its own part of each
global batch: the order does not depend on the number of ranks.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from nanochat import dataset
from nanochat.common import Dist
from nanochat.files import BadFile
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import Batch

CONVERSATIONS_PER_BLOCK = 512
SMALL_GAP = 8  # tokens: a gap this small at the end of a row is padded, not worth cutting a document for


@dataclass(frozen=True)
class Rows:
    """inputs and targets (R, T) int64 with -1 where there is no loss; how many items were left out, how many cut."""

    inputs: np.ndarray
    targets: np.ndarray
    skipped: int = 0
    cut: int = 0


def pack(items: list[tuple[np.ndarray, np.ndarray]], T: int, pad: int, split: bool) -> Rows:
    """Pack items into rows of T inputs, best fit first: into each row goes the longest item that still fits.

    An item is (ids, mask), each (n,); ids[i] is a target where mask[i]. Rows have T + 1 tokens, of which the last T are
    targets. With split, where nothing fits the shortest item is cut, and its rest is packed later with one token of
    overlap, so that every token is a target just once. Without split, the gap is padded and items that are too long
    for any row are left out and counted.
    """
    capacity = T + 1
    items = [item for item in items if len(item[0]) > 1 and item[1].any()]
    fitting = items if split else [item for item in items if len(item[0]) <= capacity]
    # Sorted by length; the second key keeps the order fixed and the arrays uncompared.
    pool = sorted(
        ((len(ids), number, ids, mask) for number, (ids, mask) in enumerate(fitting)), key=lambda entry: entry[:2]
    )
    count = len(pool)
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    while pool:
        row, room = [], capacity
        while pool and room > (SMALL_GAP if row else 0):
            place = bisect_right(pool, room, key=lambda entry: entry[0])
            if place:
                length, _, ids, mask = pool.pop(place - 1)
            elif split:
                _, _, ids, mask = pool.pop(0)
                rest = ids[room - 1 :], mask[room - 1 :].copy()
                rest[1][0] = False  # it is a target in this row
                insort(pool, (len(rest[0]), count, *rest), key=lambda entry: entry[:2])
                ids, mask, length, count = ids[:room], mask[:room], room, count + 1
            else:
                break
            row.append((ids, mask))
            room -= length
        rows.append(row)
    tokens = np.full((len(rows), capacity), pad, dtype=np.int64)
    learn = np.zeros((len(rows), capacity), dtype=bool)
    for r, row in enumerate(rows):
        start = 0
        for ids, mask in row:
            tokens[r, start : start + len(ids)] = ids
            learn[r, start : start + len(ids)] = mask
            start += len(ids)
    targets = np.where(learn, tokens, -1)[:, 1:]
    return Rows(tokens[:, :-1], targets, len(items) - len(fitting))


@dataclass(frozen=True)
class DocumentSource:
    """Documents of shards, each with <|bos|> in front. Without a seed the order is that of the files (for validation).

    A shard that is still being downloaded is waited for only when its turn comes.
    """

    tokenizer: Tokenizer
    files: list[Path]
    T: int
    seed: int | None = 0

    @classmethod
    def open(cls, tokenizer: Tokenizer, name: str, split: str, T: int, seed: int | None = 0) -> "DocumentSource":
        """SystemExit if the dataset is not there."""
        dataset.require(name)
        return cls(tokenizer, dataset.shards(name, split), T, seed)

    @property
    def shards(self) -> int:
        return len(self.files)

    def tokens(self) -> int:
        """About how many a pass has: what some documents of the first shard have, times all documents. A shard that is
        still to come counts as those that are here."""
        with self._file(0) as file, dataset.reading(self.files[0]):
            texts = next(file.iter_batches(batch_size=256, columns=["text"])).column("text").to_pylist()
        a_document = 1 + sum(map(len, self.tokenizer.encode_batch(texts))) / len(texts)
        counts = [dataset.open_shard(path).metadata.num_rows for path in self.files if path.exists()]
        return round(a_document * sum(counts) / len(counts) * len(self.files))

    def blocks(self, epoch: int, shard: int) -> int:
        return self._file(shard).num_row_groups

    def block(self, epoch: int, shard: int, block: int) -> Rows:
        file = self._file(shard)
        # The same order in every pass: in another one, what comes early was perhaps seen a moment ago.
        group = _permuted(self.seed, (0, shard), file.num_row_groups)[block]
        texts = dataset.read_texts(file, int(group), self.files[shard])
        bos = np.array([self.tokenizer.bos_id])
        documents = [np.concatenate((bos, ids)) for ids in self.tokenizer.encode_batch(texts)]
        items = [(ids, np.arange(len(ids)) > 0) for ids in documents]
        rows = pack(items, self.T, self.tokenizer.bos_id, split=True)
        return _shuffled(rows, self.seed, (epoch, shard, block))

    def _file(self, shard: int) -> pq.ParquetFile:
        return dataset.open_shard(self.files[shard])  # in order, as a download brings them


@dataclass(frozen=True)
class ChatSource:
    """The conversations of a task or mixture; what the assistant says is learned.

    A conversation that is longer than a row ends after the last answer that fits; without one it is left out.
    """

    tokenizer: Tokenizer
    conversations: object  # has __len__ and __getitem__
    T: int
    seed: int | None = 0
    shards = 1

    def blocks(self, epoch: int, shard: int) -> int:
        return -(-len(self.conversations) // CONVERSATIONS_PER_BLOCK)

    def block(self, epoch: int, shard: int, block: int) -> Rows:
        order = _permuted(self.seed, (epoch,), len(self.conversations))
        chosen = order[block * CONVERSATIONS_PER_BLOCK : (block + 1) * CONVERSATIONS_PER_BLOCK]
        whole = [self.tokenizer.render_conversation(self.conversations[int(i)]) for i in chosen]
        items = [self.cut_at_turn(ids, mask) for ids, mask in whole]
        cut = sum(len(after[0]) < len(before[0]) for before, after in zip(whole, items))
        rows = pack(items, self.T, self.tokenizer.bos_id, split=False)
        return replace(_shuffled(rows, self.seed, (epoch, shard, block)), cut=cut)

    def cut_at_turn(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As many whole exchanges as fit into a row; all of it if not even one does."""
        end = self.tokenizer.special["<|assistant_end|>"]
        fitting = np.flatnonzero(ids[: self.T + 1] == end) if len(ids) > self.T + 1 else ()
        return (ids[: fitting[-1] + 1], mask[: fitting[-1] + 1]) if len(fitting) else (ids, mask)


def _permuted(seed: int | None, key: tuple[int, ...], count: int) -> np.ndarray:
    return np.arange(count) if seed is None else np.random.default_rng((seed, *key)).permutation(count)


def _shuffled(rows: Rows, seed: int | None, key: tuple[int, ...]) -> Rows:
    order = _permuted(seed, key, len(rows.inputs))
    return replace(rows, inputs=rows.inputs[order], targets=rows.targets[order])


class Batches:
    """Iterates over lists of micro-batches, one list for each optimizer step.

    rows: of the whole global batch. device_rows: at most so many at once on a device. epochs: stop after so many;
    None goes on for ever. position: where to start, as kept by an earlier run.
    """

    def __init__(
        self,
        source,
        rows: int,
        device_rows: int,
        dist: Dist = Dist(),
        epochs: int | None = None,
        position: dict | None = None,
    ):
        if rows % dist.world_size:
            raise ValueError(
                f"{rows} rows a step do not divide among {dist.world_size} ranks; choose a multiple of that."
            )
        self.source, self.rows, self.device_rows, self.dist, self.epochs = source, rows, device_rows, dist, epochs
        start = {"epoch": 0, "shard": 0, "block": 0, "row": 0, "skipped": 0, "cut": 0}
        self.position = start | (position or {})  # also how many items were left out or cut before this block
        self.progress = None if epochs is None else 0.0

    def steps(self) -> int | None:
        """About how many there are in all epochs, if all blocks are like the first; None if it goes on for ever."""
        if self.epochs is None:
            return None
        blocks = sum(self.source.blocks(0, shard) for shard in range(self.source.shards))
        return -(-len(self.source.block(0, 0, 0).inputs) * blocks * self.epochs // self.rows)

    def __iter__(self) -> Iterator[list[Batch]]:
        buffer: list[tuple[np.ndarray, np.ndarray]] = []
        for position, done, row in self._rows():
            buffer.append(row)
            if len(buffer) == self.rows:
                yield self._emit(buffer, position, done)
                buffer = []
        if buffer:  # the last step of the last epoch: filled up with rows that have no targets
            empty = buffer[0][0], np.full_like(buffer[0][1], -1)
            yield self._emit(buffer + [empty] * (self.rows - len(buffer)), position, self.epochs)

    def _rows(self):
        """(position after this row, epochs done by then, row), block after block; the next block is made meanwhile."""
        source = self.source
        epoch, shard, block, skip, skipped, cut = self.position.values()
        useful = 0  # rows in this epoch
        with ThreadPoolExecutor(1) as background:

            def begin(place: tuple[int, int, int]):
                wanted = self.epochs is None or place[0] < self.epochs
                return background.submit(source.block, *place) if wanted else None

            blocks, coming = source.blocks(epoch, shard), begin((epoch, shard, block))
            while self.epochs is None or epoch < self.epochs:
                rows = coming.result()
                counts = skipped + rows.skipped, cut + rows.cut
                if block + 1 < blocks:
                    following = epoch, shard, block + 1
                else:
                    following = (epoch, shard + 1, 0) if shard + 1 < source.shards else (epoch + 1, 0, 0)
                coming = begin(following)
                total = len(rows.inputs)
                useful += total
                for r in range(skip, total):
                    within = epoch, shard, block, r + 1, skipped, cut
                    after = within if r + 1 < total else (*following, 0, *counts)
                    done = epoch + (shard + (block + (r + 1) / total) / blocks) / source.shards
                    position = dict(zip(self.position, after))
                    yield position, done, (rows.inputs[r], rows.targets[r])
                if following[0] > epoch and not useful:
                    raise BadFile("There is no row to train on: every document or conversation is empty or too long.")
                useful = 0 if following[0] > epoch else useful
                blocks = source.blocks(*following[:2]) if following[:2] != (epoch, shard) else blocks
                (epoch, shard, block), skip, (skipped, cut) = following, 0, counts

    def _emit(self, buffer, position: dict, done: float) -> list[Batch]:
        self.position = position
        if self.epochs is not None:
            self.progress = min(1.0, done / self.epochs)
        mine = len(buffer) // self.dist.world_size
        part = buffer[self.dist.rank * mine : (self.dist.rank + 1) * mine]
        inputs, targets = (torch.from_numpy(np.stack(side)) for side in zip(*part))
        return [
            Batch(self._move(i), self._move(t))
            for i, t in zip(inputs.split(self.device_rows), targets.split(self.device_rows))
        ]

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.dist.device.type == "cuda":
            return tensor.pin_memory().to(self.dist.device, non_blocking=True)
        return tensor.to(self.dist.device)
