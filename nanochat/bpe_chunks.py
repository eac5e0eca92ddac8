"""Text to chunks: the compiled splitter, a hash table of chunks.

In: UTF-8 bytes, in fact any bytes. Out: where each chunk ends; distinct chunks and how often they came.
Chunks are words, mostly. Training and encoding cut text with the same function, and no token spans two chunks.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nanochat.native import inlined, kernel
from nanochat.unicode_classes import LETTER, NEWLINE, NUMBER, OTHER, SPACE, char_classes

# What `next_chunk` implements by hand: the GPT-4 pattern, with numbers cut into at most two digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# ---------------------------------------------------------------------------------------------------------------------
# Types

bytes_in = types.Array(types.uint8, 1, "C", readonly=True)
u8, u64, i32, i64 = types.uint8[::1], types.uint64[::1], types.int32[::1], types.int64[::1]
i32_2d, i64_2d = types.int32[:, ::1], types.int64[:, ::1]


@intrinsic
def load8(typing_context, array, index):
    """The 8 bytes at array[index:index + 8] as one little-endian number. The array must reach that far."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        word = builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(array, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, word):
    """How many of the low bits of a number are 0."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


PADDING = bytes(8)  # so that load8 may read past the last byte of text

# ---------------------------------------------------------------------------------------------------------------------
# The splitter


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


EACH = np.uint64(0x0101010101010101)  # times a byte: that byte eight times
HIGH = np.uint64(0x80) * EACH


@inlined
def ascii_letters(data, i):
    """How many of the 8 bytes from i on are ASCII letters before the first that is not."""
    word = load8(data, i)
    lower = (word | np.uint64(0x20) * EACH) & ~HIGH
    # The high bit of each byte of a sum says whether the byte was at least "a", or more than "z".
    letters = (lower + np.uint64(0x80 - 0x61) * EACH) & ~(lower + np.uint64(0x80 - 0x7B) * EACH) & ~word & HIGH
    return np.int64(trailing_zeros(letters ^ HIGH) >> np.uint64(3))


@inlined
def skip_letters(data, i, end, classes):
    """Where the run of letters that starts at i ends."""
    while i < end:
        n = ascii_letters(data, i)
        i += n
        if n < 8:
            if i >= end or data[i] < 0x80:
                break
            kind, width = read_char(data, i, end, classes)
            if kind != LETTER:
                break
            i += width
    return min(i, end)


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
        return skip_letters(data, after, end, classes)
    if kind == NUMBER:
        if after < end:
            kind, width = read_char(data, after, end, classes)
            if kind == NUMBER:
                after += width
        return after
    if kind != NEWLINE:
        following, width = read_char(data, after, end, classes) if after < end else (NEWLINE, 0)
        if following == LETTER:
            return skip_letters(data, after + width, end, classes)
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
# A hash table of chunks


class Chunks(NamedTuple):
    """Distinct chunks, numbered as they came: chunk e is text[starts[e] : starts[e + 1]].

    A slot is four numbers: (low, high), which say which chunk it is; a value of the user's; the chunk's number.
    Up to 15 bytes (low, high) are the chunk itself and its length, so that one look at one place finds most chunks."""

    slots: np.ndarray  # (4 * power of two,) uint64
    starts: np.ndarray  # (room + 1,) int64
    text: np.ndarray  # (bytes of room + 8,) uint8
    size: np.ndarray  # (2,) int64: chunks in the table; free for the user

    @classmethod
    def empty(cls, room: int, text_room: int) -> "Chunks":
        slots = np.zeros(8 << (room - 1).bit_length(), np.uint64)
        return cls(slots, np.zeros(room + 1, np.int64), np.zeros(text_room + 8, np.uint8), np.zeros(2, np.int64))

    def clear(self) -> None:
        self.slots.fill(0)
        self.size.fill(0)


chunks_type = types.NamedTuple((u64, i64, u8, i64), Chunks)
MIX, MIX_HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
LONG = np.uint64(1 << 63)


@inlined
def low_bytes(data, i, n):
    """The n bytes from i on, 0 to 7, as a number."""
    return load8(data, i) & ((np.uint64(1) << np.uint64(8 * n)) - np.uint64(1))


@inlined
def chunk_key(data, i, j):
    """(low, high) of chunk data[i:j]. From 16 bytes on it is (a hash, LONG and the length)."""
    n = j - i
    if n < 8:
        return low_bytes(data, i, n), np.uint64(n) << np.uint64(56)
    if n < 16:
        return load8(data, i), low_bytes(data, i + 8, n - 8) | np.uint64(n) << np.uint64(56)
    low = load8(data, j - 8) * MIX
    for k in range(i, j - 8, 8):
        low = (low ^ low >> np.uint64(32) ^ load8(data, k)) * MIX
    return low, np.uint64(n) | LONG


@inlined
def find_or_add(table, data, i, j):
    """Where the slot of chunk data[i:j] starts in table.slots; the chunk is added if it is new, with the value 0.
    -1 if it is new and there is no room."""
    low, high = chunk_key(data, i, j)
    mixed = low * MIX + high * MIX_HIGH
    at = np.int64((mixed ^ mixed >> np.uint64(32)) * MIX >> np.uint64(36)) & (len(table.slots) // 4 - 1)
    while True:
        slot = 4 * at
        if table.slots[slot + 1] == high and table.slots[slot] == low:
            if high < LONG or same_text(table, np.int64(table.slots[slot + 3]), data, i, j):
                return slot
        elif table.slots[slot + 1] == 0:
            break
        at = (at + 1) & (len(table.slots) // 4 - 1)
    e, n = table.size[0], j - i
    start = table.starts[e]
    if e + 1 >= len(table.starts) or start + n + 8 > len(table.text):
        return np.int64(-1)
    for k in range(n):
        table.text[start + k] = data[i + k]
    table.starts[e + 1] = start + n
    table.size[0] = e + 1
    table.slots[slot], table.slots[slot + 1] = low, high
    table.slots[slot + 2], table.slots[slot + 3] = np.uint64(0), np.uint64(e)
    return slot


@inlined
def same_text(table, e, data, i, j):
    start = table.starts[e]
    for k in range(j - i):
        if table.text[start + k] != data[i + k]:
            return False
    return True


@kernel(bytes_in, i64, bytes_in, chunks_type, i64)
def count_kernel(data, bounds, classes, table, at):
    """Count the chunks of documents data[bounds[d] : bounds[d + 1]] as values, from document at[0], byte at[1] on.

    True when done; False if the table is full, with `at` where to go on."""
    i = at[1]
    for document in range(at[0], len(bounds) - 1):
        i, end = max(i, bounds[document]), bounds[document + 1]
        while i < end:
            j = next_chunk(data, i, end, classes)
            slot = find_or_add(table, data, i, j)
            if slot < 0:
                at[0], at[1] = document, i
                return False
            table.slots[slot + 2] += np.uint64(1)
            i = j
    return True


@kernel(i64, u8, i64, types.int64, chunks_type)
def pour_kernel(starts, text, counts, least, target):
    """Add chunks text[starts[e] : starts[e + 1]] that came counts[e] times, at least `least`, to a table with room."""
    for e in range(len(counts)):
        if counts[e] >= least:
            target.slots[find_or_add(target, text, starts[e], starts[e + 1]) + 2] += np.uint64(counts[e])


def to_bytes(text: str) -> bytes:
    """UTF-8. Halves of a surrogate pair that stand together become the character; others become U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def join(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Documents end to end as one padded array of bytes, and the (n + 1,) places where they meet."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    return np.frombuffer(b"".join([*documents, PADDING]), np.uint8), bounds
