"""What a script left for the report, made safe to render: each value has the type it should have, or is left out.

In: the JSON of a section, from any version of any script, whole or partial. Out: a Section.
"""

import json
import math
import re
from dataclasses import dataclass

from nanochat.common import STAGES
from nanochat.report_page import Curve, Sample

SCORE = ("correct", "total", "accuracy", "low", "high", "chance", "seen", "checked", "unseen_accuracy")
MOST = 1e15  # larger figures are no measurement, and pictures cannot show them


@dataclass(frozen=True)
class Section:
    """Texts hold no control characters, figures are finite; `scores` have all keys, None or "" for the unknown."""

    name: str
    title: str
    seconds: float | None
    written: float | None
    machine: dict[str, float | str]
    settings: dict[str, float | str]
    metrics: dict[str, float | str]
    curves: list[Curve]
    samples: list[Sample]
    scores: list[dict]
    comparisons: list[dict]
    notes: list[str]

    @classmethod
    def read(cls, name: str, raw: dict) -> "Section":
        seconds = number(raw.get("seconds"))
        return cls(
            name=name,
            title=text(raw.get("title") or name.replace("_", " ").capitalize()),
            seconds=seconds if seconds is not None and seconds >= 0 else None,
            written=number(raw.get("written")),
            machine=values(raw.get("machine")),
            settings=values(raw.get("settings")),
            metrics=values(raw.get("metrics")),
            curves=[c for entry in entries(raw, "curves", dict) if (c := read_curve(entry))],
            samples=[read_sample(entry) for entry in entries(raw, "samples", dict)],
            scores=[s for entry in entries(raw, "scores", dict) if (s := read_score(entry))],
            comparisons=[c for entry in entries(raw, "comparisons", dict) if (c := read_comparison(entry))],
            notes=[text(note) for note in entries(raw, "notes", str)],
        )

    @property
    def stage(self) -> str:
        """Which of STAGES the section tells of; "" if of none."""
        return next((stage for stage in STAGES if stage in self.name.split("_")), "")

    def figure(self, label: str) -> float | None:
        """A metric, if it is a number."""
        return number(self.metrics.get(label))


def number(value) -> float | int | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) and abs(value) < MOST else None


def text(value) -> str:
    """Text without control characters and without what UTF-8 cannot hold."""
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", str(value))
    return clean.encode("utf-8", "replace").decode("utf-8")


def entries(raw: dict, key: str, kind: type) -> list:
    """The members of a list that are of the right kind; none if it is no list."""
    return [entry for entry in raw.get(key) if isinstance(entry, kind)] if isinstance(raw.get(key), list) else []


def values(raw) -> dict[str, float | str]:
    """Numbers stay numbers, texts stay texts, the rest is shown as JSON."""
    if not isinstance(raw, dict):
        return {}
    as_text = lambda value: text(value if isinstance(value, str) else json.dumps(value))[:2000]  # noqa: E731
    return {text(key): as_text(value) if (n := number(value)) is None else n for key, value in raw.items()}


def read_curve(raw: dict) -> Curve | None:
    x, y = raw.get("x"), raw.get("y")
    if not isinstance(x, list) or not isinstance(y, list):
        return None
    points = [(a, b) for a, b in zip(x, y) if number(a) is not None and number(b) is not None]
    if not points:
        return None
    name, x_label, y_label = (text(raw.get(key) or "") for key in ("name", "x_label", "y_label"))
    return Curve(name, x_label, y_label, [a for a, _ in points], [b for _, b in points])


def read_sample(raw: dict) -> Sample:
    answer, reference = (
        text(raw.get(key) or "").replace("<|assistant_end|>", "").strip() for key in ("answer", "reference")
    )
    correct = raw.get("correct")
    return Sample(text(raw.get("prompt", "")), answer, correct if isinstance(correct, bool) else None, reference)


def read_score(raw: dict) -> dict | None:
    score = {key: number(raw.get(key)) for key in SCORE}
    if score["accuracy"] is None and score["total"] and score["correct"] is not None:
        score["accuracy"] = score["correct"] / score["total"]
    if score["accuracy"] is None:
        return None
    # A character for each item; left out unless it is so.
    marks = {"verdicts": r"[01]*", "asked": r"[0-9a-f]*"}
    items = {key: text(raw.get(key) or "") for key in marks}
    whole = all(re.fullmatch(form, items[key]) and len(items[key]) == score["total"] for key, form in marks.items())
    return score | {"name": text(raw.get("name") or "task")} | (items if whole else dict.fromkeys(marks, ""))


def read_comparison(raw: dict) -> dict | None:
    """{"name", "columns": [who], "rows": [(what, [a positive figure or None for each column])]}."""
    columns = [text(column) for column in entries(raw, "columns", str)]
    rows = raw.get("rows") if isinstance(raw.get("rows"), dict) else {}
    figures = lambda row: [n if (n := number(v)) is not None and n > 0 else None for v in row]  # noqa: E731
    kept = [(text(what), figures(row)) for what, row in rows.items() if isinstance(row, list)]
    kept = [(what, row) for what, row in kept if len(row) == len(columns) and any(row)]
    return {"name": text(raw.get("name") or "Comparison"), "columns": columns, "rows": kept} if kept else None
