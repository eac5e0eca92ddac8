"""What the report says, and in which order.

In: Sections. Out: blocks (report_page.py): first what every reader wants, then what each script did, then the code.
"""

import importlib.metadata
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from nanochat.common import STAGES, base_dir, format_seconds
from nanochat.gpus import price_an_hour
from nanochat.report_page import Bar, Bars, Commands, Curve, Curves, Fold, Heading, Samples, Table, Text, Tiles, short
from nanochat.report_section import Section
from nanochat.tokenizer import Tokenizer

LABELS = {
    "val_bpb": "validation, bits per byte",
    "train_bpb": "training, bits per byte",
    "tokens_per_second": "tokens a second",
    "mfu": "MFU",
    "peak_memory": "peak memory",
}
CURVES = {"val_bpb": "validation", "train_bpb": "training"}
ASKED = {  # what an item of a task is, for whoever has not read its code
    "Arithmetic": "sums, with the calculator",
    "MentalArithmetic": "sums in the head, two results to choose from",
    "LetterCount": "how often a letter stands in a word, with the calculator",
    "Spelling": "words, letter by letter",
    "Topic": "which of four topics a text is about",
    "Identity": "who it is",
    "WhatIs": "what a thing is, looked up in the encyclopedia and said word by word",
    "ARC-Easy": "science for schools, four choices",
    "ARC-Challenge": "harder science for schools, four choices",
    "MMLU": "exams of 57 subjects, four choices",
    "GSM8K": "word problems for schools",
    "HumanEval": "Python functions that must pass tests",
}
NEXT = [
    ("talk to it in the browser", "{python} -m scripts.chat_web"),
    ("talk to it in the terminal", "{python} -m scripts.chat_cli"),
    ("train longer, from the start", "bash quickstart.sh --minutes 60"),
    ("train on your own text", "bash quickstart.sh --data PATH"),
    ("see how it works", "docs/guide/README.md"),
]
FEW_CURVES = 3  # more in one picture hide each other
NONE = "–"


def compose(sections: list[Section], hourly_price: float | None = None, started: float | None = None) -> list:
    """The page, as blocks. `started` is when the clock began (seconds since 1970)."""
    evaluations = [s for s in sections if s.name.startswith("chat_eval")]
    blocks = [_tiles(sections, hourly_price, started), Heading("Summary"), *_explained(sections), _summary(sections)]
    blocks += [Text(seen)] if evaluations and (seen := _contamination(evaluations[-1])) else []
    spoken = next((s for s in reversed(sections) if s.samples and s.name.startswith("chat")), None)
    if spoken:
        unpicked = f"Its first answers in each task, right or wrong; nobody picked them ({spoken.title})."
        blocks += [Heading("In its own words"), Text(unpicked), Samples(spoken.samples[:20])]
        if rest := spoken.samples[20:]:
            blocks.append(Fold(f"{len(rest)} more", [Samples(rest)]))
        blocks += [Heading("Go on"), Commands([(what, c.format(python=_python())) for what, c in NEXT])]
    if panels := [panel for section in sections for panel in _panels(section)]:
        blocks += [Heading("Learning"), Curves(panels)]
    if bars := _score_bars(evaluations):
        explained = "Share of held-out items answered right; whiskers span the 95% interval, the tall tick is guessing."
        blocks += [Heading("Scores"), Text(explained), bars]
    blocks += [Heading("Time and cost"), *_costs(sections, hourly_price), Heading("Stages")]
    for section in sections:
        blocks += _details(section, samples=section is not spoken)
    return blocks


def _python() -> str:
    """How the Python that runs this is called from the folder of the code."""
    here, root = Path(sys.executable), Path(__file__).resolve().parent.parent
    return str(here.relative_to(root)) if here.is_relative_to(root) else "python"


