"""Byte-level BPE, the trainer: count the chunks of any amount of text, then learn merges from the counts.

In: a stream of documents. Out: merges, in the order in which they were learned.
Counting uses all cores and bounded memory; each merge touches only the places where its pair stands.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import types

from nanochat.bpe import heap_pop, heap_push
from nanochat.bpe_chunks import Chunks, count_kernel, cpu_count, join, pour_kernel, to_bytes
from nanochat.bpe_kernels import PADDING, i32, i32_2d, i64, i64_2d, u8
from nanochat.native import inlined, kernel
from nanochat.unicode_classes import char_classes

# ---------------------------------------------------------------------------------------------------------------------
# Count


class ChunkCounter:
    """Counts the chunks of any amount of text in bounded memory. `add` may be called from many threads.

    A thread counts into a small table of its own, which is poured into the one total when it is full. Past `limit`
    distinct chunks, those seen only once so far are forgotten."""

    def __init__(self, limit: int = 1 << 23, room: int = 1 << 17):
        self.limit, self.room = limit, room
        self.total = Chunks.empty(room, 16 * room)
        self.lock = threading.Lock()
        self.tables: deque[Chunks] = deque()

    def add(self, documents: Sequence[bytes]) -> None:
        data, letters, bounds = join(documents)
        try:
            table = self.tables.pop()
        except IndexError:
            table = Chunks.empty(self.room, 16 * self.room)
        if len(table.text) < len(data):  # an empty table must hold any chunk
            self.pour(table)
            table = Chunks.empty(self.room, len(data))
        at = np.zeros(2, np.int64)
        while not count_kernel(data, letters, bounds, char_classes(), table, at):
            self.pour(table)
        self.tables.append(table)

    def pour(self, table: Chunks) -> None:
        """Add a thread's counts to the total, and empty its table."""
        starts, text, counts = contents(table)
        with self.lock:
            n = int(self.total.size[0])
            need, text_need = n + len(counts), int(self.total.starts[n] + starts[-1])
            if need >= len(self.total.starts) or text_need + len(PADDING) > len(self.total.text):
                room, old = max(need, min(2 * need, self.limit + self.room)), contents(self.total)
                self.total = Chunks.empty(room, 2 * text_need)
                pour_kernel(*old, 2 if need > self.limit else 1, self.total)
            pour_kernel(starts, text, counts, 1, self.total)
        table.clear()

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `contents` of the total. Call it once, after the last `add`."""
        while self.tables:
            self.pour(self.tables.pop())
        return contents(self.total)


def contents(table: Chunks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, text, counts): chunk e is text[starts[e] : starts[e + 1]] and came counts[e] times."""
    slots = table.slots.reshape(-1, 4)
    taken = np.flatnonzero(slots[:, 1])
    counts = np.empty(len(taken), np.int64)
    counts[slots[taken, 3].astype(np.int64)] = slots[taken, 2]
    return table.starts[: len(counts) + 1], table.text, counts


# ---------------------------------------------------------------------------------------------------------------------
# Merge


class Merging(NamedTuple):
    """Where learning stands. Every pair of neighbours has a number s; for a pair of bytes it is left << 8 | right.

    All places of a pair arise at once, in the step that makes the newer of its two tokens. So they are stored once, in
    one stretch of `places`, and a place that meanwhile holds another pair is skipped. And a pair's weight can only
    fall later: when a pair comes up in the heap with an old weight, it goes back in with its new one."""

    symbols: np.ndarray  # (bytes,) int32: the token whose first or last byte this is; -1 between chunks
    word: np.ndarray  # (bytes,) int32: the chunk that this byte belongs to
    pair_at: np.ndarray  # (bytes,) int32: the pair whose left token starts here, or -1
    counts: np.ndarray  # (chunks,) int64
    pairs: np.ndarray  # (s,) int64: left << 32 | right
    weights: np.ndarray  # (s,) int64: how often the pair occurs in the text now
    first: np.ndarray  # (s + 1,) int64: the places of pair s are places[first[s] : first[s + 1]]
    filled: np.ndarray  # (s,) int64: where the next place of pair s goes
    heap: np.ndarray  # (s, 3) int64: -weight, pair, s
    places: np.ndarray  # (any,) int32: bytes where a pair started when it arose
    seen: np.ndarray  # (any,) int32: the same for all pairs of the present step, not sorted yet
    on_left: np.ndarray  # (vocabulary,) int32: the newest pair with this token on its left
    on_right: np.ndarray  # (vocabulary,) int32: the newest pair with this token on its right
    width: np.ndarray  # (vocabulary,) int32: bytes of each token
    merges: np.ndarray  # (n_merges, 2) int32
    sizes: np.ndarray  # (4,) int64: merges; pairs; rows in the heap; pairs before this step

    def with_room(self) -> "Merging":
        """The same, with arrays long enough for the next merge at least."""
        n_merges, n_pairs, _ = self.sizes[:3].tolist()
        s = self.heap[0, 2]
        n_places = 2 * int(self.first[s + 1] - self.first[s])
        n_pairs += min(n_places, 2 * (257 + n_merges)) + 1
        needs = dict.fromkeys(("pairs", "weights", "first", "filled", "heap"), n_pairs)
        needs |= {"seen": n_places, "places": int(self.first[self.sizes[1]]) + n_places}
        return self._replace(**{name: lengthened(getattr(self, name), need) for name, need in needs.items()})


