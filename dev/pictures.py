"""Draws the pictures of docs/guide: small SVG files, of what the code itself does wherever it can be asked.

python -m dev.pictures        after the quickstart, whose tokenizer cuts the words and the conversation
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from nanochat.common import base_dir
from nanochat.dataloader import pack
from nanochat.optim import linear, warmup_flat_warmdown
from nanochat.tokenizer import Tokenizer

FOLDER = Path(__file__).parent.parent / "docs" / "guide"
INK, PALE, BLUE, GREEN, ORANGE, RED = "#24292f", "#d0d7de", "#0969da", "#1a7f37", "#bc4c00", "#cf222e"
FILLS = {BLUE: "#ddf4ff", GREEN: "#dafbe1", ORANGE: "#fff1e5", RED: "#ffebe9", PALE: "#f6f8fa", INK: "#f6f8fa"}


@dataclass
class Picture:
    """An SVG that grows: a white sheet, so that it can be read on a dark page as well."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, x, y, w, h, text="", color=PALE, size=13) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{FILLS[color]}" '
                          f'stroke="{color}"/>')  # fmt: skip
        if text:
            self.text(x + w / 2, y + h / 2 + size * 0.35, text, size=size)

    def text(self, x, y, text, size=13, color=INK, anchor="middle", style="") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
                          f'{style}>{escape(str(text))}</text>')  # fmt: skip

    def line(self, points, color=INK, width=1.5, arrow=False) -> None:
        path = " ".join(f"{x:.5g},{y:.5g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{end}/>')

    def save(self, name: str, title: str) -> None:
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" font-family="ui-monospace, monospace" role="img">')  # fmt: skip
        marker = ('<defs><marker id="arrow" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
                  f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>')  # fmt: skip
        sheet = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>'
        text = "\n".join([head, f"<title>{escape(title)}</title>", marker, sheet, *self.parts, "</svg>", ""])
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")


def merge_tree(tokenizer: Tokenizer, word: str) -> None:
    """How the bytes of a word become its tokens: each merge above the two that it joins, numbered by its id."""
    cell, level = 46, 52
    tokens = [int(id) for id in tokenizer.encode(word)]
    heights: dict[int, int] = {}

    def height(id: int) -> int:
        if id not in heights:
            pair = None if id < 256 else tokenizer.merges[id - 256].tolist()
            heights[id] = 0 if pair is None else 1 + max(map(height, pair))
        return heights[id]

    depth = max(map(height, tokens))
    picture = Picture(cell * len(word.encode()) + 40, level * (depth + 1) + 62)

    def draw(id: int, left: float) -> tuple[float, float]:
        """Draws the tree of an id whose first byte is in column `left`; where its box is: (middle, top)."""
        text = tokenizer.vocabulary[id].decode("utf-8", "replace").replace(" ", "␣")
        y = 40 + level * (depth - height(id))
        width = cell * len(tokenizer.vocabulary[id])
        middle = 20 + cell * left + width / 2
        if id >= 256:
            a, b = tokenizer.merges[id - 256].tolist()
            ends = draw(a, left), draw(b, left + len(tokenizer.vocabulary[a]))
            for x, top in ends:
                picture.line([(middle, y + 30), (x, top)], PALE)
        shown = max(32, 9 * len(text) + 10)
        picture.box(middle - shown / 2, y, shown, 24, text, BLUE if id in tokens and left in starts else PALE)
        picture.text(middle, y + 35, id, size=9, color="#57606a")
        return middle, y

    starts = np.cumsum([0, *(len(tokenizer.vocabulary[id]) for id in tokens)])[:-1].tolist()
    picture.text(20, 24, f"“{word}” in {len(tokens)} tokens (blue); under each box its id", anchor="start")
    for id, left in zip(tokens, starts):
        draw(id, left)
    picture.save("bpe", f"The merges that make the tokens of {word!r}")


def packing() -> None:
    """Eight documents in rows of T = 24, as `pack` lays them out."""
    lengths, T, cell = (30, 17, 12, 9, 8, 6, 5, 3), 24, 24
    colors = (BLUE, GREEN, ORANGE, RED)
    items = [(np.array([0, *[k + 1] * (n - 1)]), np.arange(n) > 0) for k, n in enumerate(lengths)]
    rows = pack(items, T, 0, split=True)
    picture = Picture(40 + cell * T, 70 + 34 * len(rows.inputs))
    title = f"{sum(lengths)} tokens in 8 documents -> {len(rows.inputs)} rows of {T}; a dark cell is <|bos|>"
    picture.text(20, 26, title, anchor="start")
    for r, (row, targets) in enumerate(zip(rows.inputs.tolist(), rows.targets.tolist())):
        document = 0
        for t, (token, target) in enumerate(zip(row, targets)):
            document = token or max(target, 0)
            x, y, color = 20 + cell * t, 42 + 34 * r, colors[(document - 1) % 4] if document else PALE
            fill = color if token == 0 and document else FILLS[color]
            picture.parts.append(f'<rect x="{x}" y="{y}" width="{cell - 2}" height="26" rx="3" fill="{fill}" '
                                 f'stroke="{color}"/>')  # fmt: skip
            if token:
                picture.text(x + cell / 2 - 1, y + 18, "ABCDEFGH"[token - 1], size=12)
    picture.save("packing", "Documents packed into rows")


def block() -> None:
    """The model, bottom up, as gpt.py computes it."""
    p = Picture(760, 640)
    left, w = 190, 250

    def stage(y, text, color=PALE, h=30):
        p.box(left, y, w, h, text, color)
        return y

    def up(y_from, y_to, x=left + w / 2):
        p.line([(x, y_from), (x, y_to)], arrow=True)

    stage(590, "token ids (B, T)", INK)
    up(590, 568)
    stage(536, "embedding, norm", BLUE)
    up(536, 514)
    stage(482, "smear: + gate · token before", ORANGE)
    p.text(left + w + 14, 502, "= x0", anchor="start")
    up(482, 452)
    p.parts.append(f'<rect x="150" y="150" width="400" height="300" rx="8" fill="none" stroke="{INK}" '
                   'stroke-dasharray="5 4"/>')  # fmt: skip
    p.text(565, 300, "a layer,", anchor="start")
    p.text(565, 318, "--depth of them", anchor="start")
    stage(412, "a · x  +  b · x0", ORANGE)
    p.line([(left + w + 50, 496), (520, 496), (520, 427), (left + w + 2, 427)], ORANGE, arrow=True)
    up(412, 386)
    stage(356, "norm", PALE, 26)
    up(356, 336)
    stage(296, "attention", GREEN, 38)
    p.text(138, 312, "value", 11, anchor="end")
    p.text(138, 326, "embedding", 11, anchor="end")
    p.text(138, 340, "(every other)", 11, anchor="end")
    p.line([(142, 318), (left - 2, 318)], GREEN, arrow=True)
    up(296, 278)
    stage(254, "+ (residual stream)", PALE, 24)
    p.line([(left + w / 2, 398), (480, 398), (480, 266), (left + w + 2, 266)], INK, arrow=True)
    up(254, 236)
    stage(210, "norm, C -> 4C, ReLU², 4C -> C", GREEN, 26)
    up(210, 190)
    stage(164, "+ (residual stream)", PALE, 24)
    p.line([(left + w / 2, 244), (480, 244), (480, 176), (left + w + 2, 176)], INK, arrow=True)
    up(164, 130)
    stage(98, "norm, head (its own matrix)", BLUE)
    up(98, 80)
    stage(48, "15 · tanh(z / 15)", ORANGE)
    up(48, 34)
    p.text(left + w / 2, 26, "logits (B, T, V)")
    for k, line in enumerate((
        "inside attention:", "q, k, v = one product", "norm(q), norm(k)", "rotate q, k by position",
        "v + gate · value embedding", "softmax(1.44 q·k / √D) v", "projection, starts at 0",
    )):  # fmt: skip
        p.text(565, 356 + 18 * k, line, 12, GREEN if k == 0 else INK, "start")
    p.save("block", "The Transformer of gpt.py")


def schedules() -> None:
    """Learning rate over a run, of each stage."""
    p = Picture(640, 260)
    x0, y0, w, h = 60, 220, 540, 180
    p.line([(x0, y0 - h), (x0, y0), (x0 + w, y0)])
    stages = (("pretraining", warmup_flat_warmdown(), BLUE), ("midtraining", linear(1.0, 0.2), GREEN),
              ("SFT", linear(0.2, 0.0), ORANGE))  # fmt: skip
    for k, (name, schedule, color) in enumerate(stages):
        grid = np.linspace(0, 1, 201)
        p.line([(x0 + w * t, y0 - h * schedule(float(t))) for t in grid], color, 2.5)
        p.text(x0 + 320, 30 + 17 * k, name, 13, color, "start")
    for t in (0, 0.5, 1):
        p.text(x0 + w * t, y0 + 18, f"{t:.0%}", 11)
        p.text(x0 - 8, y0 - h * t + 4, f"{t:g}", 11, anchor="end")
    p.text(x0 + w / 2, y0 + 34, "progress of the run", 12)
    p.text(x0 - 40, 24, "multiplier of the peak rate", 12, anchor="start")
    p.save("schedule", "Schedules of the learning rate")


def loss_mask(tokenizer: Tokenizer) -> None:
    """A conversation, token by token; what the assistant learns to say is filled."""
    call = [{"type": "python", "text": "12*34"}, {"type": "python_output", "text": "408"},
            {"type": "text", "text": "12 * 34 = 408."}]  # fmt: skip
    messages = [{"role": "user", "content": "What is 12 times 34?"}, {"role": "assistant", "content": call}]
    ids, mask = tokenizer.render_conversation({"messages": messages})
    picture, x, y = Picture(760, 0), 20, 44
    for id, learn in zip(ids.tolist(), mask.tolist()):
        text = tokenizer.vocabulary[id].decode("utf-8", "replace").replace(" ", "␣")
        width = 8 * len(text) + 12
        if x + width > 740:
            x, y = 20, y + 36
        picture.box(x, y, width, 26, text, GREEN if learn else PALE)
        x += width + 4
    picture.height = y + 46
    picture.text(20, 26, "filled: the loss counts this token. Pale: it is read, not learned", anchor="start")
    picture.save("mask", "The loss mask of a conversation")


def cache_slots() -> None:
    """Four slots of the engine at one moment: prompts, answers, room."""
    p, cell, T = Picture(700, 236), 22, 22
    slots = (("chat A: answering", 9, 7), ("chat B: answering", 4, 3), ("chat C: answering", 12, 2),
             ("free; still holds a prompt", 6, 0))  # fmt: skip
    p.text(20, 24, "keys and values of one layer: a row a slot, a column a position", anchor="start")
    for row, (name, prompt, answer) in enumerate(slots):
        y = 40 + 40 * row
        for t in range(T):
            color = BLUE if t < prompt else GREEN if t < prompt + answer else PALE
            p.box(20 + cell * t, y, cell - 2, 24, "", color)
        if answer:
            p.box(20 + cell * (prompt + answer), y, cell - 2, 24, "?", ORANGE)
        p.text(30 + cell * T, y + 17, name, 12, anchor="start")
    for x, color, text in ((20, BLUE, "prompt, read once"), (190, GREEN, "answer so far"),
                           (330, ORANGE, "next token, all rows in one step")):  # fmt: skip
        p.box(x, 206, 16, 16, "", color)
        p.text(x + 22, 219, text, 12, anchor="start")
    p.save("cache", "Slots of the KV cache")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
    merge_tree(tokenizer, " internationally")
    packing()
    block()
    schedules()
    loss_mask(tokenizer)
    cache_slots()


if __name__ == "__main__":
    main()
