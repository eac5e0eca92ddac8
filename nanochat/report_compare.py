"""Two runs side by side: what was different, which is better, and whether the difference is more than chance.

In: the sections of both. Out: blocks (report_page.py): what can be concluded, and from which figures. A change is that
from the first run to the second.
"""

from dataclasses import dataclass, replace
from statistics import median

from nanochat.checkpoint_manager import SCRIPTS
from nanochat.common import STAGES, format_seconds
from nanochat.report_card import NONE, cost_of, label_of, money, show, stage_figure
from nanochat.report_page import Curve, Curves, Fold, Heading, Table, Text
from nanochat.report_section import Section
from nanochat.score import correlation, difference, mean_difference

NOTHING = {NONE, "", "none", "null", "false", "0", "[]", "{}"}  # a flag that is not set
SETTLED = ("worse", "open", "better")
UNPAIRED, OTHERS = "unpaired", "other items"


@dataclass(frozen=True)
class Run:
    name: str
    sections: list[Section]
    damaged: list[str]  # what is wrong with the sections that could not be read

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)


@dataclass(frozen=True)
class Compared:
    """A task that both runs were measured by; accuracies from 0 to 1, and what guessing would be right in."""

    name: str
    before: float
    now: float
    change: float
    low: float
    high: float
    chance: float
    items: str  # how many
    gained: str  # where the same items were compared, how many of them; else UNPAIRED or OTHERS
    lost: str

    @property
    def verdict(self) -> str:
        return SETTLED[1 + (self.low > 0) - (self.high < 0)]

    def centered(self, *values: float) -> tuple[float, ...]:
        """Changes as parts of what guessing leaves."""
        return tuple(value / (1 - self.chance) for value in values)


