"""Byte-level BPE, the encoder: text to ids at native speed, given the merges that `bpe_train` learned.

In: documents as bytes. Out: their ids.
Ids 0 to 255 are the bytes; id 256 + k is what merge k makes of two smaller ids. To encode a chunk, merge its leftmost
pair that makes the smallest id until no pair is left. Chunks that were met before are looked up.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import types

from nanochat.bpe_chunks import MIX, Chunks, block_row, chunks_type, find_or_add, join, next_block
from nanochat.bpe_kernels import bytes_in, i32, i32_2d, i64, outlined, u8
from nanochat.native import inlined, kernel
from nanochat.unicode_classes import char_classes

# ---------------------------------------------------------------------------------------------------------------------
# A heap of rows (a, b, c), the smallest (a, b) on top


@inlined
def heap_push(heap, n, a, b, c):
    """Add a row to the n that are there; there must be room."""
    while n > 0:
        parent = (n - 1) >> 1
        if heap[parent, 0] < a or (heap[parent, 0] == a and heap[parent, 1] <= b):
            break
        heap[n, 0], heap[n, 1], heap[n, 2] = heap[parent, 0], heap[parent, 1], heap[parent, 2]
        n = parent
    heap[n, 0], heap[n, 1], heap[n, 2] = a, b, c


@inlined
def heap_pop(heap, n):
    """Take the top away; n rows are left."""
    a, b, k, child = heap[n, 0], heap[n, 1], 0, 1
    while child < n:
        other = child + 1
        if other < n and (
            heap[other, 0] < heap[child, 0] or (heap[other, 0] == heap[child, 0] and heap[other, 1] < heap[child, 1])
        ):
            child = other
        if a < heap[child, 0] or (a == heap[child, 0] and b <= heap[child, 1]):
            break
        heap[k, 0], heap[k, 1], heap[k, 2] = heap[child, 0], heap[child, 1], heap[child, 2]
        k, child = child, 2 * child + 1
    heap[k, 0], heap[k, 1], heap[k, 2] = a, b, heap[n, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


class Ranks(NamedTuple):
    """Hash table of merges."""

    pairs: np.ndarray  # (power of two,) int64: left << 32 | right; -1 is a free slot
    ids: np.ndarray  # (power of two,) int32: what the pair becomes


class Cache(NamedTuple):
    """Chunks met so far. A chunk's value has its 1 to 3 tokens, 20 bits each, and their number above them; or, for more
    tokens, MANY, then their number (20 bits), and where they start in `tokens` (40 bits)."""

    chunks: Chunks  # size[1]: how many ids of `tokens` are taken
    tokens: np.ndarray  # (room,) int32
    scratch: np.ndarray  # (SHORT,) int64


ranks_type = types.NamedTuple((i64, i32), Ranks)
cache_type = types.NamedTuple((chunks_type, i32, i64), Cache)
NO_MERGE = 1 << 30
TOKEN, PLACE, MANY = np.uint64((1 << 20) - 1), np.uint64((1 << 40) - 1), np.uint64(4)
SHORT = 256  # bytes; longer chunks are not cached, and are merged with a heap


@inlined
def pair_slot(pairs, pair):
    """Where the pair is in the table, or the free slot where it belongs."""
    mask = len(pairs) - 1
    slot = np.int64(np.uint64(pair ^ pair >> 17) * MIX >> np.uint64(32)) & mask
    while pairs[slot] != pair and pairs[slot] >= 0:
        slot = (slot + 1) & mask
    return slot


@kernel(i32_2d, ranks_type)
def ranks_kernel(merges, ranks):
    for k in range(len(merges)):
        pair = np.int64(merges[k, 0]) << 32 | np.int64(merges[k, 1])
        slot = pair_slot(ranks.pairs, pair)
        ranks.pairs[slot], ranks.ids[slot] = pair, 256 + k


@inlined
def merged(ranks, a, b):
    """The id that ids a and b merge to, or NO_MERGE."""
    pair = np.int64(a) << 32 | np.int64(b)
    slot = pair_slot(ranks.pairs, pair)
    return np.int64(ranks.ids[slot]) if ranks.pairs[slot] == pair else NO_MERGE


@inlined
def merge_short(data, i, j, ranks, following, ids, at):
    """Write the tokens of chunk data[i:j] to ids[at:]; returns where they end. Time grows with the square of j - i.

    following: (SHORT,) scratch, what each id and the next would become."""
    n = j - i
    for k in range(n):
        ids[at + k] = data[i + k]
    for k in range(n - 1):
        following[k] = merged(ranks, data[i + k], data[i + k + 1])
    while n > 1:
        k = 0
        for m in range(1, n - 1):
            if following[m] < following[k]:
                k = m
        if following[k] == NO_MERGE:
            break
        ids[at + k] = following[k]
        n -= 1
        for m in range(k + 1, n):
            ids[at + m] = ids[at + m + 1]
            following[m - 1] = following[m]
        if k > 0:
            following[k - 1] = merged(ranks, ids[at + k - 1], ids[at + k])
        if k < n - 1:
            following[k] = merged(ranks, ids[at + k], ids[at + k + 1])
    return at + n


@inlined
def push_merge(heap, n_heap, ranks, symbols, k, m):
    """Put what the tokens at k and m merge to in the heap, if they do; returns the heap's size."""
    new = merged(ranks, symbols[k], symbols[m])
    if new == NO_MERGE:
        return n_heap
    heap_push(heap, n_heap, new, k, 0)
    return n_heap + 1


