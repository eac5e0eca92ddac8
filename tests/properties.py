"""What must hold for any input, and where the inputs come from: strategies, and one check a property.

The tests try a few hundred inputs of each, `python dev/fuzz.py` as many as you like.
"""

import functools
import json
import math
import operator
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import regex
import tiktoken
from hypothesis import strategies as st

from nanochat import bpe, bpe_chunks, bpe_train, calculator, sealed, unicode_classes
from nanochat import checkpoint_manager as cm

FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "state.json", "tokenizer.json", "manifest.json")

# ---------------------------------------------------------------------------------------------------------------------
# The calculator, against a plain interpreter of the same trees

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
COMPARISONS = {"<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt}
COMPARISONS[">="] = operator.ge


def root(x):
    return math.isqrt(x) if isinstance(x, int) and math.isqrt(x) ** 2 == x else math.sqrt(x)


FUNCTIONS = {"abs": abs, "round": round, "max": max, "min": min, "sum": lambda *values: sum(values), "len": len}
FUNCTIONS["sqrt"] = root

numbers = st.integers(0, 10**6).map(lambda n: ("number", n)) | st.integers(0, 10**5).map(lambda n: ("number", n / 64))
texts = st.text(alphabet="abrR ,ß9-", max_size=12).map(lambda text: ("text", text))
small = st.integers(-5, 9).map(lambda n: ("number", n))


def more_numbers(of):
    return st.one_of(
        st.tuples(st.sampled_from([*OPERATORS, "/", "**"]), of, of),
        st.tuples(st.just("**"), of, small),
        st.tuples(st.just("neg"), of),
        st.tuples(st.sampled_from(["abs", "round", "sqrt"]), of),
        st.tuples(st.just("round"), of, small),
        st.tuples(st.sampled_from(["max", "min", "sum"]), of, of),
        st.tuples(st.just("count"), texts, texts),
        st.tuples(st.just("len"), strings),
    )


def more_strings(of):
    return st.one_of(
        st.tuples(st.just("+"), of, of),
        st.tuples(st.just("*"), of, small),
        st.tuples(st.sampled_from(["upper", "lower", "title", "strip"]), of),
        st.tuples(st.just("replace"), of, texts, texts),
        st.tuples(st.just("slice"), of, st.none() | small, st.none() | small, st.none() | small),
    )


strings = st.recursive(texts, more_strings, max_leaves=5)
quantities = st.recursive(numbers, more_numbers, max_leaves=8)
expressions = quantities | strings | st.tuples(st.sampled_from(list(COMPARISONS)), quantities, quantities)
expressions |= st.tuples(st.sampled_from(["in", "split"]), strings, texts)


def spell(tree) -> str:
    """An expression of Python that means the tree."""
    kind, *parts = tree
    if kind in ("number", "text"):
        return f"({parts[0]!r})" if kind == "number" and parts[0] < 0 else repr(parts[0])
    if kind == "slice":
        return f"{spell(parts[0])}[" + ":".join("" if part is None else spell(part) for part in parts[1:]) + "]"
    words = [spell(part) for part in parts]
    if kind == "neg":
        return f"(-{words[0]})"
    if kind in FUNCTIONS:
        return f"{kind}([{', '.join(words)}])" if kind == "sum" else f"{kind}({', '.join(words)})"
    if kind.isalpha() and kind != "in":
        return f"{words[0]}.{kind}({', '.join(words[1:])})"
    return f"({words[0]} {kind} {words[1]})"


class TooLarge(Exception):
    """The calculator may refuse this."""


def work_out(tree):
    """The tree's value by Python's own operators. TooLarge if something on the way is larger than a half of what the
    calculator's bounds allow, which say of some operations before they run that they may be too large."""
    kind, *parts = tree
    if kind in ("number", "text"):
        return parts[0]
    values = [part and work_out(part) for part in parts]
    value = apply(kind, *values)
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        raise ArithmeticError
    if isinstance(value, int) and value.bit_length() > calculator.MAX_BITS // 2:
        raise TooLarge
    if isinstance(value, str) and len(value) > calculator.MAX_ITEMS // 20:
        raise TooLarge
    return value


def apply(kind, *values):
    if kind == "/":
        exact = all(isinstance(value, int) for value in values) and values[0] % values[1] == 0
        return values[0] // values[1] if exact else values[0] / values[1]
    if kind == "**":
        base, power = values
        if isinstance(power, int) and abs(power) * len(bin(int(abs(base)))) > calculator.MAX_BITS // 2:
            raise TooLarge
        return base**power
    if kind in OPERATORS or kind in COMPARISONS:
        return (OPERATORS | COMPARISONS)[kind](*values)
    if kind == "neg":
        return -values[0]
    if kind == "in":
        return values[0] in values[1]
    if kind == "slice":
        return values[0][slice(*values[1:])]
    return FUNCTIONS[kind](*values) if kind in FUNCTIONS else getattr(values[0], kind)(*values[1:])


def check_expression(tree) -> None:
    """The calculator says what Python says, and refuses only what is an error there, too large or too long."""
    text = spell(tree)
    said = calculator.calculate(text)
    try:
        value = work_out(tree)
    except TooLarge:
        assert said is None or len(said) <= calculator.MAX_ITEMS
        return
    except (ArithmeticError, ValueError, LookupError, TypeError):
        assert said is None, text
        return
    if said is None:
        assert len(text) > calculator.MAX_INPUT, text
    elif isinstance(value, int | float) and not isinstance(value, bool):
        assert abs(float(said) - value) <= abs(value) * 1e-11 if isinstance(value, float) else int(said) == value, text
    else:
        assert said == str(value), text


WORDS = """( ) [ ] , . : + - * / // ** % < <= == != in not and or if else lambda x 1 2 9 0 00 1,000 1e9 .5 9e99 'a'
'aaaa' "b" '' max min sum abs round sqrt pi len count upper split join replace ljust format""".split()
junk = st.text(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=200).map("".join)


def check_junk(text: str) -> None:
    """Any text at all has an answer of bounded length or none; nothing is raised, and memory stays under 10 MB."""
    tracemalloc.start()
    try:
        said = calculator.calculate(text)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, text
    finally:
        tracemalloc.stop()
    assert said is None or len(said) <= calculator.MAX_ITEMS, text


# ---------------------------------------------------------------------------------------------------------------------
# Files of a checkpoint

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
entries = st.dictionaries(st.sampled_from(["size", "sha256", "x"]), json_values, max_size=3) | json_values
manifests = st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode())
manifests |= st.fixed_dictionaries(
    {},
    optional={
        "format": st.just(1) | json_values,
        "saved_at": st.floats() | json_values,
        "files": st.dictionaries(st.sampled_from([*FILES, "../x"]) | st.text(max_size=5), entries, max_size=3)
        | entries,
        "sha256": json_values,
        "more": json_values,
    },
).map(lambda value: json.dumps(value).encode())


