"""How many items of a task were right, and how sure that is.

In: counts. Out: accuracy with its 95% interval, centred on guessing; the row of a report, the table in a terminal.
"""

import sys
from collections.abc import Sequence
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
