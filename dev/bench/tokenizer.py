"""The tokenizer beside its peers, in one run: training, encoding, one message, cold and warm start.

In: a dataset prepared by nanochat.dataset. Out: medians, spreads, ratios. Peers that are not installed are left out.

    python -m dev.bench.tokenizer --data=mine --megabytes=250
"""

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat import bpe_chunks, dataset
from nanochat.configurator import launch
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

START = """
import sys, time; start = time.perf_counter()
sys.modules["awkward"] = None  # comes with gigatoken; numba would import it
from nanochat.tokenizer import Tokenizer
tokenizer = Tokenizer.load({path!r})
tokenizer.encode("Why is the sky blue?")
print(time.perf_counter() - start)
"""
TRAIN = """
import sys; sys.modules["awkward"] = None
from nanochat.tokenizer import Tokenizer
import time; start = time.perf_counter()
Tokenizer.train(["Why is the sky blue?" * 99], 300).encode("a" * 999)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Config:
    """The tokenizer beside its peers."""

    data: str = "wiki"
    """dataset to train on and to encode"""
    megabytes: float = 25
    """of text, cut into documents of 2,000 characters; less if there is less"""
    vocab_sizes: tuple[int, ...] = (8192, 65536)
    """to train, and to encode with"""
    repeats: int = 5
    """of which the median counts; peers and ours take turns"""
    patience: float = 60
    """seconds after which a runner gets no further turn in a race"""
    threads: int = 2
    """the most that anybody may use"""
    slow: bool = True
    """also run the peers that take long: Hugging Face's trainer, tiktoken on all of the text"""


def main(cfg: Config) -> None:
    os.environ["RAYON_NUM_THREADS"] = os.environ["TOKENIZERS_NUM_THREADS"] = str(cfg.threads)  # the peers are in Rust
    texts = documents(cfg)
    size = sum(len(text.encode()) for text in texts)
    print(f"{size / 1e6:.1f} MB in {len(texts):,} documents, at most {cfg.threads} threads")
    Tokenizer.train(texts[:10], 300).encode_batch(texts[:10])  # compiled, or read from disk, before any clock starts.
    for vocab_size in cfg.vocab_sizes:
        table(f"Training, {vocab_size:,} ids", race(trainers(texts, vocab_size, cfg), cfg), size)
        tokenizer = Tokenizer.train(texts, vocab_size)
        for threads in sorted({1, cfg.threads}):
            runners = encoders(tokenizer, texts, threads, cfg)
            race(runners, replace(cfg, repeats=1))  # fills everybody's caches
            table(f"Encoding, {len(tokenizer.merges):,} merges, threads: {threads}", race(runners, cfg), size)
        if cfg.slow:
            agree(tokenizer, texts)
    message = "Could you explain to me, in simple words, why the sky is blue? " * 3
    times = race({"nanochat": lambda: tokenizer.encode(message)}, replace(cfg, repeats=1001))
    table("One message of 190 characters", times, len(message))
    starts(tokenizer, cfg)


def documents(cfg: Config) -> list[str]:
    dataset.require(cfg.data)
    texts, left = [], int(cfg.megabytes * 1e6)
    for document in dataset.documents(cfg.data, "train"):
        for k in range(0, len(document), 2000):
            texts.append(document[k : k + 2000])
            left -= len(texts[-1].encode())
            if left <= 0:
                return texts
    return texts