def check_manifest(folder: Path, data: bytes) -> None:
    """No garbage is a manifest, and the message names the file."""
    (folder / "manifest.json").write_bytes(data)
    try:
        sealed.verify(folder)
    except ValueError as error:
        assert "manifest.json" in str(error)
    else:
        raise AssertionError("this is no manifest")


headers = st.dictionaries(
    st.sampled_from(["head.weight", "embedding.weight", "__metadata__", "x"]),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "Q9"]) | json_values,
            "shape": st.lists(st.integers(-1, 2**64), max_size=3) | json_values,
            "data_offsets": st.lists(st.integers(-1, 2**64), min_size=2, max_size=2) | json_values,
        },
    )
    | json_values,
    max_size=3,
).map(lambda value: json.dumps(value).encode())
lengths = st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 300)


def check_header(folder: Path, header: bytes, length: int | None, tail: bytes) -> None:
    """Garbage in a safetensors file is an error that names the file, or tensors no larger than the file; and takes no
    memory, whatever it claims."""
    path = folder / "model.safetensors"
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert all(tensor.nbytes <= len(tail) for tensor in cm._read_tensors(path).values())
    except ValueError as error:
        assert "model.safetensors" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer, against the `regex` module and tiktoken

TEXTS = [
    "",
    "Hello world! It's 2026; don't, we'LL, I'Ve, 'tis, 'RE 12345.\n\n\tIndented   text\r\n\r\n  end   ",
    "def f(x):\n    return x**2  # squared\n\n\nprint(f(3))\n",
    "Straße, naïve café, Ελληνικά, русский текст, 한국어 문장입니다, 中文没有空格, ไทย, हिन्दी, العربية",
    "emoji 😀👩‍👩‍👧‍👦 🇰🇷 ½ ² Ⅷ ٣٤٥ \u2028\u3000\u00a0x \x1c\x1f\x85 it'ſ",
    "a" * 3000 + " " * 3000 + "!" * 3000 + "\n" * 300 + "ab" * 999 + "7" * 301,
]


