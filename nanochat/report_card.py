"""What the report says, and in which order.

In: Sections. Out: blocks (report_page.py): first what every reader wants, then what each script did, then the code.
"""

import importlib.metadata
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from nanochat.common import STAGES, base_dir, format_seconds
from nanochat.report_page import Bar, Bars, Curve, Curves, Fold, Heading, Samples, Table, Text, Tiles
from nanochat.report_section import Section
from nanochat.tokenizer import Tokenizer

# What renting costs, in dollars an hour: a GPU by a part of its name, most specific first; else each core of a CPU.
GPU_PRICES = {"GB200": 7, "B200": 5, "H200": 3.5, "H100": 3, "A100": 1.8, "L40S": 0.9, "L4": 0.7, "A10G": 1, "T4": 0.35}
GPU_PRICES |= {"RTX 5090": 0.7, "RTX 4090": 0.4, "RTX 3090": 0.25}
CORE_PRICE = 0.05

LABELS = {
    "val_bpb": "validation, bits per byte",
    "train_bpb": "training, bits per byte",
    "tokens_per_second": "tokens a second",
    "mfu": "MFU",
    "peak_memory": "peak memory",
}
CURVES = {"val_bpb": "validation", "train_bpb": "training"}
NONE = "–"


def compose(sections: list[Section], hourly_price: float | None = None, started: float | None = None) -> list:
    """The page, as blocks. `started` is when the clock began (seconds since 1970)."""
    blocks = [_tiles(sections, hourly_price, started), Heading("Summary"), _summary(sections)]
    spoken = next((s for s in reversed(sections) if s.samples and s.name.startswith("chat")), None)
    if spoken:
        blocks += [Heading("In its own words"), Text(f"Unpicked, from: {spoken.title}."), Samples(spoken.samples[:20])]
        if rest := spoken.samples[20:]:
            blocks.append(Fold(f"{len(rest)} more", [Samples(rest)]))
    if panels := [panel for section in sections for panel in _panels(section)]:
        blocks += [Heading("Learning"), Curves(panels)]
    if bars := _score_bars([s for s in sections if s.name.startswith("chat_eval")]):
        explained = "Share of held-out items answered right; whiskers span the 95% interval, the tall tick is guessing."
        blocks += [Heading("Scores"), Text(explained), bars]
    blocks += [Heading("Time and cost"), *_costs(sections, hourly_price), Heading("Stages")]
    for section in sections:
        blocks += _details(section, samples=section is not spoken)
    return blocks


def _tiles(sections: list[Section], hourly_price: float | None, started: float | None) -> Tiles:
    seconds = [s.seconds for s in sections if s.seconds]
    costs = [cost for s in sections if (cost := _cost(s, hourly_price))]
    ended = max((s.written for s in sections if s.written), default=0.0)
    tiles = [(format_seconds(sum(seconds)), "time of all stages")] if seconds else []
    tiles += [(format_seconds(ended - started), "from start to end")] if started and ended - started > 1 else []
    tiles += [(_money(sum(costs)), "estimated cost")] if costs else []
    trained = next((s for s in sections if s.name == "base_train"), None)
    for label, meaning in (("parameters", "parameters"), ("tokens", "tokens of pretraining")):
        if trained and (value := trained.figure(label)) is not None:
            tiles.append((_short(value), meaning))
    for label, stages in (("val_bpb", ["base"]), ("CORE", ["base"]), ("ChatCORE", reversed(STAGES))):
        values = [value for stage in stages if (value := _stage_figure(sections, stage, label)) is not None]
        tiles += [(_show(label, values[0]), LABELS.get(label, label))] if values else []
    return Tiles(tiles)


def _stage_figure(sections: list[Section], stage: str, label: str) -> float | None:
    """A figure of a stage: an evaluation, which comes later, counts before what was measured during training."""
    values = [s.figure(label) for s in sections if s.stage == stage]
    return next((value for value in reversed(values) if value is not None), None)


def _summary(sections: list[Section]) -> Table | Text:
    rows = {}
    for label in ("val_bpb", "CORE", "ChatCORE"):
        values = [_stage_figure(sections, stage, label) for stage in STAGES]
        if any(value is not None for value in values):
            rows[label] = [LABELS.get(label, label), *(NONE if v is None else _show(label, v) for v in values)]
    core = rows.pop("ChatCORE", None)  # it sums up the tasks, so it stands below them
    evaluations = [s for s in sections if s.name.startswith("chat_eval") and s.stage]
    for name in dict.fromkeys(score["name"] for s in evaluations for score in s.scores):
        found = {s.stage: score for s in evaluations for score in s.scores if score["name"] == name}
        totals, chance = (
            sorted({s["total"] for s in found.values() if s["total"]}),
            next(iter(found.values()))["chance"],
        )
        items = " or ".join(f"{total:,.0f}" for total in totals)  # a stage in the middle may be asked fewer
        small = ", ".join([f"{items} items"] * bool(items) + [f"chance {chance or 0:.0%}"] * bool(chance))
        rows[name] = [f"{name}\n{small}", *(_score_cell(found.get(stage)) for stage in STAGES)]
    if not rows:
        return Text("Nothing has been evaluated yet: run scripts.base_loss, scripts.base_eval or scripts.chat_eval.")
    return Table(["Metric", *(stage.upper() for stage in STAGES)], [*rows.values(), *([core] if core else [])])