def lengthened(array: np.ndarray, need: int) -> np.ndarray:
    """The array, or a copy that is longer by half at least if it has less than `need` rows."""
    if len(array) >= need:
        return array
    longer = np.empty((max(need, len(array) * 3 // 2), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


merging_type = types.NamedTuple(
    (i32, i32, i32, i64, i64, i64, i64, i64, i64_2d, i32, i32, i32, i32, i32, i32_2d, i64), Merging
)


@kernel(i64, u8, merging_type)
def lay_out_kernel(starts, text, m):
    """Put the chunks one after another with a gap of one around each, and list the pairs of bytes."""
    at = 0
    m.symbols[0] = -1
    for e in range(len(starts) - 1):
        for k in range(starts[e], starts[e + 1]):
            at += 1
            m.symbols[at], m.word[at] = text[k], e
        at += 1
        m.symbols[at] = -1
    for p in range(len(m.symbols) - 1):
        a, b = np.int64(m.symbols[p]), np.int64(m.symbols[p + 1])
        m.pair_at[p] = -1
        if a >= 0 and b >= 0:
            m.pair_at[p] = s = a << 8 | b
            m.weights[s] += m.counts[m.word[p]]
            m.filled[s] += 1
    for s in range(65536):
        m.first[s + 1] = m.first[s] + m.filled[s]
        m.filled[s] = m.first[s]
        m.pairs[s] = s >> 8 << 32 | s & 255
        if m.weights[s] > 0:
            heap_push(m.heap, m.sizes[2], -m.weights[s], m.pairs[s], s)
            m.sizes[2] += 1
    m.sizes[1] = 65536
    for p in range(len(m.symbols) - 1):
        s = m.pair_at[p]
        if s >= 0:
            m.places[m.filled[s]] = p
            m.filled[s] += 1


@inlined
def meet(m, newest, other, pair, place, count):
    """At `place` starts the new pair of the new token and `other`; numbers the pair if this is its first place."""
    s = np.int64(newest[other])
    if s < m.sizes[3]:  # of an earlier step
        newest[other] = s = m.sizes[1]
        m.pairs[s], m.weights[s], m.filled[s] = pair, 0, 0
        m.sizes[1] += 1
    m.weights[s] += count
    m.pair_at[place] = s


@kernel(merging_type, types.int64)
def merge_kernel(m, until):
    """Learn merges until there are `until`, or no pair is left, or an array is too short for the next."""
    while m.sizes[0] < until and m.sizes[2] > 0:
        weight, pair, s = -m.heap[0, 0], m.heap[0, 1], m.heap[0, 2]
        start, stop = m.first[s], m.first[s + 1]
        n_seen, n_pairs, new = 0, m.sizes[1], 256 + m.sizes[0]
        most = 2 * (stop - start)
        if weight == m.weights[s] and (
            most > len(m.seen)
            or m.first[n_pairs] + most > len(m.places)
            or n_pairs + min(most, 2 * new + 2) >= len(m.pairs)
        ):
            return
        m.sizes[2] -= 1
        heap_pop(m.heap, m.sizes[2])
        if weight != m.weights[s]:
            if m.weights[s] > 0:
                heap_push(m.heap, m.sizes[2], -m.weights[s], pair, s)
                m.sizes[2] += 1
            continue
        a, b = pair >> 32, pair & 0xFFFFFFFF
        m.merges[m.sizes[0], 0], m.merges[m.sizes[0], 1] = a, b
        m.width[new] = m.width[a] + m.width[b]
        m.sizes[0] += 1
        m.sizes[3] = n_pairs
        for k in range(start, stop):
            p = np.int64(m.places[k])
            if m.pair_at[p] != s:
                continue
            count, middle, after = m.counts[m.word[p]], p + m.width[a], p + m.width[new]
            x, y = np.int64(m.symbols[p - 1]), np.int64(m.symbols[after])
            if y >= 0:
                m.weights[m.pair_at[middle]] -= count
            m.pair_at[p] = m.pair_at[middle] = -1
            m.symbols[p] = m.symbols[after - 1] = new
            if x >= 0:
                before = p - m.width[x]
                m.weights[m.pair_at[before]] -= count
                meet(m, m.on_left, x, x << 32 | new, before, count)
                m.seen[n_seen] = before
                n_seen += 1
            if y >= 0:
                meet(m, m.on_right, y, new << 32 | y, p, count)
                m.seen[n_seen] = p
                n_seen += 1
        m.weights[s] = 0
        for k in range(n_seen):
            m.filled[m.pair_at[m.seen[k]]] += 1
        for t in range(n_pairs, m.sizes[1]):
            m.first[t + 1] = m.first[t] + m.filled[t]
            m.filled[t] = m.first[t]
            if m.weights[t] > 0:
                heap_push(m.heap, m.sizes[2], -m.weights[t], m.pairs[t], t)
                m.sizes[2] += 1
        for k in range(n_seen):
            t = m.pair_at[m.seen[k]]
            m.places[m.filled[t]] = m.seen[k]
            m.filled[t] += 1


def learn(
    starts: np.ndarray, text: np.ndarray, counts: np.ndarray, n_merges: int, report: Callable[[int], None]
) -> np.ndarray:
    """(n, 2) int32 merges from chunks text[starts[e] : starts[e + 1]] that came counts[e] times. See `train`."""
    n_bytes, vocabulary = int(starts[-1]) + len(starts), 256 + n_merges
    if n_bytes >= 1 << 31:
        raise ValueError("There are too many different words in the text for 32-bit places. Lower max_chars.")
    three = [np.empty(n_bytes, np.int32) for _ in range(3)]
    pairs, weights, first, filled = (np.zeros(65537, np.int64) for _ in range(4))
    heap, places, seen = np.zeros((65537, 3), np.int64), np.empty(n_bytes, np.int32), np.empty(0, np.int32)
    on_left, on_right = np.full(vocabulary, -1, np.int32), np.full(vocabulary, -1, np.int32)
    width, merges, sizes = np.ones(vocabulary, np.int32), np.empty((n_merges, 2), np.int32), np.zeros(4, np.int64)
    m = Merging(
        *three, counts, pairs, weights, first, filled, heap, places, seen, on_left, on_right, width, merges, sizes
    )
    lay_out_kernel(starts, text, m)
    while sizes[0] < n_merges and sizes[2] > 0:
        m = m.with_room()
        merge_kernel(m, min(int(sizes[0]) + 256, n_merges))
        report(int(sizes[0]))
    return merges[: sizes[0]]


def train(
    texts: Iterable[str],
    n_merges: int,
    *,
    max_chars: int | None = None,
    doc_cap: int | None = None,
    threads: int | None = None,
    limit: int = 1 << 23,
    report: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> np.ndarray:
    """Learn up to `n_merges` merges from a stream of documents. Returns (n, 2) int32; row k makes id 256 + k.

    Each merge takes the pair of neighbours that is most frequent now (in "aaa" the pair aa counts twice); among equals
    the one with the smallest left id, then the smallest right id. There are fewer merges if no pair is left.
    max_chars: characters to read in all; doc_cap: characters to read of each document.
    report: called with ("count", characters so far, max_chars) and ("merge", merges so far, n_merges)."""
    threads = threads or cpu_count()
    counter, read = ChunkCounter(limit), 0
    with ThreadPoolExecutor(threads) as pool:
        jobs: deque = deque()
        for documents, n_chars in batched(texts, max_chars, doc_cap):
            jobs.append(pool.submit(counter.add, documents))
            if len(jobs) > 2 * threads:  # do not read faster than we count
                jobs.popleft().result()
            read += n_chars
            report("count", read, max_chars)
        for job in jobs:
            job.result()
    starts, text, counts = counter.finish()
    del counter
    return learn(starts, text, counts, n_merges, lambda done: report("merge", done, n_merges))


def batched(
    texts: Iterable[str], max_chars: int | None, doc_cap: int | None, batch: int = 4_000_000
) -> Iterator[tuple[list[bytes], int]]:
    """Documents as bytes in lists of about `batch` characters, and how many characters each list has."""
    documents, n_chars, left = [], 0, sys.maxsize if max_chars is None else max_chars
    for text in texts:
        text = text[: min(left, doc_cap or left)]
        documents.append(to_bytes(text))
        n_chars, left = n_chars + len(text), left - len(text)
        if n_chars >= batch or left <= 0:
            yield documents, n_chars
            documents, n_chars = [], 0
        if left <= 0:
            return
    if documents:
        yield documents, n_chars