def peer(name: str):
    """A package, or None if it is not here."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"({name} is left out: {error})")
        return None


def trainers(texts: list[str], vocab_size: int, cfg: Config) -> dict[str, Callable]:
    found = {"nanochat": lambda: Tokenizer.train(texts, vocab_size, threads=cfg.threads)}
    n = vocab_size - len(SPECIAL_TOKENS)
    if rustbpe := peer("rustbpe"):
        found["rustbpe"] = lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), n, pattern=bpe_chunks.PATTERN)
    if gigatoken := peer("gigatoken"):  # cuts text by GPT-2's pattern, which makes fewer different chunks
        joined = "<|bos|>".join(texts).encode()
        found["gigatoken"] = lambda: gigatoken.train_bpe(joined, n, ["<|bos|>"], separator=b"<|bos|>")
    if cfg.slow and (tokenizers := peer("tokenizers")):
        found["tokenizers"] = lambda: train_tokenizers(tokenizers, texts, n)
    return found


def train_tokenizers(tokenizers, texts: list[str], vocab_size: int) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(bpe_chunks.PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)


def encoders(tokenizer: Tokenizer, texts: list[str], threads: int, cfg: Config) -> dict[str, Callable]:
    found = {"nanochat": lambda: tokenizer.encode_batch(texts, threads=threads)}
    if cfg.slow and peer("tiktoken"):
        encoding = as_tiktoken(tokenizer)
        found["tiktoken"] = lambda: encoding.encode_ordinary_batch(texts, num_threads=threads)
    if gigatoken := peer("gigatoken"):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_tiktoken(Path(folder) / "ours.tiktoken")  # it does not know our pattern; GPT-4's is the next
            other = gigatoken.Tokenizer.from_tiktoken(Path(folder) / "ours.tiktoken", pretokenizer="gpt4")
        found["gigatoken"] = lambda: other.encode_batch(texts, parallel=threads > 1)
    return found


def as_tiktoken(tokenizer: Tokenizer):
    import tiktoken

    ranks = {token: id for id, token in enumerate(tokenizer.vocabulary[: -len(SPECIAL_TOKENS)])}
    return tiktoken.Encoding("ours", pat_str=bpe_chunks.PATTERN, mergeable_ranks=ranks, special_tokens={})


def agree(tokenizer: Tokenizer, texts: list[str]) -> None:
    if peer("tiktoken"):
        expected = as_tiktoken(tokenizer).encode_ordinary_batch(texts, num_threads=2)
        same = sum(ids.tolist() == other for ids, other in zip(tokenizer.encode_batch(texts), expected))
        print(f"\nids equal to tiktoken's: {same:,} of {len(texts):,} documents")


def race(runners: dict[str, Callable], cfg: Config) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each turn; the runners take turns, so that all meet the same weather."""
    taken: dict[str, list] = {name: [] for name in runners}
    for _ in range(cfg.repeats):
        for name, run in runners.items():
            if sum(wall for wall, _ in taken[name]) < cfg.patience:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def table(title: str, taken: dict[str, list[tuple[float, float]]], size: int) -> None:
    print(f"\n{title:<36}{'median s':>10}{'least':>9}{'most':>9}{'CPU s':>9}{'runs':>6}{'MB/s':>8}{'x ours':>8}")
    medians = {name: statistics.median(wall for wall, _ in times) for name, times in taken.items()}
    for name, times in taken.items():
        walls, cpu, median = [wall for wall, _ in times], statistics.median(cpu for _, cpu in times), medians[name]
        line = f"  {name:<34}{median:>10.4f}{min(walls):>9.4f}{max(walls):>9.4f}{cpu:>9.4f}{len(times):>6}"
        print(f"{line}{size / median / 1e6:>8.1f}{median / medians['nanochat']:>8.2f}", flush=True)


def starts(tokenizer: Tokenizer, cfg: Config) -> None:
    """New processes: with nothing compiled yet, then with everything on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tokenizer.json")
        tokenizer.save(path)
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}

        def run(code: str) -> float:
            command = [sys.executable, "-c", code]
            return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

        print(f"\ncold: compile all, train and encode a little   {run(TRAIN):.2f} s")
        warm = sorted(run(START.format(path=path)) for _ in range(cfg.repeats))
        print(
            f"warm: import, load and encode the first message {statistics.median(warm):.2f} s"
            f" ({warm[0]:.2f} to {warm[-1]:.2f})"
        )


if __name__ == "__main__":
    launch(main, Config)
