"""The report card: what each script wrote of its stage, on one page.

In: report/<section>.json, one a script (dev/ARCHITECTURE.md has the keys). Out: report/report.md and a report.html that
needs nothing else. `python -m nanochat.report reset` begins a new one, `generate` writes the page.
"""

import importlib.metadata
import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat.common import STAGES, base_dir, format_seconds, git_commit, read_json, write_bytes, write_json
from nanochat.configurator import parse
from nanochat.report_page import (
    Bar,
    Bars,
    Curve,
    Curves,
    Fold,
    Heading,
    Sample,
    Samples,
    Table,
    Text,
    Tiles,
    to_html,
    to_markdown,
)
from nanochat.tokenizer import Tokenizer

PIPELINE = ("data", "tokenizer", "tokenizer_eval", "base_train", "base_loss", "base_eval", "chat_eval_base")
PIPELINE += ("mid_train", "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl")
TRAINED = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}  # stage -> section

# What renting costs, in dollars an hour: a GPU by a part of its name, most specific first; else the cores of a CPU.
GPU_PRICES = {
    "GB200": 7,
    "B200": 5,
    "H200": 3.5,
    "H100": 3,
    "A100": 1.8,
    "L40S": 0.9,
    "RTX 5090": 0.7,
    "RTX 4090": 0.4,
    "L4": 0.7,
    "A10G": 1,
    "T4": 0.35,
}
CORE_PRICE = 0.05

LABELS = {
    "val_bpb": "validation, bits per byte",
    "train_bpb": "training, bits per byte",
    "tokens_per_second": "tokens a second",
    "mfu": "MFU",
    "peak_memory": "peak memory",
}


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def report_dir() -> Path:
    return base_dir() / "report"


def write_section(name: str, section: dict) -> None:
    """Keep what a script has to say, in place of what it said before. Values that JSON lacks become text."""
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    plain = json.loads(json.dumps({**section, "written": time.time()}, default=str))
    write_json(report_dir() / f"{name}.json", plain)


def read_sections() -> dict[str, dict]:
    """Every section, in the order of the pipeline. A file that is no JSON object becomes a note that says so."""
    sections = {}
    for path in report_dir().glob("*.json"):
        try:
            sections[path.stem] = read_json(path)
            if not isinstance(sections[path.stem], dict):
                raise ValueError(f"{path} holds no JSON object.")
        except (OSError, ValueError, RecursionError) as error:
            sections[path.stem] = {"notes": [str(error)]}
    place = {name: i for i, name in enumerate(PIPELINE)}
    return dict(sorted(sections.items(), key=lambda item: (place.get(item[0], len(place)), item[0])))


@dataclass(frozen=True)
class Section:
    """A section in which everything has the type that it should have; what had not is left out."""

    name: str
    title: str
    seconds: float | None
    written: float | None
    machine: dict
    settings: dict
    metrics: dict
    curves: list[Curve]
    samples: list[Sample]
    scores: list[dict]
    notes: list[str]

    @classmethod
    def read(cls, name: str, raw: dict) -> "Section":
        entries = lambda key, kind: [e for e in _of(list, raw.get(key)) if isinstance(e, kind)]  # noqa: E731
        metrics = {_text(key): _metric(value) for key, value in _of(dict, raw.get("metrics")).items()}
        title = _text(raw.get("title") or "") or name.replace("_", " ").capitalize()
        return cls(
            name,
            title,
            _number(raw.get("seconds")),
            _number(raw.get("written")),
            *(
                {_text(key): _metric(value) for key, value in _of(dict, raw.get(k)).items()}
                for k in ("machine", "settings")
            ),
            metrics,
            [curve for curve in map(_curve, entries("curves", dict)) if curve],
            [_sample(entry) for entry in entries("samples", dict)],
            [score for score in map(_score, entries("scores", dict)) if score],
            [_text(note) for note in entries("notes", str)],
        )

    @property
    def stage(self) -> str:
        """Which of STAGES the section tells of; "" if of none."""
        return next((stage for stage in STAGES if stage in self.name.split("_")), "")