def compose_comparison(before: Run, now: Run, hourly_price: float | None = None) -> tuple[list, list]:
    """(what can be said, all figures), each as blocks."""
    pairs = [(old, new) for old in before.sections if (new := now.section(old.name))]
    tasks = {old.name: compare_tasks(old, new) for old, new in pairs}
    blocks = [Heading("What was different"), *_settings(before, now)]
    figures = _figures(before, now)
    for _, new in pairs:
        figures += _tasks_table(new, tasks[new.name], before, now) if tasks[new.name] else []
    figures += [fold for old, new in pairs for fold in _other_figures(old, new, before, now)]
    if figures:
        blocks += [Heading("How good they are"), *figures]
    if panels := [panel for old, new in pairs for panel in _panels(old, new, before, now)]:
        blocks += [Heading("How they learned"), Curves(panels)]
    blocks += [Heading("Time and cost"), _times(before, now, hourly_price)]
    return [Heading("What can be said"), *map(Text, _conclusions(before, now, pairs, tasks))], blocks


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def _settings(before: Run, now: Run) -> list:
    """A row for each stage that only one of them has, and each setting and fact of the machine that differs. Settings
    that differ in the same way in several stages are one row, and so are all commits of a run."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    machines: dict[str, list[dict[str, None]]] = {}
    for name in dict.fromkeys(section.name for section in [*before.sections, *now.sections]):
        old, new = sides = before.section(name), now.section(name)
        if not old or not new:
            rows[((old or new).title, *("there" if side else NONE for side in sides))] = []
            continue
        for key in dict.fromkeys([*old.settings, *new.settings]):
            values = [_setting(side.settings, key) for side in sides]
            if not _same(*values):
                rows.setdefault((key, *values), []).append(new.title)
        for key in dict.fromkeys([*old.machine, *new.machine]):
            for kept, side in zip(machines.setdefault(key, [{}, {}]), sides):
                kept[_setting(side.machine, key)] = None
    facts = [[key, *(", ".join(kept) for kept in sides)] for key, sides in machines.items() if sides[0] != sides[1]]
    lines = [[f"{key}\n{_where(titles)}".strip(), *values] for (key, *values), titles in rows.items()]
    if not lines and not facts:
        return [Text("Nothing that the reports know of.")]
    return [Table(["", before.name, now.name], lines + facts)]


def _setting(values: dict, key: str) -> str:
    """As it is shown. Of a checkpoint the stage and the tag: its steps are a figure, its folder is another in any
    case."""
    value = str(values.get(key, NONE))
    return "/".join(value.split("/checkpoints/")[1].split("/")[:2]) if "/checkpoints/" in value else value


def _same(a: str, b: str) -> bool:
    """A flag that one program does not have yet is as if it were not set."""
    return a == b or NONE in (a, b) and {a.lower(), b.lower()} <= NOTHING


def _where(titles: list[str]) -> str:
    return ", ".join(titles) if len(titles) < 4 else f"{', '.join(titles[:2])} and {len(titles) - 2} more"


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def _figures(before: Run, now: Run) -> list[Table]:
    """Figures that have no interval."""
    rows = []
    for stage in STAGES:
        for label in ("val_bpb", "train_bpb", "CORE", "ChatCORE"):
            a, b = (stage_figure(run.sections, stage, label) for run in (before, now))
            if a is not None and b is not None:
                name = label_of(label) + f"\n{stage.upper()}" * (stage != "base")
                rows.append([name, show(label, a), show(label, b), f"{b - a:+.4f}"])
    return [Table(["", before.name, now.name, "Change"], rows)] if rows else []


def compare_tasks(before: Section, now: Section) -> list[Compared]:
    """Every task that both were measured by, item by item where both kept what was right and were asked the same."""
    old_scores = {score["name"]: score for score in before.scores if score["total"] and score["correct"] is not None}
    compared = []
    for new in now.scores:
        old = old_scores.get(new["name"])
        if not old or not new["total"] or new["correct"] is None:
            continue
        count = min(len(old["asked"]), len(new["asked"]))
        if count and old["asked"][:count] == new["asked"][:count]:
            a, b = ([mark == "1" for mark in score["verdicts"][:count]] for score in (old, new))
            counts, phi = [(sum(side), count) for side in (a, b)], correlation(a, b)
            how = f"{sum(y > x for x, y in zip(a, b)):,}", f"{sum(x > y for x, y in zip(a, b)):,}"
        else:
            counts, phi = [(round(score["correct"]), round(score["total"])) for score in (old, new)], 0.0
            how = OTHERS if count else UNPAIRED, ""
        if all(0 <= correct <= total > 0 for correct, total in counts):
            accuracies = [correct / total for correct, total in counts]
            items = ", ".join(dict.fromkeys(f"{total:,}" for _, total in counts))
            chance = min(max(new["chance"] or 0.0, 0.0), 0.99)
            compared.append(Compared(new["name"], *accuracies, *difference(*counts, phi), chance, items, *how))
    return compared


def mean_of(tasks: list[Compared]) -> Compared:
    """The mean of the tasks, each centred so that guessing is 0 and all right is 1, as CORE is."""
    sides = zip(*(task.centered(task.before - task.chance, task.now - task.chance) for task in tasks))
    changes = mean_difference([task.centered(task.change, task.low, task.high) for task in tasks])
    means = [sum(side) / len(tasks) for side in sides]
    return Compared("Centred mean", *means, *changes, 0.0, "", "", "")


def _tasks_table(section: Section, tasks: list[Compared], before: Run, now: Run) -> list:
    percent = lambda value: f"{100 * value:.1f}"  # noqa: E731
    signed = lambda value: f"{100 * value:+.1f}"  # noqa: E731
    rows = []
    for t in tasks if len(tasks) == 1 else [*tasks, mean_of(tasks)]:
        interval = f"{signed(t.low)} to {signed(t.high)}"
        rows.append([t.name, t.items, percent(t.before), percent(t.now), signed(t.change), interval])
        rows[-1] += [t.gained, t.lost, t.verdict]
    header = ["", "Items", before.name, now.name, "Change", "95% interval", "Gained", "Lost", ""]
    title = f"{section.title}, per cent right" + "; of the centred mean, 0 is guessing" * (len(tasks) > 1)
    return [Heading(title, 3), Table(header, rows, total=len(tasks) > 1)]


def _other_figures(old: Section, new: Section, before: Run, now: Run) -> list[Fold]:
    """All that a stage measured, for whoever asks."""
    both = [label for label in new.metrics if label in old.metrics]
    rows = [[label_of(name), *(show(name, s.metrics[name]) for s in (old, new))] for name in both]
    return [Fold(f"{new.title}: all figures", [Table(["", before.name, now.name], rows)])] if rows else []


# ---------------------------------------------------------------------------------------------------------------------
# Curves, time


def _panels(old: Section, new: Section, before: Run, now: Run) -> list[tuple[str, list[Curve]]]:
    """A picture for the training loss and one for the bits per byte, by the tokens read where both say how many."""
    panels = []
    for name, shown in (("training loss", "training loss"), ("val_bpb", "held-out text"), ("reward", "reward")):
        found = [next((c for c in side.curves if c.name == name), None) for side in (old, new)]
        if all(found):
            rates = [_tokens_a_step(side) for side in (old, new)]
            known, curves = all(rates), []
            for run, curve, rate in zip((before, now), found, rates):
                x = [value * rate for value in curve.x] if known else curve.x
                curves.append(replace(curve, name=run.name, x=x, x_label="tokens read" if known else curve.x_label))
            panels.append((f"{new.title}: {shown}", curves))
    return panels


def _tokens_a_step(section: Section) -> float | None:
    tokens, steps = section.figure("tokens"), section.figure("steps")
    return tokens / steps if tokens and steps else None


def _times(before: Run, now: Run, hourly_price: float | None) -> Table:
    """What each training took, what everything took together, and its price."""
    runs, rows = (before, now), []
    for name in (SCRIPTS[stage] for stage in STAGES):
        sides = [run.section(name) for run in runs]
        if any(section and section.seconds for section in sides):
            seconds = [section and section.seconds for section in sides]
            title = next(section.title for section in reversed(sides) if section)
            rows.append([title, *(format_seconds(s) if s else NONE for s in seconds), _ratio(*seconds)])
            for label in ("tokens", "tokens_per_second", "peak_memory"):
                values = [section and section.figure(label) for section in sides]
                cells = [show(label, value) if value else NONE for value in values]
                rows.append([f"{title}, {label_of(label)}", *cells, _ratio(*values)])
    totals = [sum(section.seconds or 0 for section in run.sections) for run in runs]
    costs = [[cost for s in run.sections if (cost := cost_of(s, hourly_price)) is not None] for run in runs]
    rows.append(["All stages, with data and evaluation", *map(format_seconds, totals), _ratio(*totals)])
    rows.append(["Cost of all", *(money(sum(side)) if side else NONE for side in costs), _ratio(*map(sum, costs))])
    return Table(["", before.name, now.name, "Change"], rows)


def _ratio(a: float | None, b: float | None) -> str:
    return f"{100 * (b / a - 1):+.0f}%".replace("+0%", "0%").replace("-0%", "0%") if a and b else ""


# ---------------------------------------------------------------------------------------------------------------------
# Conclusions


def _conclusions(before: Run, now: Run, pairs: list, tasks: dict[str, list[Compared]]) -> list[str]:
    texts = [f"Left out of {run.name}: {problem}" for run in (before, now) for problem in run.damaged]
    texts += _warnings(before, now)
    a, b = (stage_figure(run.sections, "base", "val_bpb") for run in (before, now))
    if a is not None and b is not None:
        texts.append(_bits(before, now, a, b))
    measured = [(new, tasks[new.name]) for _, new in pairs if tasks[new.name]]
    texts += [_sentence(now, section, found) for section, found in measured]
    if not measured:
        return [*texts, "There is no task that both were measured by."]
    hows = {task.gained for _, found in measured for task in found}
    reasons = {UNPAIRED: "one of the reports does not say which items were right", OTHERS: "the two were asked others"}
    texts += [
        f'Where it says "{how}", only the counts are compared, since {why}: that sees less than item by item.'
        for how, why in reasons.items()
        if how in hows
    ]
    texts.append(
        "An interval says which of these two models is better at such items, by more than the choice of the items "
        "explains; one of twenty leaves out 0 by chance. Not which setting is better: another --seed moves scores, too "
        "(docs/guide/13-report.md). The mean of the tasks moves less."
    )
    return texts


def _warnings(before: Run, now: Run) -> list[str]:
    """What stands in the way of a comparison, as far as both reports tell."""
    facts = [
        [section.metrics.get(label) for run in (before, now) if (section := run.section(name)) and section.metrics]
        for name, label in (
            ("tokenizer", "hash"),
            ("data", "val documents"),
            ("data", "val characters"),
        )
    ]
    facts.append([s.settings.get("data") for run in (before, now) if (s := run.section("base_train")) and s.settings])
    tokenizers, *texts = [len(values) == 2 and values[0] != values[1] for values in facts]
    warnings = ["They have different tokenizers: losses for each token cannot be compared, bits per byte can."]
    others = ["Each was measured on held-out text of its own: bits per byte do not say which is better."]
    return warnings * tokenizers + others * any(texts)


def _bits(before: Run, now: Run, a: float, b: float) -> str:
    if f"{a:.4f}" == f"{b:.4f}":
        return "Both need the same bits for a byte of text that they have never read."
    return f"{now.name} needs {abs(b / a - 1):.1%} {'fewer' if b < a else 'more'} bits for a byte than {before.name}."


def _sentence(now: Run, section: Section, tasks: list[Compared]) -> str:
    """What the tasks of an evaluation say of the second run."""
    groups = {word: [task for task in tasks if task.verdict == word] for word in SETTLED}
    said = [f"{word} in {_names(groups[word], tasks)}" for word in ("better", "worse") if groups[word]]
    text = f"{section.title}: " + (f"{now.name} is {' and '.join(said)}." if said else "no task shows a difference.")
    if still := groups["open"]:
        hidden = 100 * median((task.high - task.low) / 2 for task in still)
        which = "It is" if not said else f"In {still[0].name if len(still) == 1 else f'the other {len(still)}'} it is"
        text += f" {which} open: by so few items a difference of less than about {hidden:.0f} points stays hidden."
    if len(tasks) > 1:
        mean = mean_of(tasks)
        word = "neither better nor worse, as far as one can see" if mean.verdict == "open" else mean.verdict
        text += f" In the mean of the tasks it is {word} ({100 * mean.low:+.1f} to {100 * mean.high:+.1f} points)."
    return text


def _names(some: list[Compared], tasks: list[Compared]) -> str:
    names = [task.name for task in some]
    if len(names) > 6:
        return f"all {len(names)} tasks" if len(some) == len(tasks) else f"{len(names)} of {len(tasks)} tasks"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
