"""Byte-level BPE at native speed: one splitter for training and encoding, a trainer, an encoder.

In: UTF-8 bytes, in fact any bytes. Out: merges learned from text; token ids for text, given merges.
Compiled by numba on first use, never on import; numba keeps the machine code for the next process.

Text is cut into chunks (words, mostly), and no token spans two. Ids 0 to 255 are the bytes; id 256 + k is what merge k
makes of two smaller ids. To encode a chunk, merge its leftmost pair of smallest id until no pair is left.
"""

import functools
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
i32_2d, i64_2d = types.int32[:, ::1], types.int64[:, ::1]


inlined = numba.njit(
    forceinline=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # a call that is not inlined counts references to its arrays, which is slow


class Kernel:
    """A function that numba compiles for one signature, when it is first called."""

    lock = threading.Lock()

    def __init__(self, function: Callable, signature: tuple, nrt: bool):
        self.dispatcher = numba.njit(cache=True, nogil=True, _nrt=nrt)(function)
        self.signature, self.ready = signature, False

    def __call__(self, *args):
        if not self.ready:
            with self.lock:
                self.compile()
        return self.dispatcher(*args)

    def compile(self) -> None:
        if self.ready:  # by another thread, while this one waited
            return
        message = "compiling the tokenizer for this machine, once ..."
        timer = threading.Timer(2, print, [message], {"file": sys.stderr, "flush": True})
        timer.daemon = True
        timer.start()
        try:
            self.dispatcher.compile(self.signature)
        finally:
            timer.cancel()
        self.dispatcher.disable_compile()  # other types are a mistake
        self.ready = True


def kernel(*signature, nrt: bool = False) -> Callable[[Callable], Kernel]:
    return lambda function: Kernel(function, signature, nrt)


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

OTHER, LETTER, NUMBER, SPACE, NEWLINE = np.arange(5, dtype=np.uint8)

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
        return OTHER, 1
    if i + width > end:
        return OTHER, 1
    for k in range(1, width):
        byte = data[i + k]
        if byte & 0xC0 != 0x80:
            return OTHER, 1
        code = code << 6 | byte & 0x3F
    if code < least or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return OTHER, 1
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
        following, width = (read_char(data, after, end, classes)) if after < end else (NEWLINE, 0)
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


@kernel(bytes_in, types.int64, bytes_in, i64)
def split_kernel(data, end, classes, stops):
    i, n = np.int64(0), np.int64(0)  # not literals, for which numba would compile next_chunk once more
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


@kernel(bytes_in, i64, bytes_in, chunks_type, i64)
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

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts, text, counts): chunk e is text[starts[e] : starts[e + 1]]. Call it once, after the last `add`."""
        while self.tables:
            self.pour(self.tables.pop())
        n = len(self.total)
        return self.total.starts[: n + 1], self.total.text, self.total.values[:n]


def join(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Documents end to end as one padded array of bytes, and the (n + 1,) places where they meet."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    return np.frombuffer(b"".join([*documents, PADDING]), np.uint8), bounds


# ---------------------------------------------------------------------------------------------------------------------
# Training, second half: merge


class Merging(NamedTuple):
    """Where learning the merges stands. Every pair of neighbours has a number s; a pair of bytes has s = left << 8 | right.

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
    scratch: np.ndarray  # (SHORT,) int64


ranks_type = types.NamedTuple((i64, i32), Ranks)
cache_type = types.NamedTuple((chunks_type, i32, i64), Cache)
NO_MERGE = 1 << 30
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


@kernel(bytes_in, i64, bytes_in, ranks_type, cache_type, i32, i64, i64)
def encode_kernel(data, bounds, classes, ranks, cache, ids, id_bounds, at):
    """Ids of documents data[bounds[d] : bounds[d + 1]], written to ids[id_bounds[d] : id_bounds[d + 1]].

    Starts at document at[0], byte at[1], id at[2]. True when done; False when it comes to a long chunk, which it leaves
    to the caller: that chunk ends at byte at[3]."""
    chunks, tokens, i, n = cache.chunks, cache.tokens, at[1], at[2]
    for document in range(at[0], len(bounds) - 1):
        i, end = max(i, bounds[document]), bounds[document + 1]
        while i < end:
            j = next_chunk(data, i, end, classes)
            if j - i > SHORT:
                at[0], at[1], at[2], at[3] = document, i, n, j
                return False
            known = chunks.size[0]
            e = find_or_add(chunks, data, i, j)
            if e < 0 or (e == known and chunks.values[e] + SHORT > len(tokens)):  # full: forget all
                chunks.slots[:] = 0
                chunks.size[0] = known = 0
                e = find_or_add(chunks, data, i, j)
            if e == known:
                chunks.values[e + 1] = merge_short(data, i, j, ranks, cache.scratch, tokens, chunks.values[e])
            for k in range(chunks.values[e], chunks.values[e + 1]):
                ids[n] = tokens[k]
                n += 1
            i = j
        id_bounds[document + 1] = n
    return True


class Encoder:
    """Merges, made ready to turn bytes into ids. Any thread may use it; each call borrows a cache of its own."""

    def __init__(self, merges: np.ndarray, room: int = 1 << 18):
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
            tokens, scratch = np.zeros(8 * self.room, np.int32), np.zeros(SHORT, np.int64)
            cache = Cache(Chunks.empty(self.room, 16 * self.room), tokens, scratch)
        at = np.zeros(4, np.int64)
        while not encode_kernel(data, bounds, char_classes(), self.ranks, cache, ids, id_bounds, at):
            _, start, n, stop = at.tolist()
            at[1:3] = stop, merge_long(data, start, stop, self.ranks, ids, n)
        self.caches.append(cache)
        return ids[: id_bounds[-1]], id_bounds