def _tiles(sections: list[Section], hourly_price: float | None, started: float | None) -> Tiles:
    seconds = [s.seconds for s in sections if s.seconds]
    costs = [cost for s in sections if (cost := cost_of(s, hourly_price))]
    ended = max((s.written for s in sections if s.written), default=0.0)
    if started and ended - started > 1:
        tiles = [(format_seconds(ended - started), "from start to end")]
    else:
        tiles = [(format_seconds(sum(seconds)), "time of all stages")] if seconds else []
    tiles += [(money(sum(costs)), "estimated cost")] if costs else []
    trained = next((s for s in sections if s.name == "base_train"), None)
    for label, meaning in (("parameters", "parameters"), ("tokens", "tokens of pretraining")):
        if trained and (value := trained.figure(label)) is not None:
            tiles.append((short(value), meaning))
    for label, stages in (("val_bpb", ["base"]), ("CORE", ["base"]), ("ChatCORE", reversed(STAGES))):
        values = [value for stage in stages if (value := stage_figure(sections, stage, label)) is not None]
        tiles += [(show(label, values[0]), LABELS.get(label, label))] if values else []
    return Tiles(tiles)


def stage_figure(sections: list[Section], stage: str, label: str) -> float | None:
    """A figure of a stage: an evaluation, which comes later, counts before what was measured during training."""
    values = [s.figure(label) for s in sections if s.stage == stage]
    return next((value for value in reversed(values) if value is not None), None)


def _explained(sections: list[Section]) -> list[Text]:
    """What the figures of the summary mean."""
    texts = []
    if any(stage_figure(sections, stage, "val_bpb") is not None for stage in STAGES):
        texts.append(
            "Bits per byte: what a byte of text that it has never read still takes when the model guesses what comes "
            "next. 8 is no idea; less is better."
        )
    if any(s.scores for s in sections if s.name.startswith("chat_eval")):
        texts.append(
            "The other figures are the share of questions answered right, none of which was trained on, and between "
            "which two the true share lies, 95 times in 100. Chance is what guessing earns."
        )
    return [Text(" ".join(texts))] if texts else []


def _summary(sections: list[Section]) -> Table | Text:
    """A row a metric, a column for each stage that was measured."""
    rows: dict[str, dict[str, str]] = {}  # name as shown -> cell by stage
    for label in ("val_bpb", "CORE", "ChatCORE"):
        values = {stage: stage_figure(sections, stage, label) for stage in STAGES}
        if cells := {stage: show(label, value) for stage, value in values.items() if value is not None}:
            rows[LABELS.get(label, label)] = cells
    core = rows.pop("ChatCORE", None)  # it sums up the tasks, so it stands below them
    evaluations = [s for s in sections if s.name.startswith("chat_eval") and s.stage]
    for name in dict.fromkeys(score["name"] for s in evaluations for score in s.scores):
        found = {s.stage: score for s in evaluations for score in s.scores if score["name"] == name}
        rows[f"{name}\n{_small_print(name, list(found.values()))}".strip()] = {
            stage: _score_cell(score) for stage, score in found.items()
        }
    rows |= {"ChatCORE": core} if core else {}
    if not rows:
        return Text("Nothing has been evaluated yet: run scripts.base_loss, scripts.base_eval or scripts.chat_eval.")
    stages = [stage for stage in STAGES if any(stage in cells for cells in rows.values())]
    lines = [[name, *(cells.get(stage, NONE) for stage in stages)] for name, cells in rows.items()]
    return Table(["Metric", *(stage.upper() for stage in stages)], lines)


def _small_print(name: str, scores: list[dict]) -> str:
    """What a task asks, how often (a stage in the middle may be asked less), and what guessing earns."""
    items = " or ".join(f"{total:,.0f}" for total in sorted({s["total"] for s in scores if s["total"]}))
    chance = scores[0]["chance"]
    counts = ", ".join([f"{items} items"] * bool(items) + [f"chance {chance or 0:.0%}"] * bool(chance))
    return "; ".join(filter(None, [ASKED.get(name, ""), counts]))


def _score_cell(score: dict) -> str:
    known = None not in (score["low"], score["high"])
    interval = f"\n{100 * score['low']:.1f} to {100 * score['high']:.1f}" if known else ""
    return f"{score['accuracy']:.1%}{interval}"


