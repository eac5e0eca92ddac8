"""Learn a vocabulary from the training documents of a dataset.

python -m scripts.tok_train --data=wiki --vocab_size=8192
"""

import itertools
import time
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from nanochat import dataset, report
from nanochat.common import Progress, base_dir, describe_machine, peak_memory
from nanochat.configurator import launch
from nanochat.tokenizer import Tokenizer

SAMPLE_CHARS = 10_000_000


@dataclass(frozen=True)
class Config:
    """Learn a vocabulary from the training documents of a dataset."""

    data: str = "climbmix"
    """dataset to learn from, as prepared by python -m nanochat.dataset"""
    vocab_size: int = 32768
    """ids in all: 256 bytes, merges, special tokens"""
    max_chars: int = 2_000_000_000
    """characters to read at most"""
    doc_cap: int = 10_000
    """characters to read of each document at most, so that no single one counts too much"""
    export: Literal["none", "tiktoken"] = "none"
    """tiktoken also writes tokenizer.tiktoken, a table of ranks"""


def main(cfg: Config) -> None:
    manifest = dataset.require(cfg.data)
    folder = base_dir() / "tokenizer"
    start = time.monotonic()
    tokenizer, n_chars = train(cfg, manifest)
    seconds = time.monotonic() - start
    tokenizer.save(folder / "tokenizer.json")
    print(f"{tokenizer.vocab_size:,} ids from {n_chars:,} characters in {seconds:.1f} s: {folder / 'tokenizer.json'}")
    if tokenizer.vocab_size < cfg.vocab_size:
        print(f"That is less than --vocab_size={cfg.vocab_size}: the text is too short to have more pairs.")
    if cfg.export == "tiktoken":
        tokenizer.save_tiktoken(folder / "tokenizer.tiktoken")
    n_bytes, n_tokens = compression(tokenizer, cfg.data, "val")
    print(f"{n_bytes / max(1, n_tokens):.3f} bytes per token on validation text")
    metrics = {
        "vocabulary": tokenizer.vocab_size,
        "training seconds": round(seconds, 2),
        "characters read": n_chars,
        "bytes per token, validation": round(n_bytes / max(1, n_tokens), 3),
        "peak memory, GB": round(peak_memory(torch.device("cpu")) / 1e9, 2),
        "hash": tokenizer.hash[:12],
    }
    section = {"title": "Tokenizer", "seconds": seconds, "settings": asdict(cfg), "metrics": metrics}
    report.write_section("tokenizer", section | {"machine": describe_machine(torch.device("cpu"))})


def train(cfg: Config, manifest: dict) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many characters it was learned from."""
    bars: dict[str, Progress] = {}
    most = min(cfg.max_chars, manifest["train"].get("characters") or cfg.max_chars)  # less if doc_cap cuts
    read = 0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal read
        if stage == "count":
            read, total = done, most
        name, unit = {"count": ("Reading", "characters"), "merge": ("Merging", "tokens")}[stage]
        bars.setdefault(stage, Progress(name, total, unit)).update(done)

    documents = dataset.documents(cfg.data, "train")
    limits = {"max_chars": cfg.max_chars, "doc_cap": cfg.doc_cap}
    return Tokenizer.train(documents, cfg.vocab_size, **limits, report=show), read


def compression(tokenizer: Tokenizer, data: str, split: str) -> tuple[int, int]:
    """(bytes, tokens) of the first SAMPLE_CHARS characters of a split."""
    n_bytes = n_tokens = n_chars = 0
    documents = dataset.documents(data, split)
    while n_chars < SAMPLE_CHARS and (batch := list(itertools.islice(documents, 256))):
        n_chars += sum(map(len, batch))
        n_bytes += sum(len(text.encode("utf-8", "replace")) for text in batch)
        n_tokens += sum(map(len, tokenizer.encode_batch(batch)))
    return n_bytes, n_tokens


if __name__ == "__main__":
    launch(main, Config)