def _of(kind: type, value):
    return value if isinstance(value, kind) else kind()


def _number(value) -> float | int | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _text(value) -> str:
    """Text without control characters and without what UTF-8 cannot hold."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", str(value))
    return text.encode("utf-8", "replace").decode("utf-8")


def _metric(value) -> float | int | str:
    number = _number(value)
    return number if number is not None else _text(value if isinstance(value, str) else json.dumps(value))[:500]


def _curve(raw: dict) -> Curve | None:
    pairs = zip(_of(list, raw.get("x")), _of(list, raw.get("y")))
    points = [
        (x, y) for x, y in pairs if _number(x) is not None and _number(y) is not None and max(abs(x), abs(y)) < 1e15
    ]
    if not points:
        return None
    return Curve(*(_text(raw.get(key) or "") for key in ("name", "x_label", "y_label")), *map(list, zip(*points)))


def _sample(raw: dict) -> Sample:
    answer = _text(raw.get("answer", "")).replace("<|assistant_end|>", "")
    correct = raw.get("correct")
    return Sample(_text(raw.get("prompt", "")), answer, correct if isinstance(correct, bool) else None)


def _score(raw: dict) -> dict | None:
    score = {key: _number(raw.get(key)) for key in ("correct", "total", "accuracy", "low", "high", "chance")}
    if score["accuracy"] is None:
        if not score["total"] or score["correct"] is None:
            return None
        score["accuracy"] = score["correct"] / score["total"]
    return score | {"name": _text(raw.get("name") or "task")}


# ---------------------------------------------------------------------------------------------------------------------
# Sections -> blocks


def compose(sections: list[Section], hourly_price: float | None = None) -> list:
    """The page, as blocks (report_page.py): first what every reader wants, then the details of each script."""
    blocks = [_tiles(sections, hourly_price), Heading("Summary"), *_summary(sections)]
    spoken = next((s for s in reversed(sections) if s.samples and s.name.startswith("chat")), None)
    if spoken:
        blocks += [Heading("In its own words"), Text(f"Unpicked samples, from: {spoken.title}."), *_samples(spoken)]
    panels = [panel for section in sections for panel in _panels(section)]
    if panels:
        blocks += [Heading("Learning"), Curves(panels)]
    if scores := _score_bars(sections):
        blocks += [
            Heading("Scores"),
            Text(
                "Share of held-out items answered right. The thin line is the 95% interval, the red tick is guessing."
            ),
            scores,
        ]
    blocks += [Heading("Time and cost"), *_costs(sections, hourly_price), Heading("Stages")]
    for section in sections:
        blocks += _details(section, samples=section is not spoken)
    return [*blocks, Heading("Code"), *_code()]


def _tiles(sections: list[Section], hourly_price: float | None) -> Tiles:
    by_name = {section.name: section for section in sections}
    seconds, costs = [s.seconds for s in sections if s.seconds], [_cost(s, hourly_price) for s in sections]
    tiles = [(format_seconds(sum(seconds)), "time of all stages")] if seconds else []
    if started := _started():
        ended = max((s.written for s in sections if s.written), default=started)
        tiles += [(format_seconds(ended - started), "from start to end")] if ended > started else []
    if any(costs):
        tiles.append((f"${sum(cost or 0 for cost in costs):,.2f}", "estimated cost"))
    base = by_name["base_train"].metrics if "base_train" in by_name else {}
    for key, label in (("parameters", "parameters"), ("tokens", "tokens of pretraining")):
        if _number(base.get(key)) is not None:
            tiles.append((_short(base[key]), label))
    for label, source in (("val_bpb", "base"), ("CORE", "base"), ("ChatCORE", "")):
        stages = [source] if source else list(reversed(STAGES))
        value = next((v for stage in stages if (v := _stage_metric(sections, stage, label)) is not None), None)
        if value is not None:
            tiles.append((_show(label, value), LABELS.get(label, label)))
    return Tiles(tiles)


def _stage_metric(sections: list[Section], stage: str, label: str) -> float | None:
    """The newest figure of that name of a stage: an evaluation's counts before the trainer's own."""
    found = [_number(s.metrics.get(label)) for s in sections if s.stage == stage]
    return next((value for value in reversed(found) if value is not None), None)


def _summary(sections: list[Section]) -> list:
    rows = []
    for label in ("val_bpb", "CORE", "ChatCORE"):
        values = [_stage_metric(sections, stage, label) for stage in STAGES]
        if any(value is not None for value in values):
            rows.append([LABELS.get(label, label), *("–" if v is None else _show(label, v) for v in values)])
    names = dict.fromkeys(score["name"] for section in sections for score in section.scores)
    for name in names:
        found = {s.stage: score for s in sections for score in s.scores if score["name"] == name and s.stage}
        if found:
            some = next(iter(found.values()))
            small = [f"{score:,.0f} items" for score in [some["total"]] if score]
            small += [f"chance {some['chance']:.0%}"] if some["chance"] is not None else []
            rows.append([f"{name}\n{', '.join(small)}".strip(), *(_score_cell(found.get(stage)) for stage in STAGES)])
    if not rows:
        return [Text("Nothing has been evaluated yet: run python -m scripts.base_loss, base_eval or chat_eval.")]
    # ChatCORE sums up the tasks, so it stands below them.
    rows.sort(key=lambda row: row[0] == "ChatCORE")
    return [Table(["Metric", *(stage.upper() for stage in STAGES)], rows)]


def _score_cell(score: dict | None) -> str:
    if score is None:
        return "–"
    interval = f"\n{score['low']:.1%} to {score['high']:.1%}" if None not in (score["low"], score["high"]) else ""
    return f"{score['accuracy']:.1%}{interval}"


def _panels(section: Section) -> list[tuple[str, list[Curve]]]:
    """A picture for every unit that the curves of a section are measured in."""
    units = dict.fromkeys(curve.y_label for curve in section.curves)
    same = {
        unit: [replace(c, name=LABELS.get(c.name, c.name)) for c in section.curves if c.y_label == unit]
        for unit in units
    }
    return [
        (f"{section.title}: {curves[0].name if len(curves) == 1 else unit}", curves) for unit, curves in same.items()
    ]


def _score_bars(sections: list[Section]) -> Bars | None:
    groups: dict[str, list[Bar]] = {}
    for section in sections:
        for score in section.scores:
            interval = (score["low"], score["high"]) if None not in (score["low"], score["high"]) else None
            counts = (
                f" ({score['correct']:,.0f}/{score['total']:,.0f})"
                if score["correct"] is not None and score["total"]
                else ""
            )
            label, kind = (section.stage.upper(), STAGES.index(section.stage)) if section.stage else (section.title, 0)
            bar = Bar(label, score["accuracy"], f"{score['accuracy']:.1%}{counts}", kind, interval, score["chance"])
            groups.setdefault(score["name"], []).append(bar)
    return Bars(list(groups.items())) if groups else None


def _costs(sections: list[Section], hourly_price: float | None) -> list:
    timed = [section for section in sections if section.seconds]
    if not timed:
        return [Text("No script has reported its time yet.")]
    columns, rows = ("tokens", "tokens_per_second", "mfu", "peak_memory"), []
    for section in timed:
        cost = _cost(section, hourly_price)
        figures = ["–" if section.metrics.get(c) is None else _show(c, section.metrics[c]) for c in columns]
        rows.append(
            [section.title, format_seconds(section.seconds), *figures, "–" if cost is None else f"${cost:,.2f}"]
        )
    total, costs = sum(s.seconds for s in timed), [_cost(s, hourly_price) for s in timed]
    rows.append(
        [
            "Total",
            format_seconds(total),
            *[""] * len(columns),
            f"${sum(c or 0 for c in costs):,.2f}" if any(costs) else "–",
        ]
    )
    bars = [Bar(s.title, s.seconds / total, f"{format_seconds(s.seconds)}, {s.seconds / total:.0%}") for s in timed]
    prices = dict.fromkeys(_price(s.machine)[1] for s in timed if _price(s.machine))
    basis = f"${hourly_price:,.2f} an hour" if hourly_price is not None else "; ".join(prices)
    note = [Text(f"The cost is an estimate, at {basis}.")] if basis and any(costs) else []
    header = ["Stage", "Time", "Tokens", "Tokens/s", "MFU", "Peak memory", "Cost"]
    return [Table(header, rows, total=True), *note, Bars([("Where the time went", bars)])]


def _price(machine: dict) -> tuple[float, str] | None:
    """Dollars an hour and what they are based on; None if the machine is not known."""
    device, cores = str(machine.get("device", "")), _number(machine.get("cores"))
    count = int(_number(machine.get("ranks")) or _number(machine.get("gpus")) or 1)
    if gpu := next((gpu for gpu in GPU_PRICES if gpu in device), None):
        return GPU_PRICES[gpu] * count, f"${GPU_PRICES[gpu]:.2f} an hour for each of {count} {gpu}"
    if device == "cpu" and cores:
        return CORE_PRICE * cores, f"${CORE_PRICE:.2f} an hour for each of {cores:,.0f} cores"
    return None


def _cost(section: Section, hourly_price: float | None) -> float | None:
    stated, price = _number(section.metrics.get("cost")), _price(section.machine)
    if stated is not None or not section.seconds:
        return stated
    hourly = hourly_price if hourly_price is not None else price[0] if price else None
    return None if hourly is None else hourly * section.seconds / 3600


def _details(section: Section, samples: bool) -> list:
    blocks = [Heading(section.title, 3)]
    if section.metrics:
        blocks.append(
            Table(["", ""], [[LABELS.get(k, k.replace("_", " ")), _show(k, v)] for k, v in section.metrics.items()])
        )
    blocks += [Text(note) for note in section.notes]
    if section.samples and samples:
        blocks.append(Fold(f"{len(section.samples)} samples", [Samples(section.samples)]))
    for title, values in (("Settings", section.settings), ("Machine", section.machine)):
        if values:
            blocks.append(Fold(title, [Table(["", ""], [[key, str(value)] for key, value in values.items()])]))
    return blocks if len(blocks) > 1 else [*blocks, Text("The section is empty.")]


def _samples(section: Section, most: int = 10) -> list:
    first, rest = section.samples[:most], section.samples[most:]
    return [Samples(first)] + ([Fold(f"{len(rest)} more", [Samples(rest)])] if rest else [])


def _show(label: str, value: float | int | str) -> str:
    """A metric as a person reads it: ("mfu", 0.5123) -> "51.2%"."""
    if isinstance(value, str):
        return value
    if label == "mfu":
        return f"{value:.1%}"
    if label == "peak_memory":
        return f"{value / 2**30:,.2f} GiB"
    if label == "cost":
        return f"${value:,.2f}"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.3g}"


def _short(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _code() -> list:
    """How much there is to read: the size of the packages that this report comes from."""
    root, rows, totals = Path(__file__).resolve().parent.parent, [], Counter()
    tokenizer = base_dir() / "tokenizer" / "tokenizer.json"
    try:
        count = lambda text, encode=Tokenizer.load(tokenizer).encode: len(encode(text))  # noqa: E731
        by = "counted by the tokenizer trained here"
    except (OSError, ValueError, SystemExit):
        count, by = lambda text: len(text) // 4, "an estimate: characters / 4"
    for package in ("nanochat", "scripts", "tasks"):
        files = [f for f in sorted((root / package).rglob("*")) if f.suffix in (".py", ".html", ".css", ".js", ".svg")]
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        size = Counter(
            files=len(files),
            lines=sum(t.count("\n") for t in texts),
            characters=sum(map(len, texts)),
            tokens=sum(map(count, texts)),
        )
        totals += size
        rows.append([f"{package}/", *(f"{size[k]:,}" for k in ("files", "lines", "characters", "tokens"))])
    rows.append(["Total", *(f"{totals[k]:,}" for k in ("files", "lines", "characters", "tokens"))])
    try:
        requires = [r for r in importlib.metadata.requires("nanochat") or [] if "extra ==" not in r]
        dependencies = (
            f"{len(requires)} direct dependencies: {', '.join(re.split(r'[^A-Za-z0-9_-]', r)[0] for r in requires)}."
        )
    except importlib.metadata.PackageNotFoundError:
        dependencies = "The package is not installed, so its dependencies are not known."
    return [
        Table(["", "Files", "Lines", "Characters", "Tokens"], rows, total=True),
        Text(f"Tokens are {by}. {dependencies}"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def reset() -> None:
    """Forget all sections and reports, and start the clock."""
    for path in [*report_dir().glob("*.json"), report_dir() / "report.md", report_dir() / "report.html"]:
        path.unlink(missing_ok=True)
    write_bytes(report_dir() / "started", f"{time.time()}\n".encode())


def _started() -> float | None:
    """When `reset` was called, if it was."""
    try:
        return float((report_dir() / "started").read_text())
    except (OSError, ValueError):
        return None


def generate(hourly_price: float | None = None) -> tuple[Path, Path]:
    """Write report.md and report.html from the sections there are, and return their paths."""
    raw = read_sections()
    if not raw:
        raise SystemExit(
            f"There is nothing to report in {report_dir()}: no script has run yet. Start with bash quickstart.sh"
        )
    sections = [Section.read(name, section) for name, section in raw.items()]
    machine = next((s.machine for s in reversed(sections) if s.machine), {})
    parts = [machine.get("device"), machine.get("processor"), machine.get("cores") and f"{machine['cores']} cores"]
    parts += [
        machine.get("memory_gib") and f"{machine['memory_gib']} GiB",
        machine.get("torch") and f"torch {machine['torch']}",
    ]
    commit = machine.get("commit") or git_commit()
    written = max((s.written for s in sections if s.written), default=time.time())
    parts += [commit and f"commit {commit}", time.strftime("%Y-%m-%d %H:%M", time.localtime(written))]
    title, subtitle = "nanochat report card", " · ".join(str(part) for part in parts if part)
    blocks = compose(sections, hourly_price)
    pages = {
        "report.md": to_markdown(title, [Text(subtitle), *blocks]),
        "report.html": to_html(title, subtitle, blocks),
    }
    for name, text in pages.items():
        write_bytes(report_dir() / name, text.encode("utf-8"))
    return report_dir() / "report.md", report_dir() / "report.html"


@dataclass(frozen=True)
class Config:
    """The report card: `generate` it from what the scripts wrote, or `reset` it before a new run."""

    command: Annotated[Literal["generate", "reset"], tyro.conf.Positional] = "generate"
    """generate or reset"""
    hourly_price: float | None = None
    """Dollars that the machine costs an hour; by default what renting such a one costs."""
    here: bool = False
    """Also copy report.md into the current folder."""


def main(cfg: Config) -> None:
    if cfg.command == "reset":
        reset()
        print(f"Began a new report in {report_dir()}")
        return
    markdown, page = generate(cfg.hourly_price)
    print(f"{markdown}\n{page}")
    if cfg.here:
        write_bytes(Path("report.md"), markdown.read_bytes())
        print(Path("report.md").resolve())


if __name__ == "__main__":
    main(parse(Config))
