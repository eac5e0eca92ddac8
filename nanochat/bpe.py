"""Byte-level BPE at native speed: one splitter for training and encoding, a trainer, an encoder.

In: UTF-8 bytes, in fact any bytes. Out: merges learned from text; token ids for text, given merges.
Compiled by numba on first use, never on import; numba keeps the machine code for the next process.

Text is cut into chunks (words, mostly), and no token spans two. Ids 0 to 255 are the bytes; id 256 + k is what merge k
makes of two smaller ids. To encode a chunk, merge its leftmost pair of smallest id until no pair is left.
"""

import functools
import heapq
import os
import sys
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# What `next_chunk` implements by hand: the GPT-4 pattern, with numbers cut into at most two digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# ---------------------------------------------------------------------------------------------------------------------
# Compilation

bytes_in = types.Array(types.uint8, 1, "C", readonly=True)
u8, u64, i32, i64 = types.uint8[::1], types.uint64[::1], types.int32[::1], types.int64[::1]


inlined = numba.njit(forceinline=True)  # a call that is not inlined counts references to its arrays, which is slow


class Kernel:
    """A function that numba compiles for one signature, when it is first called."""

    def __init__(self, function: Callable, signature: tuple):
        self.dispatcher = numba.njit(cache=True, nogil=True)(function)
        self.signature, self.ready = signature, False

    def __call__(self, *args):
        if not self.ready:
            message = "compiling the tokenizer for this machine, once ..."
            timer = threading.Timer(2, print, [message], {"file": sys.stderr, "flush": True})
            timer.daemon = True
            timer.start()
            try:
                self.dispatcher.compile(self.signature)
            finally:
                timer.cancel()
            self.ready = True
        return self.dispatcher(*args)


def kernel(*signature) -> Callable[[Callable], Kernel]:
    return lambda function: Kernel(function, signature)