def _contamination(section: Section) -> str:
    """Which items the training text has, in a sentence or two; nothing if it was not looked for."""
    looked = [score for score in section.scores if score["seen"] is not None]
    found = []
    for score in (score for score in looked if score["checked"]):
        without = score["unseen_accuracy"] if score["seen"] else None
        right = "" if without is None else f", {without:.1%} right without"
        found.append(f"{score['name']} {score['seen']:,.0f} of {score['checked']:,.0f}{right}")
    too_short = any(not score["checked"] for score in looked)
    texts = [f"In the training text: {'; '.join(found)}."] * bool(found)
    texts += [
        f"{'The other questions' if found else 'The questions'} are too short to be looked for there."
    ] * too_short
    return " ".join(texts)


def _panels(section: Section) -> list[tuple[str, list[Curve]]]:
    """A picture for each unit that the curves of a section are measured in; many curves stand apart from the first."""
    units: dict[str, list[Curve]] = {}
    for curve in section.curves:
        units.setdefault(curve.y_label, []).append(replace(curve, name=CURVES.get(curve.name, curve.name)))
    panels = []
    for unit, curves in units.items():
        groups = [curves] if len(curves) <= FEW_CURVES else [curves[:1], curves[1:]]
        for group in groups:
            held_out = len(group) > 1 and all(curve.name.startswith("loss ") for curve in group)
            name = group[0].name if len(group) == 1 else "held-out loss" if held_out else unit
            group = [replace(c, name=c.name.removeprefix("loss ")) for c in group] if held_out else group
            panels.append((f"{section.title}: {name}", group))
    return panels


def _kind(section: Section) -> int:
    """The colour of a stage."""
    return STAGES.index(section.stage) if section.stage else 0


def _score_bars(sections: list[Section]) -> Bars | None:
    groups: dict[str, list[Bar]] = {}
    for section in sections:
        for score in section.scores:
            interval = (score["low"], score["high"]) if None not in (score["low"], score["high"]) else None
            counts = f" ({score['correct']:,.0f}/{score['total']:,.0f})" if score["correct"] and score["total"] else ""
            label, text = section.stage.upper() or section.title, f"{score['accuracy']:.1%}{counts}"
            bar = Bar(label, score["accuracy"], text, _kind(section), interval, score["chance"] or None)
            groups.setdefault(score["name"], []).append(bar)
    return Bars(list(groups.items())) if groups else None


def _costs(sections: list[Section], hourly_price: float | None) -> list:
    timed = [section for section in sections if section.seconds]
    if not timed:
        return [Text("No script has reported its time yet.")]
    total, costs = sum(s.seconds for s in timed), [cost_of(s, hourly_price) for s in timed]
    names = {"tokens": "Tokens", "tokens_per_second": "Tokens/s", "mfu": "MFU", "peak_memory": "Peak memory"}
    columns, rows = [name for name in names if any(name in section.metrics for section in timed)], []
    for section, cost in zip(timed, costs):
        figures = [show(c, section.metrics[c]) if c in section.metrics else NONE for c in columns]
        rows.append([section.title, format_seconds(section.seconds), *figures, NONE if cost is None else money(cost)])
    known = [cost for cost in costs if cost is not None]
    rows.append(["Total", format_seconds(total), *[""] * len(columns), money(sum(known)) if known else NONE])
    header = ["Stage", "Time", *(names[column] for column in columns), "Cost"]
    blocks = [Table(header, rows, total=True)]
    prices = dict.fromkeys(price[1] for s in timed if (price := price_an_hour(s.machine)))
    basis = "; ".join(prices) if hourly_price is None else f"{money(hourly_price)} an hour"
    blocks += [Text(f"Costs that a script does not state are estimated: {basis}.")] if known and basis else []
    share = lambda s: f"{format_seconds(s.seconds)}, {s.seconds / total:.0%}"  # noqa: E731
    bars = [Bar(s.title, s.seconds / total, share(s), _kind(s)) for s in timed]
    return [*blocks, Bars([("Where the time went", bars)])]


