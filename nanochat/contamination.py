"""Contamination: which test items share a run of words with the training text.

In: the texts of test items, and the training documents, one after another. Out: a bool for each item.
Words are runs of letters and digits in lower case; the run is 13 words, as for GPT-3 (Brown et al., 2020, appendix C).
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nanochat import dataset
from nanochat.common import Dist, Progress
from nanochat.score import Score

RUN = 13
WORD = re.compile(r"[^\W_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it modulo 2^64 loses nothing


class Overlap:
    """Finds items whose run of `run` words stands in a document. Shorter items cannot be checked, see `checkable`."""

    def __init__(self, items: Sequence[str], run: int = RUN):
        self.run = run
        words = [WORD.findall(item.lower()) for item in items]
        self.vocabulary = {word: i for i, word in enumerate(sorted({w for item in words for w in item}))}
        hashes = [self.hash_runs(np.array([self.vocabulary[w] for w in item], dtype=np.int64)) for item in words]
        self.checkable = np.array([len(h) > 0 for h in hashes], dtype=bool)
        self.owner = np.repeat(np.arange(len(items)), [len(h) for h in hashes])
        joined = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
        order = np.argsort(joined, kind="stable")
        self.hashes, self.owner = joined[order], self.owner[order]
        self.distinct = np.unique(self.hashes)
        self.found = np.zeros(len(items), dtype=bool)

    def hash_runs(self, ids: np.ndarray) -> np.ndarray:
        """A 64-bit number for every run of words, uint64; runs with a word outside the vocabulary (-1) are left out."""
        count = len(ids) - self.run + 1
        if count < 1:
            return np.zeros(0, dtype=np.uint64)
        mixed = mix(ids.astype(np.uint64))
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(self.run):
            total = total * FACTOR + mixed[offset : offset + count]
        unknown = np.concatenate(([0], np.cumsum(ids < 0)))
        return mix(total[unknown[self.run :] == unknown[:count]])

    def read(self, document: str) -> None:
        """Look for every item in a document."""
        words = WORD.findall(document.lower())
        ids = np.fromiter(map(lambda word: self.vocabulary.get(word, -1), words), dtype=np.int64, count=len(words))
        hashes = self.hash_runs(ids)
        if len(hashes) == 0 or len(self.distinct) == 0:
            return
        at = np.searchsorted(self.distinct, hashes)
        hits = np.unique(hashes[self.distinct[np.minimum(at, len(self.distinct) - 1)] == hashes])
        for low, high in zip(np.searchsorted(self.hashes, hits, "left"), np.searchsorted(self.hashes, hits, "right")):
            self.found[self.owner[low:high]] = True


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers, one to one (the finalizer of SplitMix64, Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def find_overlap(groups: Sequence[Sequence[str]], name: str, dist: Dist = Dist()) -> list[tuple[np.ndarray, int]]:
    """For each group of texts: (texts,) bool, which have a run in common with the training documents of the dataset
    `name`, and how many texts are long enough to tell. Ranks share the documents and agree on the result."""
    overlap = Overlap([text for group in groups for text in group])
    files = [dataset.open_shard(shard).metadata for shard in dataset.shards(name, "train")]
    sizes = [file.row_group(group).num_rows for file in files for group in range(file.num_row_groups)]
    total = sum(sizes[dist.rank :: dist.world_size])
    progress = Progress("contamination", total, unit="documents", dist=dist)
    for number, document in enumerate(dataset.documents(name, "train", dist.rank, dist.world_size)):
        overlap.read(document)
        progress.update(number + 1, found=f"{overlap.found.sum():,}")
    found = dist.all_reduce(torch.from_numpy(overlap.found).to(dist.device, torch.int32), "max").bool().cpu().numpy()
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [(part, int(can.sum())) for part, can in zip(np.split(found, ends), np.split(overlap.checkable, ends))]


def mark_seen(scores: Sequence[Score], texts: Sequence[Sequence[str]], name: str, dist: Dist = Dist()) -> list[Score]:
    """The scores, each knowing which of its items, whose texts are given, the training text of dataset `name` has."""
    found = find_overlap(texts, name, dist)
    return [replace(score, seen=seen.tolist(), checked=checked) for score, (seen, checked) in zip(scores, found)]


def explain(name: str) -> str:
    """What `Score.seen` means, for a report."""
    return (
        f'"In training text" counts the items that share {RUN} words in a row with the training text of {name}, among '
        "those that have so many words."
    )