def _score_cell(score: dict | None) -> str:
    if score is None:
        return NONE
    interval = f"{score['low']:.1%} to {score['high']:.1%}" if None not in (score["low"], score["high"]) else ""
    below = ",\n".join(filter(None, [interval, _seen(score)]))
    return f"{score['accuracy']:.1%}" + (f"\n{below}" if below else "")


def _seen(score: dict) -> str:
    """Contamination, in a few words; nothing if it was not looked for."""
    if score["seen"] is None:
        return ""
    if not score["checked"]:
        return "too short to be found in the training text"
    found = f"{score['seen']:,.0f} of {score['checked']:,.0f} in the training text"
    unseen = score["unseen_accuracy"]
    return found if not score["seen"] or unseen is None else f"{found}, {unseen:.1%} without"


def _panels(section: Section) -> list[tuple[str, list[Curve]]]:
    """A picture for each unit that the curves of a section are measured in."""
    panels: dict[str, list[Curve]] = {}
    for curve in section.curves:
        panels.setdefault(curve.y_label, []).append(replace(curve, name=CURVES.get(curve.name, curve.name)))
    return [(f"{section.title}: {c[0].name if len(c) == 1 else unit}", c) for unit, c in panels.items()]


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
            text = ", ".join(filter(None, [text, _seen(score)]))
            bar = Bar(label, score["accuracy"], text, _kind(section), interval, score["chance"] or None)
            groups.setdefault(score["name"], []).append(bar)
    return Bars(list(groups.items())) if groups else None


def _costs(sections: list[Section], hourly_price: float | None) -> list:
    timed = [section for section in sections if section.seconds]
    if not timed:
        return [Text("No script has reported its time yet.")]
    total, costs = sum(s.seconds for s in timed), [_cost(s, hourly_price) for s in timed]
    columns, rows = ("tokens", "tokens_per_second", "mfu", "peak_memory"), []
    for section, cost in zip(timed, costs):
        figures = [_show(c, section.metrics[c]) if c in section.metrics else NONE for c in columns]
        rows.append([section.title, format_seconds(section.seconds), *figures, NONE if cost is None else _money(cost)])
    known = [cost for cost in costs if cost is not None]
    rows.append(["Total", format_seconds(total), *[""] * len(columns), _money(sum(known)) if known else NONE])
    header = ["Stage", "Time", "Tokens", "Tokens/s", "MFU", "Peak memory", "Cost"]
    blocks = [Table(header, rows, total=True)]
    prices = dict.fromkeys(price[1] for s in timed if (price := price_an_hour(s.machine)))
    basis = "; ".join(prices) if hourly_price is None else f"{_money(hourly_price)} an hour"
    blocks += [Text(f"Costs that a script does not state are estimated: {basis}.")] if known and basis else []
    share = lambda s: f"{format_seconds(s.seconds)}, {s.seconds / total:.0%}"  # noqa: E731
    bars = [Bar(s.title, s.seconds / total, share(s), _kind(s)) for s in timed]
    return [*blocks, Bars([("Where the time went", bars)])]


def price_an_hour(machine: dict) -> tuple[float, str] | None:
    """Dollars an hour and what they are based on; None if the machine is not known."""
    device, figures = str(machine.get("device", "")), {k: v for k, v in machine.items() if not isinstance(v, str)}
    if gpu := next((gpu for gpu in GPU_PRICES if gpu in device), None):
        count = int(figures.get("ranks") or figures.get("gpus") or 1)
        return GPU_PRICES[gpu] * count, f"${GPU_PRICES[gpu]:.2f} an hour for each of {count} {gpu}"
    if device == "cpu" and (cores := figures.get("cores")):
        return CORE_PRICE * cores, f"${CORE_PRICE:.2f} an hour for each of {cores:,.0f} CPU cores"
    return None


def _cost(section: Section, hourly_price: float | None) -> float | None:
    """Dollars: what the script says, else its time at the machine's price."""
    if (stated := section.figure("cost")) is not None or not section.seconds:
        return stated
    hourly = hourly_price if hourly_price is not None else (price_an_hour(section.machine) or (None,))[0]
    return None if hourly is None else hourly * section.seconds / 3600


def _details(section: Section, samples: bool) -> list:
    blocks = [Text(note) for note in section.notes]
    if section.metrics:
        rows = [[LABELS.get(label, label.replace("_", " ")), _show(label, v)] for label, v in section.metrics.items()]
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


def _show(label: str, value: float | int | str) -> str:
    """A metric as a person reads it: ("mfu", 0.5123) -> "51.2%"."""
    if isinstance(value, str):
        return value
    if label == "mfu":
        return f"{value:.1%}"
    if label == "peak_memory":
        return f"{value / 2**30:,.2f} GiB"
    if label == "cost":
        return _money(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if label.endswith(("bpb", "CORE")) else f"{value:.4g}"


def _short(value: float) -> str:
    """11_534_336 -> "11.5 M"."""
    unit, size = next(((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)) if value >= s), ("", 1))
    return f"{value / size:.3g} {unit}".strip()


def _money(dollars: float) -> str:
    return "under 1¢" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def code_size() -> list:
    """How much there is to read: the size of the packages that this report comes from."""
    try:
        encode = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json").encode
        count, by = lambda text: len(encode(text)), "counted by the tokenizer that was trained here"
    except (OSError, ValueError, SystemExit):
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