def documents() -> list[str]:
    """Some 50 kB in which pairs are common and ties are frequent, always the same."""
    rng = np.random.default_rng(7)
    words = ["".join(rng.choice([*"abcdeet"], size=rng.integers(1, 9))) for _ in range(300)]
    return [" ".join(words[int(i)] for i in rng.zipf(1.3, 100) % 300) + ".\n" for _ in range(40)] + TEXTS


FRAGMENTS = ["'", "s", "S", "ll", "LL", "ve", "re", "ſ", "é", "中", "7", "½", " ", "  ", "\t", "\n", "\r\n", "\u3000"]
FRAGMENTS += ["\u00a0", "!", "😀", "_", "\x00", "\x85", "\x1c", "\u0301"]

mixed_text = st.lists(st.sampled_from(FRAGMENTS) | st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=30).map(
    "".join
)


@functools.cache
def newer_characters() -> frozenset[str]:
    """Letters and digits to the `regex` module that had no meaning in Unicode 16, the version that we keep to."""
    known = unicode_classes.char_classes()
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    return frozenset(c for c in regex.findall(r"[\p{L}\p{N}]", everything) if known[ord(c)] == unicode_classes.OTHER)


def expected_split(data: bytes) -> list[bytes]:
    """What the published pattern does, a bad byte being a character that is no letter, digit or space."""
    return [
        m.encode("utf-8", "surrogateescape")
        for m in regex.findall(bpe_chunks.PATTERN, data.decode("utf-8", "surrogateescape"))
    ]


bad_utf8 = st.lists(
    st.binary(max_size=6)
    | st.sampled_from(["é", "中", "😀", "a b", "\n", "\ud800"]).map(lambda text: text.encode("utf-8", "surrogatepass")),
    max_size=8,
).map(b"".join)
any_text = mixed_text | st.text(max_size=40) | st.text(alphabet="abcdet \n", max_size=400)


def check_chunks(data: bytes) -> None:
    chunks = bpe_chunks.split(data)
    assert b"".join(chunks) == data
    if newer_characters().isdisjoint(data.decode("utf-8", "surrogateescape")):
        assert chunks == expected_split(data)


def vocabulary(merges: np.ndarray) -> list[bytes]:
    tokens = [bytes([byte]) for byte in range(256)]
    for a, b in merges.tolist():
        tokens.append(tokens[a] + tokens[b])
    return tokens


@functools.cache
def encoder_and_peer() -> tuple[np.ndarray, bpe.Encoder, tiktoken.Encoding]:
    """Merges, and the same vocabulary in two hands."""
    merges = bpe_train.train(documents(), 700)
    ranks = {token: id for id, token in enumerate(vocabulary(merges))}
    peer = tiktoken.Encoding("x", pat_str=bpe_chunks.PATTERN, mergeable_ranks=ranks, special_tokens={})
    return merges, bpe.Encoder(merges), peer


def check_ids(text: str) -> None:
    _, encoder, peer = encoder_and_peer()
    assert encoder.encode_many([bpe_chunks.to_bytes(text)])[0].tolist() == peer.encode_ordinary(text)
