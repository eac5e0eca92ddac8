"""What a chat stage learns from, for the eye: rows as the model gets them, and which of their tokens carry loss.

In: Batches of conversations, and the place where they stand. Out: lines in the terminal, in colours where it has some;
what is said does not depend on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.text import Text

from nanochat.common import Dist
from nanochat.dataloader import Batches
from nanochat.terminal import printable
from nanochat.tokenizer import Tokenizer

SHOWN = 1024  # tokens: so many are worth reading; whole rows, and at least one
COLOURS = {"learn": ("bold green", "green"), "": ("default", "cyan"), "padding": ("dim", "dim")}  # of text, of special


@dataclass(frozen=True)
class Stretch:
    """Tokens in a row that all carry loss ("learn"), or do not (""), or fill the row up ("padding")."""

    kind: str
    ids: np.ndarray
    begins: bool  # a conversation begins here


def stretches(inputs: np.ndarray, targets: np.ndarray, bos_id: int) -> list[Stretch]:
    """A row (T,), (T,) taken apart. What is learned is read off the targets, so it is shown as it is, not as it should
    be. A conversation begins with <|bos|>; those at the end of a row, with nothing behind them, are padding."""
    learned = np.concatenate(([False], targets >= 0))
    ids = np.where(learned, np.append(0, targets), np.append(inputs, bos_id))
    if not learned[-1]:  # the last token of a row is only ever a target
        ids, learned = ids[:-1], learned[:-1]
    told = np.flatnonzero(learned | (ids != bos_id))
    padding = int(told[-1]) + 1 if len(told) else 0
    begins = (ids == bos_id) & ~learned & (np.arange(len(ids)) < padding)
    kinds = np.where(learned, 2, np.where(np.arange(len(ids)) < padding, 1, 0))
    edges = [0, *(np.flatnonzero((np.diff(kinds) != 0) | begins[1:]) + 1).tolist(), len(ids)]
    names = ("padding", "", "learn")
    return [Stretch(names[kinds[a]], ids[a:b], bool(begins[a])) for a, b in zip(edges, edges[1:])]


def show_rows(batches: Batches, tokenizer: Tokenizer, dist: Dist = Dist()) -> None:
    """Print the next rows of `batches`, and what all rows consist of that were packed together with them."""
    if not dist.is_main:
        return
    place = batches.position
    rows = batches.source.block(place["epoch"], place["shard"], place["block"])
    taken = [stretches(i, t, tokenizer.bos_id) for i, t in zip(rows.inputs, rows.targets)]
    console, T = Console(highlight=False), rows.inputs.shape[1]
    console.width = console.width if console.is_terminal else 110
    console.print(
        "Rows as the model gets them. Tokens behind [bold green]learn[/] carry loss: the model is told how well it "
        "guessed them.\nThe others it only reads. Numbers count tokens."
    )
    first = place["row"]
    for number, row in list(enumerate(taken, start=1))[first : first + max(1, SHOWN // T)]:
        console.print(f"\nRow {number} of {len(taken)}: {summary([row], T)}", style="bold")
        for stretch in row:
            if stretch.begins or stretch.kind == "padding":
                console.print()
            for line in lines(stretch, tokenizer, console):
                console.print(line, no_wrap=True, crop=False)
    console.print(f"\nAll {len(taken):,} packed together: {summary(taken, T)}", style="bold")
    if rows.cut or rows.skipped:
        console.print(
            f"Longer than a row, and cut after the last answer that fits: {rows.cut:,}. "
            f"Without one that fits, and left out: {rows.skipped:,}.\n"
        )
    else:
        console.print("No conversation was longer than a row.\n")


def summary(rows: list[list[Stretch]], T: int) -> str:
    """What rows of T inputs consist of."""
    total, begun = T * len(rows), sum(stretch.begins for row in rows for stretch in row)

    def share(kind: str) -> str:
        count = sum(len(stretch.ids) for row in rows for stretch in row if stretch.kind == kind)
        return f"{count:,} ({count / max(1, total):.0%})"

    conversations = f"{begun:,} conversation{'s' * (begun != 1)}"
    return f"{conversations}; of {total:,} tokens {share('learn')} carry loss, {share('padding')} are padding"


def lines(stretch: Stretch, tokenizer: Tokenizer, console: Console) -> Iterator[Text]:
    """A stretch with its margin; it is wrapped where it is wider than the terminal or the text has a line break."""
    plain, special = COLOURS[stretch.kind]
    if stretch.kind == "padding":
        text = Text(f"{tokenizer.decode(stretch.ids[:1])} x {len(stretch.ids)}", style=plain)
    else:
        names = set(tokenizer.special.values())
        parts = np.split(stretch.ids, np.flatnonzero(np.diff(np.isin(stretch.ids, list(names)))) + 1)
        style = lambda part: special if int(part[0]) in names else plain  # noqa: E731
        text = Text.assemble(*((printable(tokenizer.decode(part)), style(part)) for part in parts))
    margin = Text.assemble((f"{stretch.kind:>7} {len(stretch.ids):5}  ", plain))
    for line in text.wrap(console, max(20, console.width - len(margin))):
        yield margin + line
        margin = Text(" " * len(margin))