@kernel(bytes_in, types.int64, types.int64, ranks_type, i32, types.int64, nrt=True)
def merge_long(data, i, j, ranks, ids, at):
    """The same with a heap of (id, place): time grows with n log n, so a million letters in a row do no harm."""
    n, n_heap = j - i, 0
    symbols, after, before = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    heap = np.empty((2 * n, 3), np.int64)
    for k in range(n):
        symbols[k], after[k], before[k] = data[i + k], k + 1, k - 1
    for k in range(n - 1):
        n_heap = push_merge(heap, n_heap, ranks, symbols, k, k + 1)
    while n_heap > 0:
        new, k = heap[0, 0], heap[0, 1]
        n_heap -= 1
        heap_pop(heap, n_heap)
        m = after[k]
        if symbols[k] < 0 or m == n or merged(ranks, symbols[k], symbols[m]) != new:
            continue  # one of the two has merged with another since
        symbols[k], symbols[m] = new, -1
        after[k] = after[m]
        if after[k] < n:
            before[after[k]] = k
            n_heap = push_merge(heap, n_heap, ranks, symbols, k, after[k])
        if before[k] >= 0:
            n_heap = push_merge(heap, n_heap, ranks, symbols, before[k], k)
    for k in range(n):
        if symbols[k] >= 0:
            ids[at] = symbols[k]
            at += 1
    return at


@outlined
def tokens_of_chunk(data, i, j, low, high, home, slot, ranks, cache):
    """Give a new chunk its value (see `Cache`); returns its slot. A cache that is full forgets all."""
    chunks, tokens = cache.chunks, cache.tokens
    if slot < 0 or chunks.size[1] + SHORT > len(tokens):
        chunks.slots[:] = 0
        chunks.size[:] = 0
        slot = find_or_add(chunks, data, i, j, low, high, home)
    start = chunks.size[1]
    n = merge_short(data, i, j, ranks, cache.scratch, tokens, start) - start
    value = np.uint64(n) << np.uint64(60)
    if n > 3:
        chunks.size[1] += n
        value = MANY << np.uint64(60) | np.uint64(n) << np.uint64(40) | np.uint64(start)
    else:
        for k in range(n):
            value |= np.uint64(tokens[start + k]) << np.uint64(20 * k)
    chunks.slots[slot + 2] = value
    return slot


@kernel(bytes_in, u8, i64, bytes_in, ranks_type, cache_type, i32, i64, i64)
def encode_kernel(data, letters, bounds, classes, ranks, cache, ids, id_bounds, at):
    """Ids of documents data[bounds[d] : bounds[d + 1]], written to ids[id_bounds[d] : id_bounds[d + 1]].

    Starts at document at[0], byte at[1], id at[2]. True when done; False when it comes to a long chunk, which it leaves
    to the caller: that chunk ends at byte at[3]."""
    chunks, tokens, i, n = cache.chunks, cache.tokens, at[1], at[2]
    for document in range(at[0], len(bounds) - 1):
        i, end = max(i, bounds[document]), bounds[document + 1]
        while i < end:
            for k in range(next_block(data, letters, i, end, classes, chunks)):
                low, high, slot, j = block_row(chunks, k)
                if j - i > SHORT:
                    at[0], at[1], at[2], at[3] = document, i, n, j
                    return False
                found = find_or_add(chunks, data, i, j, low, high, slot)
                if found < 0 or chunks.slots[found + 2] == 0:
                    found = tokens_of_chunk(data, i, j, low, high, slot, found, ranks, cache)
                value = chunks.slots[found + 2]
                many = np.int64(value >> np.uint64(60))
                if many <= 3:  # write three, count what there is: cheaper than to ask
                    ids[n], ids[n + 1] = value & TOKEN, value >> np.uint64(20) & TOKEN
                    ids[n + 2] = value >> np.uint64(40) & TOKEN
                else:
                    start, many = np.int64(value & PLACE), np.int64(value >> np.uint64(40) & TOKEN)
                    for t in range(many):
                        ids[n + t] = tokens[start + t]
                n += many
                i = j
        id_bounds[document + 1] = n
    return True


class Encoder:
    """Merges, made ready to turn bytes into ids. Any thread may use it; each call borrows a cache of its own."""

    def __init__(self, merges: np.ndarray, room: int = 1 << 19):
        """merges: (n, 2) int32, as `train` returns it. room: chunks that each cache holds."""
        size = 2 << max(len(merges), 8).bit_length()
        self.ranks = Ranks(np.full(size, -1, np.int64), np.zeros(size, np.int32))
        ranks_kernel(np.ascontiguousarray(merges, np.int32), self.ranks)
        self.room = room
        self.caches: deque[Cache] = deque()

    def encode_many(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all documents end to end, int32, and the (n + 1,) places where they meet."""
        data, letters, bounds = join(documents)
        ids, id_bounds = np.empty(bounds[-1] + 3, np.int32), np.zeros_like(bounds)
        try:
            cache = self.caches.pop()
        except IndexError:
            tokens, scratch = np.zeros(8 * self.room, np.int32), np.zeros(SHORT, np.int64)
            cache = Cache(Chunks.empty(self.room, 16 * self.room), tokens, scratch)
        at = np.zeros(4, np.int64)
        while not encode_kernel(data, letters, bounds, char_classes(), self.ranks, cache, ids, id_bounds, at):
            _, start, n, stop = at.tolist()
            at[1:3] = stop, merge_long(data, start, stop, self.ranks, ids, n)
        self.caches.append(cache)
        return ids[: id_bounds[-1]], id_bounds