def cost_of(section: Section, hourly_price: float | None) -> float | None:
    """Dollars: what the script says, else its time at the machine's price."""
    if (stated := section.figure("cost")) is not None or not section.seconds:
        return stated
    hourly = hourly_price if hourly_price is not None else (price_an_hour(section.machine) or (None,))[0]
    return None if hourly is None else hourly * section.seconds / 3600


def _details(section: Section, samples: bool) -> list:
    blocks = [Text(note) for note in section.notes]
    if section.metrics:
        rows = [[label_of(label), show(label, v)] for label, v in section.metrics.items()]
        blocks.append(Table(["", ""], rows))
    if not section.name.startswith("chat_eval") and (bars := _score_bars([section])):
        blocks.append(Fold(f"{len(bars.groups)} scores", [bars]))
    blocks += [block for comparison in section.comparisons for block in _comparison(comparison)]
    if section.samples and samples:
        blocks.append(Fold(f"{len(section.samples)} samples", [Samples(section.samples)]))
    for title, values in (("Settings", section.settings), ("Machine", section.machine)):
        if values:
            blocks.append(Fold(title, [Table(["", ""], [[key, str(value)] for key, value in values.items()])]))
    return [Heading(section.title, 3), *(blocks or [Text("Nothing more is known of it.")])]


def _comparison(comparison: dict) -> list:
    """A table and, for the eye, the same as bars."""
    name, columns, rows = comparison["name"], comparison["columns"], comparison["rows"]
    shown = lambda value: NONE if value is None else f"{value:.3g}"  # noqa: E731
    most, labels = max(value for _, row in rows for value in row if value), [c.split("\n")[0] for c in columns]
    bars = [
        (f"{name}: {what}", [Bar(c, v / most, shown(v), min(k, 1)) for k, (c, v) in enumerate(zip(labels, row)) if v])
        for what, row in rows
    ]
    return [Table([name, *columns], [[what, *map(shown, row)] for what, row in rows]), Fold("As bars", [Bars(bars)])]


def label_of(metric: str) -> str:
    held_out = f"held-out loss, {metric[5:]}" if metric.startswith("loss ") else metric.replace("_", " ")
    return LABELS.get(metric, held_out)


def show(label: str, value: float | int | str) -> str:
    """A metric as a person reads it: ("mfu", 0.5123) -> "51.2%"."""
    if isinstance(value, str):
        return value
    if label == "mfu":
        return f"{value:.1%}"
    if label == "peak_memory":
        return f"{value / 2**30:,.2f} GiB"
    if label == "cost":
        return money(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if label.endswith(("bpb", "CORE")) else f"{value:.4g}"


def money(dollars: float) -> str:
    return "under 1¢" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def code_size() -> list:
    """How much there is to read: the size of the packages that this report comes from."""
    try:
        encode = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json").encode
        count, by = lambda text: len(encode(text)), "counted by the tokenizer that was trained here"
    except (SystemExit, ValueError):
        count, by = lambda text: len(text) // 4, "an estimate: a quarter of the characters"
    root, rows, totals = Path(__file__).resolve().parent.parent, [], Counter()
    for package in ("nanochat", "scripts", "tasks"):
        files = [f for f in (root / package).rglob("*") if f.suffix in (".py", ".html", ".css", ".js", ".svg")]
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        lines = sum(len(text.splitlines()) for text in texts)
        size = Counter(files=len(files), lines=lines, characters=sum(map(len, texts)), tokens=sum(map(count, texts)))
        rows.append([f"{package}/", *(f"{size[key]:,}" for key in ("files", "lines", "characters", "tokens"))])
        totals += size
    rows.append(["Total", *(f"{totals[key]:,}" for key in ("files", "lines", "characters", "tokens"))])
    try:
        names = [
            re.split(r"[^\w.-]", r)[0] for r in importlib.metadata.requires("nanochat") or [] if "extra ==" not in r
        ]
        dependencies = f"{len(names)} direct dependencies: {', '.join(names)}."
    except importlib.metadata.PackageNotFoundError:
        dependencies = "nanochat is not installed, so its dependencies are not known."
    table = Table(["", "Files", "Lines", "Characters", "Tokens"], rows, total=True)
    return [Heading("Code"), table, Text(f"Tokens are {by}. {dependencies}")]
