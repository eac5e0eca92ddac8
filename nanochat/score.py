"""How many items of a task were right, and how sure that is; and how sure it is that one of two models is better.

In: counts, or what was right item by item. Out: accuracy with its 95% interval, centred on guessing; the interval of a
difference; the row of a report, the table in a terminal.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Score:
    """How many of `total` items were right; `chance` is the accuracy of guessing."""

    name: str
    correct: int
    total: int
    chance: float
    cut: int = 0  # items whose prompt was longer than the context and lost its beginning
    pass_at: dict[int, float] = field(default_factory=dict)  # by k, if several answers were drawn
    verdicts: list[bool] = field(default_factory=list, repr=False)  # of every item, in the task's order
    items: list[dict] = field(default_factory=list)  # the first few: prompt, answer, reference, correct
    seen: list[bool] | None = field(default=None, repr=False)  # items found in the training text; None: not looked for
    checked: int = 0  # items that are long enough to be looked for
    asked: str = field(default="", repr=False)  # `fingerprint` of the items

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0

    @property
    def low(self) -> float:
        return wilson(self.correct, self.total)[0]

    @property
    def high(self) -> float:
        return wilson(self.correct, self.total)[1]

    @property
    def centered(self) -> float:
        """0 for guessing, 1 for perfect, below 0 for worse than guessing."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    def summary(self) -> dict:
        """The row of a report's "scores"."""
        keys = ("name", "correct", "total", "accuracy", "low", "high", "chance")
        row = {key: getattr(self, key) for key in keys}
        if self.verdicts:  # a character for each item, so that two runs can be compared item by item
            row |= {"verdicts": "".join("01"[right] for right in self.verdicts), "asked": self.asked}
        if self.seen is None:
            return row
        return row | {"seen": sum(self.seen), "checked": self.checked, "unseen_accuracy": self.unseen_accuracy}

    @property
    def unseen_accuracy(self) -> float | None:
        """Accuracy on the items that were not found in the training text; None if there are none."""
        unseen = [right for right, seen in zip(self.verdicts, self.seen or ()) if not seen]
        return sum(unseen) / len(unseen) if unseen else None


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95% interval of a proportion; holds near 0 and 1 and for few items, too. Wilson, 1927."""
    if total == 0:
        return 0.0, 1.0
    p, n, z = correct / total, total, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def fingerprint(items: Iterable) -> str:
    """A hexadecimal digit of the hash of each item (JSON values). Two evaluations that asked the same have the same
    digits; others have 20 in common by chance once in 10^24."""
    texts = (json.dumps(item, sort_keys=True, default=str) for item in items)
    return "".join(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[0] for text in texts)


def difference(before: tuple[int, int], now: tuple[int, int], phi: float = 0.0) -> tuple[float, float, float]:
    """(difference now - before, low, high) of two accuracies that are given as (correct, total), with its 95% interval;
    phi: their correlation if both were asked the same items. The square-and-add intervals of Newcombe, 1998: method 10
    of Statistics in Medicine 17, 873-890, for independent items and of 17, 2635-2650, for the same ones."""
    (p, (p_low, p_high)), (q, (q_low, q_high)) = [(c / n, wilson(c, n)) for c, n in (before, now)]
    below, above = sum_of_squares(q - q_low, p_high - p, phi), sum_of_squares(q_high - q, p - p_low, phi)
    return q - p, q - p - sqrt(below), q - p + sqrt(above)


def sum_of_squares(a: float, b: float, phi: float) -> float:
    return max(0.0, a * a - 2 * phi * a * b + b * b)


def correlation(before: Sequence[bool], now: Sequence[bool]) -> float:
    """Of two models' right answers to the same items; a positive one is taken half an item smaller. Newcombe, 1998."""
    both, neither = sum(map(all, zip(before, now))), sum(not (a or b) for a, b in zip(before, now))
    count, p, q = len(before), sum(before), sum(now)
    product = both * neither - (p - both) * (q - both)
    product = max(product - count / 2, 0.0) if product > 0 else product
    margins = p * (count - p) * q * (count - q)
    return product / sqrt(margins) if margins else 0.0


def mean_difference(differences: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(mean, low, high) of independent differences that are given so, by the same rule. Zou and Donner, 2008."""
    mean, count = sum(d for d, _, _ in differences) / len(differences), len(differences)
    below = sqrt(sum((d - low) ** 2 for d, low, _ in differences)) / count
    above = sqrt(sum((high - d) ** 2 for d, _, high in differences)) / count
    return mean, mean - below, mean + above


def score_table(title: str, scores: Sequence[Score], **columns: Sequence[str]) -> Table:
    """What a script prints: a row a score. `columns` are further ones: a heading, and a text for each score."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("task", no_wrap=True)
    if any(score.seen is not None for score in scores):
        columns["in training text"] = [
            f"{sum(score.seen or ()):,} of {score.checked:,}" if score.checked else "–" for score in scores
        ]
    for heading in ("right", "items", "accuracy", "95% interval", "chance", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, score in enumerate(scores):
        counts = (score.name, f"{score.correct:,}", f"{score.total:,}", f"{score.accuracy:.1%}")
        interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
        table.add_row(*counts, interval, f"{score.chance:.1%}", *(texts[i] for texts in columns.values()))
    return table


def score_console() -> Console:
    """Wide enough for the table where the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 110)
