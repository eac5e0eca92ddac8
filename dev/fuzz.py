"""The properties of tests/properties.py at any size, and every bit of a checkpoint flipped once.

In: names of properties (all of them if there is none) and how many inputs each gets. Out: a line a property, or the
input that broke it, made as small as hypothesis can. python dev/fuzz.py [NAME ...] [--cases=100000] [--seed=0] [--help]
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from properties import (  # noqa: E402
    any_text,
    bad_utf8,
    check_chunks,
    check_expression,
    check_header,
    check_ids,
    check_junk,
    check_manifest,
    expressions,
    headers,
    junk,
    lengths,
    manifests,
    mixed_text,
)
from tyro.conf import Positional  # noqa: E402

from nanochat import checkpoint_manager, sealed  # noqa: E402
from nanochat.common import Progress  # noqa: E402
from nanochat.configurator import launch  # noqa: E402
from nanochat.gpt import GPT, GPTConfig  # noqa: E402
from nanochat.optim import build_optimizers  # noqa: E402
from nanochat.tokenizer import Tokenizer  # noqa: E402
from nanochat.trainer import State  # noqa: E402

# name -> what is asked of (folder, *inputs), and the strategies of the inputs
PROPERTIES = {
    "expressions": (lambda folder, tree: check_expression(tree), [expressions]),
    "junk": (lambda folder, text: check_junk(text), [junk]),
    "manifests": (check_manifest, [manifests]),
    "chunks": (lambda folder, text: check_chunks(text.encode()), [mixed_text]),
    "bad_utf8": (lambda folder, data: check_chunks(data), [bad_utf8]),
    "ids": (lambda folder, text: check_ids(text), [any_text]),
    "headers": (check_header, [headers | st.binary(max_size=100), lengths, st.binary(max_size=64)]),
}
NAMES = (*PROPERTIES, "bits")
CHUNK = 2000  # inputs between two looks at the clock; hypothesis remembers what it has tried


def try_inputs(name: str, cases: int, first_seed: int, folder: Path) -> str:
    check, strategies = PROPERTIES[name]
    done, slowest = 0, (0.0, None)
    progress = Progress(name, cases, "inputs")

    def attempt(inputs):
        nonlocal done, slowest
        start = time.thread_time()
        check(folder, *inputs)
        done, slowest = done + 1, max(slowest, (time.thread_time() - start, repr(inputs)[:60]))

    for number in count(first_seed):
        size = min(CHUNK, cases - done)
        if size <= 0:
            return f"{name}: {done:,} inputs, none broke it; the slowest took {1000 * slowest[0]:.1f} ms: {slowest[1]}"
        phases, healthy = (Phase.generate, Phase.shrink), list(HealthCheck)
        rules = settings(max_examples=size, deadline=None, database=None, phases=phases, suppress_health_check=healthy)
        seed(number)(rules(given(st.tuples(*strategies))(attempt)))()
        progress.update(done)


def flip_every_bit(folder: Path) -> str:
    """Save a small checkpoint, flip each bit of each file in turn, and see `verify` name the file."""
    tokenizer = Tokenizer.train(["The sky is blue. The grass is green."] * 4, vocab_size=280)
    config = GPTConfig(tokenizer.vocab_size, sequence_len=16, n_layer=1, n_head=1, n_kv_head=1, n_embd=8)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0))
    tensors = checkpoint_manager.tensors_of(build_optimizers(model))
    place = folder / "run"
    options = {"stage": "base", "state": State(1), "settings": {}, "optimizer_tensors": tensors}
    path = checkpoint_manager.save(place, model, tokenizer, **options)
    files = sorted(path.iterdir())
    total, done, missed = 8 * sum(file.stat().st_size for file in files), 0, []
    progress = Progress("bits", total, "bits")
    for file in files:
        with open(file, "rb+", buffering=0) as handle:
            for position, byte in enumerate(file.read_bytes()):
                for bit in range(8):
                    os.pwrite(handle.fileno(), bytes([byte ^ 1 << bit]), position)
                    try:
                        sealed.verify(path)
                        missed.append((file.name, position, bit))
                    except ValueError as error:
                        if str(file) not in str(error):
                            missed.append((file.name, position, bit))
                    done += 1
                os.pwrite(handle.fileno(), bytes([byte]), position)
                progress.update(done)
    sealed.verify(path)
    return f"bits: {done:,} flipped in {len(files)} files, {len(missed)} not found or not named {missed[:5] or ''}"


@dataclass(frozen=True)
class Config:
    """Many strange inputs."""

    names: Positional[tuple[Literal[NAMES], ...]] = NAMES
    """which properties"""
    cases: int = 100_000
    """inputs that each gets; the bits are all flipped"""
    seed: int = 0
    """of the inputs"""


def main(cfg: Config) -> None:
    for name in cfg.names:
        with tempfile.TemporaryDirectory() as folder:
            folder, start = Path(folder), time.monotonic()
            said = flip_every_bit(folder) if name == "bits" else try_inputs(name, cfg.cases, cfg.seed, folder)
        print(f"{said} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    launch(main, Config)
