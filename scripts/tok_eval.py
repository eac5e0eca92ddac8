"""How well the tokenizer compresses: bytes per token on many kinds of text, and a look at its vocabulary.

python -m scripts.tok_eval --data=wiki
"""

import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import dataset, report
from nanochat.common import base_dir, describe_machine
from nanochat.configurator import parse
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


def main(cfg: Config) -> None:
    start = time.monotonic()
    tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
    texts = gather(cfg)
    encoders = {"nanochat": lambda text: len(tokenizer.encode(text))} | peers()
    rows = {name: [bytes_per_token(text, count) for count in encoders.values()] for name, text in texts.items()}
    show(list(encoders), rows)
    if len(encoders) == 1:
        print("(tiktoken's vocabularies are not on this machine, so there is nothing to compare with.)")
    longest, scripts = look(tokenizer)
    print(f"longest tokens: {longest}\ntokens by script: {scripts}")
    metrics = {f"bytes per token, {name}": round(values[0], 3) for name, values in rows.items()}
    for k, peer in enumerate(list(encoders)[1:], 1):
        metrics |= {f"{peer} (tiktoken), {name}": round(values[k], 3) for name, values in rows.items()}
    section = {
        "title": "Tokenizer evaluation",
        "seconds": time.monotonic() - start,
        "settings": {name: str(value) for name, value in asdict(cfg).items()},
        "metrics": metrics | {"vocabulary": tokenizer.vocab_size},
        "notes": [f"Longest tokens: {longest}", f"Tokens by script: {scripts}"],
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


def peers() -> dict[str, Callable[[str], int]]:
    """Functions that count the tokens of other tokenizers: those of tiktoken whose files it has kept on this disk."""
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        return {}

    def refuse(path: str) -> bytes:
        raise FileNotFoundError(path)

    counters, read_file = {}, tiktoken.load.read_file
    tiktoken.load.read_file = refuse  # it would download what it does not have
    try:
        for name in ("gpt2", "cl100k_base", "o200k_base"):
            try:
                encoding = tiktoken.get_encoding(name)
            except (OSError, ValueError):
                continue
            counters[name] = lambda text, encoding=encoding: len(encoding.encode_ordinary(text))
    finally:
        tiktoken.load.read_file = read_file
    return counters


def bytes_per_token(text: str, count: Callable[[str], int]) -> float:
    return len(text.encode("utf-8", "replace")) / count(text)


def show(names: list[str], rows: dict[str, list[float]]) -> None:
    """A table of bytes per token, with a bar for ours."""
    print(f"{'bytes per token':<24}" + "".join(f"{name:>14}" for name in names))
    most = max(values[0] for values in rows.values())
    for name, values in rows.items():
        bar = "━" * max(1, round(24 * values[0] / most))
        print(f"{name[:23]:<24}" + "".join(f"{value:>14.3f}" for value in values) + f"  {bar}")


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
            return unicodedata.name(character, "unnamed").split()[0].split("-")[0].capitalize()
    if "\ufffd" in text:
        return "part of a character"
    if any(character.isdigit() for character in text):
        return "digits"
    return "space" if text.isspace() else "signs"


if __name__ == "__main__":
    main(parse(Config))