@intrinsic
def load8(typing_context, array, index):
    """The 8 bytes at array[index:index + 8] as one little-endian number. The array must reach that far."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        word = builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(array, types.int64), generate


PADDING = bytes(8)  # so that load8 may read past the last byte of text

# ---------------------------------------------------------------------------------------------------------------------
# The splitter

OTHER, LETTER, NUMBER, SPACE, NEWLINE = 0, 1, 2, 3, 4

# Assigned after Unicode 13, the version of Python 3.10: so that every Python cuts text by Unicode 16, as tiktoken does.
NEW_LETTERS = """870-887 889-88E 8B5 8C8-8C9 C5D CDD 170D 171F 1B4C 1C89-1C8A 2C2F 2C5F 9FFD-9FFF A7C0-A7C1 A7CB-A7CD
A7D0-A7D1 A7D3 A7D5-A7DC A7F2-A7F4 10570-1057A 1057C-1058A 1058C-10592 10594-10595 10597-105A1 105A3-105B1 105B3-105B9
105BB-105BC 105C0-105F3 10780-10785 10787-107B0 107B2-107BA 10D4A-10D65 10D6F-10D85 10EC2-10EC4 10F70-10F81 11071-11072
11075 1123F-11240 11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11740-11746 11AB0-11ABF 11BC0-11BE0 11F02
11F04-11F10 11F12-11F33 12F90-12FF0 1342F 13441-13446 13460-143FA 16100-1611D 16A70-16ABE 16D40-16D6C 18CFF 1AFF0-1AFF3
1AFF5-1AFFB 1AFFD-1AFFE 1B11F-1B122 1B132 1B155 1DF00-1DF1E 1DF25-1DF2A 1E030-1E06D 1E290-1E2AD 1E4D0-1E4EB 1E5D0-1E5ED
1E5F0 1E7E0-1E7E6 1E7E8-1E7EB 1E7ED-1E7EE 1E7F0-1E7FE 2A6DE-2A6DF 2B735-2B739 2EBF0-2EE5D 31350-323AF"""
NEW_NUMBERS = """10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16AC0-16AC9 16D70-16D79 1CCF0-1CCF9
1D2C0-1D2D3 1E4F0-1E4F9 1E5F1-1E5FA"""


@functools.cache
def char_classes() -> np.ndarray:
    r"""(0x110000,) uint8: the class of every code point. SPACE is `\s` without `\r\n`, which are NEWLINE."""
    classes = np.zeros(0x110000, np.uint8)
    kinds = {"L": LETTER, "N": NUMBER}
    assigned = 0x323B0  # no letter or number lies beyond
    classes[:assigned] = [kinds.get(c[0], OTHER) for c in map(unicodedata.category, map(chr, range(assigned)))]
    for ranges, kind in ((NEW_LETTERS, LETTER), (NEW_NUMBERS, NUMBER)):
        for span in ranges.split():
            first, last = int(span.split("-")[0], 16), int(span.split("-")[-1], 16)
            classes[first : last + 1] = kind
    for first, last in ((9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)):
        classes[first : last + 1] = SPACE
    classes[[0x2028, 0x2029, 0x202F, 0x205F, 0x3000]] = SPACE
    classes[[10, 13]] = NEWLINE
    classes.flags.writeable = False
    return classes


@inlined
def read_char(data, i, end, classes):
    """(class, width) of the character at i. A byte that is not valid UTF-8 is one character, of class OTHER."""
    first = data[i]
    if first < 0x80:
        return classes[first], 1
    if 0xC2 <= first < 0xE0:
        width, code, least = 2, first & 0x1F, 0x80
    elif 0xE0 <= first < 0xF0:
        width, code, least = 3, first & 0x0F, 0x800
    elif 0xF0 <= first < 0xF5:
        width, code, least = 4, first & 0x07, 0x10000
    else:
        return np.uint8(OTHER), 1
    if i + width > end:
        return np.uint8(OTHER), 1
    for k in range(1, width):
        byte = data[i + k]
        if byte & 0xC0 != 0x80:
            return np.uint8(OTHER), 1
        code = code << 6 | byte & 0x3F
    if code < least or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return np.uint8(OTHER), 1
    return classes[code], width


@inlined
def skip(data, i, end, classes, kind):
    """Where the run of characters of one class that starts at i ends."""
    while i < end:
        found, width = read_char(data, i, end, classes)
        if found != kind:
            break
        i += width
    return i


@inlined
def contraction(data, i, end):
    """Where the contraction at the apostrophe at i ends ('s 'd 'm 't 'll 've 're in any case); i if there is none."""
    if i + 1 < end:
        a = data[i + 1] | 0x20
        if a == ord("s") or a == ord("d") or a == ord("m") or a == ord("t"):
            return i + 2
    if i + 2 < end:
        b = data[i + 2] | 0x20
        if (a == ord("l") and b == ord("l")) or ((a == ord("v") or a == ord("r")) and b == ord("e")):
            return i + 3
        if data[i + 1] == 0xC5 and data[i + 2] == 0xBF:  # U+017F, the long s, is an s in another case
            return i + 3
    return i


@inlined
def next_chunk(data, i, end, classes):
    """Where the chunk that starts at i ends. Tries the alternatives of PATTERN in their order."""
    if data[i] == ord("'"):
        after = contraction(data, i, end)
        if after > i:
            return after
    kind, width = read_char(data, i, end, classes)
    after = i + width
    if kind == LETTER:
        return skip(data, after, end, classes, LETTER)
    if kind == NUMBER:
        if after < end:
            kind, width = read_char(data, after, end, classes)
            if kind == NUMBER:
                after += width
        return after
    if kind != NEWLINE:
        following, width = (read_char(data, after, end, classes)) if after < end else (np.uint8(NEWLINE), 0)
        if following == LETTER:
            return skip(data, after + width, end, classes, LETTER)
        if kind == OTHER or (data[i] == ord(" ") and following == OTHER):
            return skip(data, skip(data, after, end, classes, OTHER), end, classes, NEWLINE)
    # Whitespace: up to its last newline; else all of it, but the last character goes to the word that follows.
    last, newline, stop = i, i, i
    while stop < end:
        kind, width = read_char(data, stop, end, classes)
        if kind != SPACE and kind != NEWLINE:
            break
        last, stop = stop, stop + width
        if kind == NEWLINE:
            newline = stop
    if newline > i:
        return newline
    return last if stop < end and last > i else stop


@kernel(bytes_in, types.int64, types.Array(types.uint8, 1, "C", readonly=True), i64)
def split_kernel(data, end, classes, stops):
    i, n = 0, 0
    while i < end:
        i = next_chunk(data, i, end, classes)
        stops[n] = i
        n += 1
    return n


def split(data: bytes) -> list[bytes]:
    """Cut bytes into chunks, as PATTERN does. Invalid UTF-8 stays as it is, each bad byte like a punctuation mark."""
    stops = np.zeros(len(data) + 1, np.int64)
    n = split_kernel(np.frombuffer(data + PADDING, np.uint8), len(data), char_classes(), stops[1:])
    return [data[i:j] for i, j in zip(stops[:n].tolist(), stops[1 : n + 1].tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# A hash table of chunks


class Chunks(NamedTuple):
    """Distinct chunks, numbered in the order in which they came. Chunk e is text[starts[e] : starts[e + 1]]."""

    slots: np.ndarray  # (2 * power of two,) uint64: key, chunk number; key 0 is a free slot
    starts: np.ndarray  # (room + 1,) int64
    text: np.ndarray  # (bytes of room,) uint8
    values: np.ndarray  # (room + 1,) int64: how often the chunk came, or where its tokens start
    size: np.ndarray  # (1,) int64: chunks in the table

    @staticmethod
    def empty(room: int, bytes_of_room: int) -> "Chunks":
        slots = np.zeros(4 << (room - 1).bit_length(), np.uint64)
        starts, values = np.zeros(room + 1, np.int64), np.zeros(room + 1, np.int64)
        return Chunks(slots, starts, np.zeros(bytes_of_room, np.uint8), values, np.zeros(1, np.int64))

    def __len__(self) -> int:
        return int(self.size[0])


chunks_type = types.NamedTuple((u64, i64, u8, i64, i64), Chunks)
MIX = np.uint64(0x9E3779B97F4A7C15)
LONG_KEY = np.uint64(1 << 63)


@inlined
def chunk_key(data, i, j):
    """Up to 7 bytes: the bytes and their number, which no other chunk shares. More: a hash, with the top bit set."""
    n = j - i
    if n < 8:
        return load8(data, i) & ((np.uint64(1) << np.uint64(8 * n)) - np.uint64(1)) | np.uint64(n) << np.uint64(56)
    key = np.uint64(n)
    for k in range(i, j - 8, 8):
        key = (key ^ load8(data, k)) * MIX
        key ^= key >> np.uint64(29)
    key = (key ^ load8(data, j - 8)) * MIX
    return key ^ (key >> np.uint64(32)) | LONG_KEY


@inlined
def find_or_add(table, data, i, j):
    """The number of the chunk data[i:j], added if it is new; -1 if it is new and there is no room."""
    key = chunk_key(data, i, j)
    mask = np.uint64(len(table.slots) // 2 - 1)
    slot = (key * MIX >> np.uint64(40)) & mask
    while True:
        found = table.slots[np.uint64(2) * slot]
        if found == key:
            e = np.int64(table.slots[np.uint64(2) * slot + np.uint64(1)])
            if key < LONG_KEY:
                return e
            start, n = table.starts[e], j - i
            if table.starts[e + 1] - start == n:
                k = 0
                while k < n and table.text[start + k] == data[i + k]:
                    k += 1
                if k == n:
                    return e
        elif found == 0:
            break
        slot = (slot + np.uint64(1)) & mask
    e = table.size[0]
    start, n = table.starts[e], j - i
    if e + 1 >= len(table.starts) or start + n > len(table.text):
        return -1
    for k in range(n):
        table.text[start + k] = data[i + k]
    table.slots[np.uint64(2) * slot] = key
    table.slots[np.uint64(2) * slot + np.uint64(1)] = np.uint64(e)
    table.starts[e + 1] = start + n
    table.size[0] = e + 1
    return e


# ---------------------------------------------------------------------------------------------------------------------
# Training, first half: count the chunks


@kernel(bytes_in, i64, types.Array(types.uint8, 1, "C", readonly=True), chunks_type, i64)
def count_kernel(data, bounds, classes, table, at):
    """Count the chunks of documents data[bounds[d] : bounds[d + 1]], from document at[0] and byte at[1] on.

    True when done; False if the table is full, with `at` where to go on."""
    i = at[1]
    for document in range(at[0], len(bounds) - 1):
        i = max(i, bounds[document])
        while i < bounds[document + 1]:
            j = next_chunk(data, i, bounds[document + 1], classes)
            e = find_or_add(table, data, i, j)
            if e < 0:
                at[0], at[1] = document, i
                return False
            table.values[e] += 1
            i = j
    return True


@kernel(chunks_type, chunks_type, types.int64)
def pour_kernel(source, target, least):
    """Add the chunks of `source` that came at least `least` times to `target`, which has room for them."""
    for e in range(source.size[0]):
        if source.values[e] >= least:
            target.values[find_or_add(target, source.text, source.starts[e], source.starts[e + 1])] += source.values[e]


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
        data, bounds = join(documents)
        try:
            table = self.tables.pop()
        except IndexError:
            table = Chunks.empty(self.room, 16 * self.room)
        if len(table.text) < len(data):  # an empty table must hold any chunk
            self.pour(table)
            table = Chunks.empty(self.room, len(data))
        at = np.zeros(2, np.int64)
        while not count_kernel(data, bounds, char_classes(), table, at):
            self.pour(table)
        self.tables.append(table)

    def pour(self, table: Chunks) -> None:
        """Add a thread's counts to the total, and empty its table."""
        with self.lock:
            need = len(self.total) + len(table)
            need_bytes = int(self.total.starts[len(self.total)] + table.starts[len(table)])
            if need > len(self.total.starts) - 1 or need_bytes > len(self.total.text):
                bigger = Chunks.empty(max(need, min(2 * need, self.limit + self.room)), 2 * need_bytes)
                pour_kernel(self.total, bigger, 2 if need > self.limit else 1)
                self.total = bigger
            pour_kernel(table, self.total, 1)
        for array in (table.slots, table.values, table.size):
            array.fill(0)

    def finish(self) -> Chunks:
        """All counts. Call it once, after the last `add`."""
        while self.tables:
            self.pour(self.tables.pop())
        return self.total


def join(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Documents end to end as one padded array of bytes, and the (n + 1,) places where they meet."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    return np.frombuffer(b"".join([*documents, PADDING]), np.uint8), bounds


# ---------------------------------------------------------------------------------------------------------------------
# Training, second half: merge


@inlined
def grown(array, size):
    """The array itself if it has `size` elements, else a copy with at least twice as many as it had."""
    if size <= len(array):
        return array
    bigger = np.empty(max(size, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger


@inlined
def lay_out(starts, text, symbols, word):
    """Put the chunks one after another with a gap of one before, between and after, where the symbol is -1."""
    symbols[0], at = -1, 1
    for e in range(len(starts) - 1):
        for k in range(starts[e], starts[e + 1]):
            symbols[at] = text[k]
            word[at] = e
            at += 1
        symbols[at] = -1
        at += 1


@inlined
def first_pairs(symbols, word, counts, pair_at):
    """Number the pairs of bytes that occur; returns their (left << 32 | right), weights and numbers of places."""
    number = np.full(65536, -1, np.int32)
    pairs, weights, places = np.empty(65536, np.int64), np.zeros(65536, np.int64), np.zeros(65536, np.int64)
    n = 0
    for p in range(len(symbols) - 1):
        a, b = np.int64(symbols[p]), np.int64(symbols[p + 1])
        pair_at[p] = -1
        if a >= 0 and b >= 0:
            s = number[a << 8 | b]
            if s < 0:
                s = number[a << 8 | b] = n
                pairs[n] = a << 32 | b
                n += 1
            pair_at[p] = s
            weights[s] += counts[word[p]]
            places[s] += 1
    return pairs, weights, places, n


@kernel(i64, u8, i64, types.int64, i64)
def merge_kernel(starts, text, counts, n_merges, progress):
    """Learn merges from chunks and their counts; returns (n, 2) int32. progress[0] is the number learned so far;
    once progress[1] is not 0 it gives up.

    Every pair of neighbours has a number; pair_at[p] is the number of the pair whose left token starts at byte p. All
    places of a pair arise at once, in the step that makes the newer of its two tokens, so they are stored once, in one
    stretch of `places`, and a place that meanwhile holds another pair is skipped. A pair's count can only fall later:
    when a pair comes up in the heap with an old count, it goes back in with its new one.
    symbols[p] is right at the first and the last byte of each token, which is enough to find both neighbours."""
    size = starts[-1] + len(starts)
    symbols, word, pair_at = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    lay_out(starts, text, symbols, word)
    pairs, weights, lengths, n_pairs = first_pairs(symbols, word, counts, pair_at)
    first = np.empty(len(pairs) + 1, np.int64)  # the places of pair s are places[first[s] : first[s + 1]]
    first[0] = 0
    for s in range(n_pairs):
        first[s + 1] = first[s] + lengths[s]
        lengths[s] = first[s]
    places = np.empty(first[n_pairs], np.int32)
    for p in range(size - 1):
        s = pair_at[p]
        if s >= 0:
            places[lengths[s]] = p
            lengths[s] += 1
    heap = [(-weights[s], pairs[s], s) for s in range(n_pairs)]
    heapq.heapify(heap)

    merges = np.empty((n_merges, 2), np.int32)
    width = np.ones(256 + n_merges, np.int32)  # bytes of each token
    with_left, with_right = np.full(256 + n_merges, -1, np.int32), np.full(256 + n_merges, -1, np.int32)
    seen_pair, seen_place = np.empty(1024, np.int32), np.empty(1024, np.int32)
    n = 0
    while n < n_merges and len(heap) > 0 and progress[1] == 0:
        weight, pair, s = heapq.heappop(heap)
        if -weight != weights[s]:
            if weights[s] > 0:
                heapq.heappush(heap, (-weights[s], pair, s))
            continue
        a, b, new = pair >> 32, pair & 0xFFFFFFFF, 256 + n
        merges[n, 0], merges[n, 1] = a, b
        width[new] = width[a] + width[b]
        n += 1
        progress[0] = n
        old_pairs, n_seen = n_pairs, 0
        most = n_pairs + 2 * (256 + n)
        pairs, weights, lengths, first = (
            grown(pairs, most),
            grown(weights, most),
            grown(lengths, most),
            grown(first, most + 1),
        )
        for k in range(first[s], first[s + 1]):
            p = np.int64(places[k])
            if pair_at[p] != s:
                continue
            count, middle, after = counts[word[p]], p + width[a], p + width[new]
            x, y = symbols[p - 1], symbols[after]
            weights[pair_at[middle]] -= count if y >= 0 else 0
            pair_at[p] = pair_at[middle] = -1
            symbols[p] = symbols[after - 1] = new
            seen_pair, seen_place = grown(seen_pair, n_seen + 2), grown(seen_place, n_seen + 2)
            if x >= 0:
                before = p - width[x]
                weights[pair_at[before]] -= count
                t = with_left[x]
                if t < old_pairs:
                    t = with_left[x] = n_pairs
                    pairs[t], weights[t], lengths[t] = np.int64(x) << 32 | new, 0, 0
                    n_pairs += 1
                weights[t] += count
                lengths[t] += 1
                pair_at[before] = t
                seen_pair[n_seen], seen_place[n_seen] = t, before
                n_seen += 1
            if y >= 0:
                t = with_right[y]
                if t < old_pairs:
                    t = with_right[y] = n_pairs
                    pairs[t], weights[t], lengths[t] = new << 32 | np.int64(y), 0, 0
                    n_pairs += 1
                weights[t] += count
                lengths[t] += 1
                pair_at[p] = t
                seen_pair[n_seen], seen_place[n_seen] = t, p
                n_seen += 1
        weights[s] = 0
        for t in range(old_pairs, n_pairs):
            first[t + 1] = first[t] + lengths[t]
            lengths[t] = first[t]
            if weights[t] > 0:
                heapq.heappush(heap, (-weights[t], pairs[t], t))
        places = grown(places, first[n_pairs])
        for k in range(n_seen):
            t = seen_pair[k]
            places[lengths[t]] = seen_place[k]
            lengths[t] += 1
    return merges[:n]


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
        total = counter.finish()
        del counter
        n = len(total)
        starts, text, counts = total.starts[: n + 1], total.text, total.values[:n]
        del total
        progress = np.zeros(2, np.int64)
        job = pool.submit(merge_kernel, starts, text, counts, n_merges, progress)
        try:
            while not job.done():
                threading.Event().wait(0.02)
                report("merge", int(progress[0]), n_merges)
        finally:
            progress[1] = 1  # after Ctrl-C the kernel must not go on
        report("merge", n_merges, n_merges)
        return job.result()


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


def to_bytes(text: str) -> bytes:
    """UTF-8. Halves of a surrogate pair that stand together become the character; others become U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


class Ranks(NamedTuple):
    """Hash table of merges."""

    pairs: np.ndarray  # (power of two,) int64: left << 32 | right; -1 is a free slot
    ids: np.ndarray  # (power of two,) int32: what the pair becomes


class Cache(NamedTuple):
    """Chunks met so far and their tokens: tokens[chunks.values[e] : chunks.values[e + 1]]."""

    chunks: Chunks
    tokens: np.ndarray  # (room,) int32


ranks_type = types.NamedTuple((i64, i32), Ranks)
cache_type = types.NamedTuple((chunks_type, i32), Cache)
NO_MERGE = 1 << 30
SHORT = 64  # bytes; longer chunks are not cached, and are merged with a heap


@inlined
def pair_slot(pairs, pair):
    """Where the pair is in the table, or the free slot where it belongs."""
    mask = len(pairs) - 1
    slot = np.int64(np.uint64(pair ^ pair >> 17) * MIX >> np.uint64(32)) & mask
    while pairs[slot] != pair and pairs[slot] >= 0:
        slot = (slot + 1) & mask
    return slot


@kernel(types.Array(types.int32, 2, "C"), ranks_type)
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
def merge_short(data, i, j, ranks, ids, at):
    """Write the tokens of chunk data[i:j] to ids[at:]; returns where they end. Time grows with the square of j - i."""
    n = j - i
    following = np.empty(SHORT, np.int64)  # what each id and the next would become
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
            following[m - 1 if m == k + 1 else m - 1] = following[m]
        if k > 0:
            following[k - 1] = merged(ranks, ids[at + k - 1], ids[at + k])
        if k < n - 1:
            following[k] = merged(ranks, ids[at + k], ids[at + k + 1])
    return at + n


@inlined
def merge_long(data, i, j, ranks, ids, at):
    """The same with a heap of (id, place): time grows with n log n, so a million letters in a row do no harm."""
    n = j - i
    symbols, after, before = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    heap = [np.int64(0) for _ in range(0)]
    for k in range(n):
        symbols[k], after[k], before[k] = data[i + k], k + 1, k - 1
        if k + 1 < n:
            new = merged(ranks, data[i + k], data[i + k + 1])
            if new != NO_MERGE:
                heap.append(new << 32 | k)
    heapq.heapify(heap)
    while len(heap) > 0:
        top = heapq.heappop(heap)
        new, k = top >> 32, top & 0xFFFFFFFF
        m = after[k]
        if symbols[k] < 0 or m == n or merged(ranks, symbols[k], symbols[m]) != new:
            continue  # one of the two has merged with another since
        symbols[k], symbols[m] = new, -1
        after[k] = after[m]
        if after[k] < n:
            before[after[k]] = k
            following = merged(ranks, new, symbols[after[k]])
            if following != NO_MERGE:
                heapq.heappush(heap, following << 32 | k)
        if before[k] >= 0:
            following = merged(ranks, symbols[before[k]], new)
            if following != NO_MERGE:
                heapq.heappush(heap, following << 32 | before[k])
    for k in range(n):
        if symbols[k] >= 0:
            ids[at] = symbols[k]
            at += 1
    return at


@kernel(bytes_in, i64, types.Array(types.uint8, 1, "C", readonly=True), ranks_type, cache_type, i32, i64)
def encode_kernel(data, bounds, classes, ranks, cache, ids, id_bounds):
    """Ids of documents data[bounds[d] : bounds[d + 1]], written to ids[id_bounds[d] : id_bounds[d + 1]]."""
    chunks, tokens, at = cache.chunks, cache.tokens, 0
    for document in range(len(bounds) - 1):
        i, end = bounds[document], bounds[document + 1]
        while i < end:
            j = next_chunk(data, i, end, classes)
            if j - i > SHORT:
                at = merge_long(data, i, j, ranks, ids, at)
                i = j
                continue
            known = chunks.size[0]
            e = find_or_add(chunks, data, i, j)
            if e < 0 or (e == known and chunks.values[e] + SHORT > len(tokens)):  # full: forget all
                chunks.slots[:] = 0
                chunks.size[0] = known = 0
                e = find_or_add(chunks, data, i, j)
            if e == known:
                chunks.values[e + 1] = merge_short(data, i, j, ranks, tokens, chunks.values[e])
            for k in range(chunks.values[e], chunks.values[e + 1]):
                ids[at] = tokens[k]
                at += 1
            i = j
        id_bounds[document + 1] = at


class Encoder:
    """Merges, made ready to turn bytes into ids. Any thread may use it; each call borrows a cache of its own."""

    def __init__(self, merges: np.ndarray, room: int = 1 << 16):
        """merges: (n, 2) int32, as `train` returns it. room: chunks that each cache holds."""
        size = 2 << max(len(merges), 8).bit_length()
        self.ranks = Ranks(np.full(size, -1, np.int64), np.zeros(size, np.int32))
        ranks_kernel(np.ascontiguousarray(merges, np.int32), self.ranks)
        self.dtype = np.uint16 if len(merges) + 256 <= 65536 else np.uint32
        self.room = room
        self.caches: deque[Cache] = deque()

    def encode_many(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all documents end to end, int32, and the (n + 1,) places where they meet. One thread, without the GIL."""
        data, bounds = join(documents)
        ids, id_bounds = np.empty(bounds[-1], np.int32), np.zeros_like(bounds)
        try:
            cache = self.caches.pop()
        except IndexError:
            cache = Cache(Chunks.empty(self.room, 16 * self.room), np.zeros(8 * self.room, np.int32))
        encode_kernel(data, bounds, char_classes(), self.ranks, cache, ids, id_bounds)
        self.caches.append(cache)
        return ids[: id_bounds[-1]], id_bounds
