"""The splitter against `regex`, the trainer against a naive one and rustbpe, the encoder against tiktoken."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import (
    TEXTS,
    any_text,
    bad_utf8,
    check_chunks,
    check_ids,
    documents,
    encoder_and_peer,
    expected_split,
    mixed_text,
    vocabulary,
)

from nanochat import bpe, bpe_chunks, bpe_train, unicode_classes

# ---------------------------------------------------------------------------------------------------------------------
# The splitter


@pytest.mark.parametrize("text", TEXTS)
def test_split_equals_the_pattern(text):
    check_chunks(text.encode())


@settings(max_examples=500, deadline=None)
@given(mixed_text)
@example("'ſ 'lL 'r 'v 're")
@example(" \n \n  x")
def test_split_equals_the_pattern_on_any_text(text):
    check_chunks(text.encode())


@settings(max_examples=300, deadline=None)
@given(bad_utf8)
@example(b"\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80\xe2\x82a\xf0\x9f\x98")
def test_split_of_invalid_utf8(data):
    check_chunks(data)


@pytest.mark.parametrize("before", ["", " ", "1", "'", "x" * 15, "x" * 16, "x" * 56, "x" * 57])
def test_words_of_any_length_up_to_the_end(before):
    """Words are seen 16 bytes and 57 letters at a time, and documents lie end to end."""
    words = [before + "y" * n for n in range(70)]
    for word in words:
        for after in ("", " ", "é", "7", "'s", "\n"):
            check_chunks((word + after).encode())
    counter = bpe_train.ChunkCounter()
    counter.add([word.encode() for word in words])
    starts, text, counts = counter.finish()
    found = {text[i:j].tobytes(): n for i, j, n in zip(starts, starts[1:], counts)}
    assert found == Counter(chunk for word in words for chunk in expected_split(word.encode()))


def test_classes_are_those_of_tiktoken():
    """Every Unicode scalar value; tiktoken 0.14 knows Unicode 16."""
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    for pattern, kinds in (
        (r"\p{L}", [unicode_classes.LETTER]),
        (r"\p{N}", [unicode_classes.NUMBER]),
        (r"\s", [unicode_classes.SPACE, unicode_classes.NEWLINE]),
    ):
        encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
        matched = bytes(encoding.encode_ordinary(everything)).decode()
        assert [ord(c) for c in matched] == np.flatnonzero(np.isin(unicode_classes.char_classes(), kinds)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# The trainer


def naive_train(texts: list[str], n_merges: int) -> list[tuple[int, int]]:
    """The rule, word for word: count all pairs anew, take the most frequent, among equals the smallest; merge it."""
    chunks = Counter(chunk for text in texts for chunk in regex.findall(bpe_chunks.PATTERN, text))
    words = [(list(chunk.encode()), count) for chunk, count in chunks.items()]
    merges = []
    while len(merges) < n_merges:
        pairs = Counter()
        for ids, count in words:
            for pair in zip(ids, ids[1:]):
                pairs[pair] += count
        if not pairs:
            break
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for ids, _ in words:
            k = 0
            while k < len(ids) - 1:
                if (ids[k], ids[k + 1]) == pair:
                    ids[k : k + 2] = [256 + len(merges)]
                k += 1
        merges.append(pair)
    return merges


def as_pairs(merges: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in merges.tolist()]


def test_train_equals_the_naive_trainer():
    assert as_pairs(bpe_train.train(documents(), 250, threads=2)) == naive_train(documents(), 250)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="aab ", max_size=40) | st.text(alphabet="xyé1\n ", max_size=40), max_size=6))
@example(["aaaa aaa aa a", "ababababa"])
def test_train_equals_the_naive_trainer_on_repeats(texts):
    assert as_pairs(bpe_train.train(texts, 60, threads=1)) == naive_train(texts, 60)


def test_train_equals_rustbpe():
    rustbpe = pytest.importorskip("rustbpe")  # pip install rustbpe
    peer = rustbpe.Tokenizer()
    peer.train_from_iterator(iter(documents()), 256 + 500, pattern=bpe_chunks.PATTERN)
    tokens = [bytes(token) for token, _ in sorted(peer.get_mergeable_ranks(), key=lambda item: item[1])]
    assert vocabulary(bpe_train.train(documents(), 500)) == tokens


def test_counts_do_not_depend_on_the_size_of_tables():
    counter = bpe_train.ChunkCounter(room=8)
    for text in documents():
        counter.add([text.encode()])
    starts, text, counts = counter.finish()
    found = {text[i:j].tobytes(): n for i, j, n in zip(starts, starts[1:], counts)}
    assert found == Counter(chunk for text in documents() for chunk in bpe_chunks.split(text.encode()))


def test_counting_past_the_limit_forgets_only_what_came_once():
    counter = bpe_train.ChunkCounter(limit=100, room=32)
    for k in range(3000):
        counter.add([f" common{'x' * (k % 10)} u{'y' * (k % 7)}{chr(0x4E00 + k)}".encode()])
    starts, text, counts = counter.finish()
    found = {text[i:j].tobytes(): int(n) for i, j, n in zip(starts, starts[1:], counts)}
    assert len(found) <= 200
    assert all(found[b" common" + b"x" * k] == 300 for k in range(10))


def test_max_chars_and_doc_cap():
    texts = ["abab" * 50, "cdcd" * 50, "xyxy" * 50]
    assert as_pairs(bpe_train.train(texts, 9, doc_cap=4)) == naive_train([t[:4] for t in texts], 9)
    assert as_pairs(bpe_train.train(iter(texts), 9, max_chars=203)) == naive_train([texts[0], texts[1][:3]], 9)


def test_train_reports_progress():
    reports = []
    bpe_train.train(documents(), 50, max_chars=9000, report=lambda *report: reports.append(report))
    assert reports[0] == ("count", 9000, 9000)
    assert reports[-1] == ("merge", 50, 50)


# ---------------------------------------------------------------------------------------------------------------------
# The encoder


@pytest.fixture(scope="module")
def merges() -> np.ndarray:
    return encoder_and_peer()[0]


@pytest.fixture(scope="module")
def encoder() -> bpe.Encoder:
    return encoder_and_peer()[1]


@pytest.fixture(scope="module")
def peer() -> tiktoken.Encoding:
    return encoder_and_peer()[2]


def encode(encoder: bpe.Encoder, text: str) -> list[int]:
    return encoder.encode_many([bpe_chunks.to_bytes(text)])[0].tolist()


@pytest.mark.parametrize("text", TEXTS + documents()[:5])
def test_ids_are_those_of_tiktoken(encoder, peer, text):
    assert encode(encoder, text) == peer.encode_ordinary(text)


@settings(max_examples=500, deadline=None)
@given(any_text)
def test_ids_are_those_of_tiktoken_on_any_text(text):
    check_ids(text)


def test_every_character_alone_and_classes_in_pairs(encoder, peer):
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    ids, bounds = encoder.encode_many([c.encode() for c in characters])
    assert ids.tolist() == [id for c in characters for id in peer.encode_ordinary(c)]
    assert len(bounds) == len(characters) + 1
    kinds = ["a", "Z", "s", "é", "中", "1", "½", " ", "\t", "\u3000", "\n", "\r", "'", "!", "😀", "\u0301", "ſ", "\x00"]
    for text in [a + b for a in kinds for b in kinds] + [a + b + c for a in kinds for b in kinds for c in kinds]:
        assert encode(encoder, text) == peer.encode_ordinary(text), repr(text)


def test_long_chunks_take_both_ways_to_the_same_ids(encoder, peer):
    for length in (bpe.SHORT - 1, bpe.SHORT, bpe.SHORT + 1, 1000):
        for text in ("a" * length, ("abcdet" * length)[:length], "e" * length + " ab", "x" + "te" * length):
            assert encode(encoder, text) == peer.encode_ordinary(text)


def test_a_million_of_one_character(merges, encoder):
    tokens = np.array(vocabulary(merges), object)
    for text in [character * 1_000_000 for character in "a 1!\n中"]:
        ids, _ = encoder.encode_many([text.encode()])
        assert b"".join(tokens[ids]) == text.encode()


def test_a_cache_that_overflows_changes_nothing(merges, encoder):
    small = bpe.Encoder(merges, room=70)
    data = [text.encode() for text in documents()] * 2
    assert small.encode_many(data)[0].tolist() == encoder.encode_many(data)[0].tolist()


@pytest.mark.parametrize("text", ["a\ud800b", "\udc80", "x\ud83d\ude00y", "\ude00\ud83d"])
def test_surrogates_as_in_tiktoken(encoder, peer, text):
    assert encode(encoder, text) == peer.encode_ordinary(text)


def test_import_compiles_nothing(tmp_path):
    """Nor does it write a cache, print, or load torch."""
    code = "import sys, nanochat.tokenizer, nanochat.bpe as b, nanochat.bpe_train as t\n"
    code += "assert 'torch' not in sys.modules\n"
    code += "for value in [*vars(b).values(), *vars(t).values()]:\n    assert not getattr(value, 'ready', False)"
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
