"""Text to chunks: the compiled splitter, and a hash table of chunks.

In: UTF-8 bytes, in fact any bytes. Out: where each chunk ends; distinct chunks and how often they came.
Chunks are words, mostly. Training and encoding cut text with the same function, and no token spans two chunks.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import types

from nanochat.bpe_kernels import (
    PADDING,
    ascii_letters,
    bytes_in,
    i64,
    load8,
    outlined,
    prefetch,
    trailing_zeros,
    u8,
    u64,
)
from nanochat.native import inlined, kernel
from nanochat.unicode_classes import LETTER, NEWLINE, NUMBER, OTHER, SPACE, char_classes

# What `next_chunk` implements by hand: the GPT-4 pattern, with numbers cut into at most two digits.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

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


@inlined
def skip_letters(data, i, end, classes):
    """Where the run of letters that starts at i ends."""
    while i < end:
        n = trailing_zeros(~ascii_letters(data, i))
        i += n
        if n < 16:
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


APOSTROPHE, NOT_ASCII = 5, 6


def byte_kinds() -> np.ndarray:
    """(256,) uint8: the class of every ASCII character, but for the apostrophe. `char_classes` would take too long."""
    kinds = np.full(256, NOT_ASCII, np.uint8)
    for byte in range(128):
        letter = chr(byte)
        kinds[byte] = LETTER if letter.isalpha() else NUMBER if letter.isdigit() else OTHER
    kinds[[9, 11, 12, 32]], kinds[[10, 13]], kinds[ord("'")] = SPACE, NEWLINE, APOSTROPHE
    return kinds


def easy_chunks() -> np.ndarray:
    """(7 * 2 * 8,) bool by the kind of a chunk's first byte, whether ASCII letters come next, and the kind of the byte
    behind them: whether these are surely the whole chunk."""
    easy = np.zeros((7, 2, 8), np.bool_)
    easy[[LETTER, SPACE, OTHER], 1, :NOT_ASCII] = True
    easy[LETTER, 0, :NOT_ASCII] = True
    easy[NUMBER, 0, :NOT_ASCII] = True
    easy[[SPACE, OTHER, APOSTROPHE], 0, NUMBER] = True
    easy[[OTHER, APOSTROPHE], 0, SPACE] = True
    easy[NUMBER, 0, NUMBER] = False
    easy[:, 1, LETTER] = False  # more letters than were looked at
    return easy.reshape(-1)


BYTE_KINDS, EASY = byte_kinds(), easy_chunks()


@kernel(bytes_in, u8)
def letters_kernel(data, letters):
    for k in range((len(data) - 1) >> 4):
        sixteen = ascii_letters(data, 16 * k)
        letters[2 * k], letters[2 * k + 1] = np.uint8(sixteen), np.uint8(sixteen >> np.uint64(8))


def ascii_letter_bits(data: np.ndarray) -> np.ndarray:
    """For (n,) padded bytes: (n / 8 + some,) uint8, where bit i & 7 of byte i >> 3 says whether byte i is an ASCII
    letter. Found 16 at a time, it lets `next_chunk` see a word of any usual length at one look."""
    letters = np.zeros(len(data) // 8 + len(PADDING), np.uint8)
    letters_kernel(data, letters)
    return letters


@inlined
def next_chunk(data, letters, i, end, classes):
    """Where the chunk that starts at i ends. Most chunks are ASCII letters with up to one other byte before them, or a
    sign or a digit: those take no branch that depends on the text, which a processor would have to guess."""
    following = load8(letters, (i + 1) >> 3) >> np.uint64((i + 1) & 7)  # 57 bits at least
    n_letters = trailing_zeros(~following | np.uint64(1 << 56))
    j = i + n_letters + 1
    if j <= end and EASY[(BYTE_KINDS[data[i]] << 4) + (min(n_letters, 1) << 3) + BYTE_KINDS[data[j]]]:
        return j
    return any_chunk(data, i, end, classes)


@outlined
def any_chunk(data, i, end, classes):
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


@kernel(bytes_in, u8, types.int64, bytes_in, i64)
def split_kernel(data, letters, end, classes, stops):
    i, n = np.int64(0), np.int64(0)  # not literals, for which numba would compile next_chunk once more
    while i < end:
        i = next_chunk(data, letters, i, end, classes)
        stops[n] = i
        n += 1
    return n


def split(data: bytes) -> list[bytes]:
    """Cut bytes into chunks, as PATTERN does. Invalid UTF-8 stays as it is, each bad byte like a punctuation mark."""
    stops = np.zeros(len(data) + 1, np.int64)
    padded = np.frombuffer(data + PADDING, np.uint8)
    n = split_kernel(padded, ascii_letter_bits(padded), len(data), char_classes(), stops[1:])
    return [data[i:j] for i, j in zip(stops[:n].tolist(), stops[1 : n + 1].tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# A hash table of chunks


BLOCK = 64  # chunks


class Chunks(NamedTuple):
    """Distinct chunks, numbered as they came: chunk e is text[starts[e] : starts[e + 1]].

    A slot is four numbers: (low, high), which say which chunk it is; a value of the user's; the chunk's number.
    Up to 15 bytes (low, high) are the chunk itself and its length, so that one look at one place finds most chunks."""

    slots: np.ndarray  # (4 * power of two,) uint64
    starts: np.ndarray  # (room + 1,) int64
    text: np.ndarray  # (bytes of room + padding,) uint8
    size: np.ndarray  # (2,) int64: chunks in the table; free for the user
    block: np.ndarray  # (BLOCK, 4) uint64: chunks of the text that are looked up next, see `next_block`

    @classmethod
    def empty(cls, room: int, text_room: int) -> "Chunks":
        n = 8 << (room - 1).bit_length()
        slots = np.zeros(n + 8, np.uint64)
        slots = slots[-(slots.ctypes.data >> 3) % 8 :][:n]  # no slot lies on two cache lines
        starts, text = np.zeros(room + 1, np.int64), np.zeros(text_room + len(PADDING), np.uint8)
        return cls(slots, starts, text, np.zeros(2, np.int64), np.zeros((BLOCK, 4), np.uint64))

    def clear(self) -> None:
        self.slots.fill(0)
        self.size.fill(0)


chunks_type = types.NamedTuple((u64, i64, u8, i64, types.uint64[:, ::1]), Chunks)
MIX, MIX_HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
LONG = np.uint64(1 << 63)


@inlined
def chunk_key(data, i, j):
    """(low, high) of chunk data[i:j]. From 16 bytes on it is (a hash, LONG and the length)."""
    n = j - i
    if n < 16:
        low = load8(data, i) & ~np.uint64(0) >> np.uint64(64 - 8 * min(n, 8))
        high = load8(data, i + 8) & (np.uint64(1) << np.uint64(8 * max(n - 8, 0))) - np.uint64(1)
        return low, high | np.uint64(n) << np.uint64(56)
    low = load8(data, j - 8) * MIX
    for k in range(i, j - 8, 8):
        low = (low ^ low >> np.uint64(32) ^ load8(data, k)) * MIX
    return low, np.uint64(n) | LONG


@inlined
def home(table, low, high):
    """Where the slot of a chunk starts in table.slots, if no other is there."""
    mixed = low * MIX + high * MIX_HIGH
    return np.int64((mixed ^ mixed >> np.uint64(32)) * MIX >> np.uint64(34)) & len(table.slots) - 4


@outlined
def next_block(data, letters, i, end, classes, table):
    """Cut up to BLOCK chunks from i on; returns their number. Row k of table.block: (low, high), home, end of chunk k.

    By the time that they are looked up, their slots have come from memory."""
    n = np.int64(0)
    while i < end and n < BLOCK:
        j = next_chunk(data, letters, i, end, classes)
        low, high = chunk_key(data, i, j)
        slot = home(table, low, high)
        prefetch(table.slots, slot)
        table.block[n, 0], table.block[n, 1] = low, high
        table.block[n, 2], table.block[n, 3] = np.uint64(slot), np.uint64(j)
        n += 1
        i = j
    return n


@inlined
def block_row(table, k):
    return table.block[k, 0], table.block[k, 1], np.int64(table.block[k, 2]), np.int64(table.block[k, 3])


@inlined
def find_or_add(table, data, i, j, low, high, slot):
    """The slot of chunk data[i:j], which has this key and home; the chunk is added if it is new, with the value 0.
    -1 if it is new and there is no room."""
    while True:
        if table.slots[slot + 1] == high and table.slots[slot] == low:
            if high < LONG or same_text(table, slot, data, i):
                return slot
        elif table.slots[slot + 1] == 0:
            return add(table, data, i, j, low, high, slot)
        slot = (slot + 4) & (len(table.slots) - 4)


@outlined
def add(table, data, i, j, low, high, slot):
    e, n = table.size[0], j - i
    start = table.starts[e]
    if e + 1 >= len(table.starts) or start + n + len(PADDING) > len(table.text):
        return np.int64(-1)
    for k in range(n):
        table.text[start + k] = data[i + k]
    table.starts[e + 1] = start + n
    table.size[0] = e + 1
    table.slots[slot], table.slots[slot + 1] = low, high
    table.slots[slot + 2], table.slots[slot + 3] = np.uint64(0), np.uint64(e)
    return slot


@outlined
def same_text(table, slot, data, i):
    """Whether the chunk in a slot is the one at i, given that keys and lengths are the same."""
    e = table.slots[slot + 3]
    start = table.starts[e]
    for k in range(table.starts[e + 1] - start):
        if table.text[start + k] != data[i + k]:
            return False
    return True


@kernel(bytes_in, u8, i64, bytes_in, chunks_type, i64)
def count_kernel(data, letters, bounds, classes, table, at):
    """Count the chunks of documents data[bounds[d] : bounds[d + 1]] as values, from document at[0], byte at[1] on.

    True when done; False if the table is full, with `at` where to go on."""
    i = at[1]
    for document in range(at[0], len(bounds) - 1):
        i, end = max(i, bounds[document]), bounds[document + 1]
        while i < end:
            for k in range(next_block(data, letters, i, end, classes, table)):
                low, high, slot, j = block_row(table, k)
                slot = find_or_add(table, data, i, j, low, high, slot)
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
            i, j = starts[e], starts[e + 1]
            low, high = chunk_key(text, i, j)
            slot = find_or_add(target, text, i, j, low, high, home(target, low, high))
            target.slots[slot + 2] += np.uint64(counts[e])


def to_bytes(text: str) -> bytes:
    """UTF-8. Halves of a surrogate pair that stand together become the character; others become U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def join(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents end to end as one padded array of bytes, its `ascii_letter_bits`, and the (n + 1,) places where they
    meet."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    data = np.frombuffer(b"".join([*documents, PADDING]), np.uint8)
    return data, ascii_letter_bits(data), bounds
