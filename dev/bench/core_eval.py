"""CORE as nanochat evaluates it, against one example at a time with every candidate computed whole.

In: the folder of the published CORE files. Out: CPU seconds of both, their ratio, and whether all verdicts agree. The
last line is the complete set, each task's seconds an item times its number of rows.

    python dev/bench/core_eval.py --evals ~/.cache/nanochat/evals --items 4
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat import core_eval, dataset
from nanochat.configurator import launch
from nanochat.files import read_jsonl
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    """CORE as nanochat evaluates it, against one example at a time."""

    evals: Path
    """folder of the evaluation sets"""
    items: int = 8
    """of each task"""
    depth: int = 4
    """of the model, whose weights are random"""
    vocab_size: int = 32768
    """of its tokenizer, as tok_train makes it by default"""
    sequence_len: int = 2048
    """of its context"""
    threads: int = 1
    """CPU seconds are counted, so that other programs on the machine disturb little"""


@torch.inference_mode()
def evaluate_plainly(model, task, row, item) -> bool:
    """One example: all candidates as whole rows of one batch, all logits, then the losses."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in item.tokens], batch_first=True)
    logits = model(rows)
    targets = torch.roll(rows, -1, dims=1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    spans = [slice(start - 1, len(ids) - 1) for start, ids in zip(item.starts, item.tokens)]
    hits = [(logits.argmax(-1) == targets)[i, span].numpy() for i, span in enumerate(spans)]
    return core_eval.judge(task, row, [losses[i, span].numpy() for i, span in enumerate(spans)], hits)


def main(cfg: Config) -> None:
    torch.set_num_threads(cfg.threads)
    tokenizer = Tokenizer.train((article["extract"] for article in dataset.wiki_articles()), cfg.vocab_size)
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig.from_depth(cfg.depth, tokenizer.vocab_size, cfg.sequence_len)).init_weights(generator).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    totals, complete, agree = [0.0, 0.0], [0.0, 0.0], True
    print(f"{'task':<34}{'kind':<20}{'one at a time':>14}{'ours':>10}{'ratio':>8}")
    for task in core_eval.CORE_TASKS:
        path = core_eval.find_file(cfg.evals, task.file)
        if path is None:
            continue
        rows = read_jsonl(path)
        random.Random(1337).shuffle(rows)
        items = core_eval.build_items(tokenizer, task, rows, range(min(cfg.items, len(rows))), cfg.sequence_len)
        start = time.process_time()
        plain = [evaluate_plainly(model, task, rows[i], item) for i, item in enumerate(items)]
        middle = time.process_time()
        ours = {
            i: core_eval.judge(task, rows[i], losses, hits)
            for i, losses, hits in core_eval.score_items(model, items, 2048)
        }
        seconds = (middle - start, time.process_time() - middle)
        agree &= plain == [ours[i] for i in range(len(items))]
        totals = [total + s for total, s in zip(totals, seconds)]
        complete = [total + s * len(rows) / len(items) for total, s in zip(complete, seconds)]
        print(f"{task.name:<34}{task.kind:<20}{seconds[0]:>13.2f}s{seconds[1]:>9.2f}s{seconds[0] / seconds[1]:>8.1f}")
    for name, (plain, ours) in (("these items", totals), ("the complete set", complete)):
        print(f"{name:<54}{plain:>13.2f}s{ours:>9.2f}s{plain / ours:>8.1f}")
    print("All verdicts agree." if agree else "Some verdicts differ.")


if __name__ == "__main__":
    launch(main, Config)
