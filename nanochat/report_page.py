"""A page as a list of blocks, and its two forms: Markdown, and one HTML file that loads nothing.

In: blocks of plain text and numbers. Out: text. Everything that comes in may have been written by a model: it is
escaped here, and only here.
"""

import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

STYLE = Path(__file__).parent / "ui" / "report.css"
LINE_COLORS = 8  # --line0 to --line7 in the style sheet
NOISY = 100  # a curve of more points is drawn with its moving mean
WIDE = 30  # curves whose values differ by this factor are drawn on a logarithmic scale
TOOL_CALL = re.compile(
    r"<\|python_start\|>(.*?)<\|python_end\|>(?:\s*<\|output_start\|>(.*?)<\|output_end\|>)?", re.DOTALL
)


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Tiles:
    """The few figures that a reader wants first: (value, what it is)."""

    tiles: list[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """The first column names, the others hold figures. What follows a line break in a cell is small print."""

    header: list[str]
    rows: list[list[str]]
    total: bool = False  # the last row sums up


@dataclass(frozen=True)
class Bar:
    """One bar, 0 to 1, with its 95% interval and a tick for chance where there are any."""

    label: str
    value: float
    text: str
    kind: int = 0  # colour
    interval: tuple[float, float] | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Bars:
    groups: list[tuple[str, list[Bar]]]


@dataclass(frozen=True)
class Curve:
    name: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Curves:
    """Panels side by side, each a title and the curves that share its axes."""

    panels: list[tuple[str, list[Curve]]]


@dataclass(frozen=True)
class Sample:
    prompt: str
    answer: str
    correct: bool | None = None  # None if it was not graded
    reference: str = ""  # shown if the answer is wrong


@dataclass(frozen=True)
class Samples:
    samples: list[Sample]


@dataclass(frozen=True)
class Commands:
    """What a reader may do next: (what for, command or file)."""

    commands: list[tuple[str, str]]


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when a reader asks for them."""

    title: str
    blocks: list = field(default_factory=list)


def short(value: float) -> str:
    """11_534_336 -> "11.5 M"."""
    unit, size = next(((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)) if value >= s), ("", 1))
    return f"{value / size:.3g} {unit}".strip()


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def to_markdown(title: str, blocks: list) -> str:
    return "\n\n".join([f"# {plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)


def fenced(text: str) -> str:
    """Text of any content in a code block: its fence is longer than any within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def sparkline(values: list[float], width: int = 40, low: float | None = None, high: float | None = None) -> str:
    """A curve as characters: [3, 2, 1] -> "█▄▁". `low` and `high` are the scale, by default the curve's own."""
    step = max(1, len(values) / max(1, width))
    values = [values[int(i * step)] for i in range(int(len(values) / step))]
    low, high = min(values) if low is None else low, max(values) if high is None else high
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / (high - low)) if high > low else 0] for v in values)


def _markdown(block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {plain(text)}"
        case Text(text):
            return plain(text)
        case Tiles(tiles):
            return "\n".join(f"- {plain(label)}: **{plain(value)}**" for value, label in tiles)
        case Table(header, rows):
            cell = lambda text: " ".join(  # noqa: E731
                plain(part) if i == 0 else f"({plain(part)})" for i, part in enumerate(text.split("\n", 1))
            )
            lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
            return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
        case Bars(groups):
            width = max(len(bar.label) for _, bars in groups for bar in bars)
            drawn = lambda bar: f"  {bar.label:<{width}}  {'█' * round(30 * bar.value):<30}  {bar.text}"  # noqa: E731
            return fenced("\n".join("\n".join([group, *map(drawn, bars)]) for group, bars in groups))
        case Curves(panels):
            return fenced("\n".join(line for title, curves in panels for line in text_curves(title, curves)))
        case Samples(samples):
            return "\n\n".join(fenced(f"> {s.prompt}\n{tool_text(s.answer)}{verdict(s)}") for s in samples)
        case Commands(commands):
            return "\n".join(f"- {plain(what)}: `{command}`" for what, command in commands)
        case Fold(title, blocks):
            inner = "\n\n".join(map(_markdown, blocks))
            return f"<details><summary>{html.escape(title)}</summary>\n\n{inner}\n\n</details>"
    raise TypeError(block)


def text_curves(title: str, curves: list[Curve]) -> list[str]:
    """A line for each curve of a picture; all have one scale, to the right and upwards."""
    values, longest = [smooth(curve.y) for curve in curves], max(curve.x[-1] for curve in curves)
    low, high = min(map(min, values)), max(map(max, values))
    names = [title if len(curves) == 1 else ", ".join(filter(None, (title, curve.name))) for curve in curves]
    names = [" ".join(name.split()) + ":" for name in names]
    lines = []
    for name, curve, y in zip(names, curves, values):
        width = max(1, round(40 * curve.x[-1] / longest)) if longest > 0 else 40
        drawn = sparkline(y, width, low, high).ljust(min(40, max(map(len, values))))
        unit = " ".join(curve.y_label.split())
        lines.append(f"{name:<{max(map(len, names))}} {drawn} {y[0]:.4g} -> {y[-1]:.4g} {unit}".rstrip())
    return lines


def verdict(sample: Sample) -> str:
    """A line below an answer that was graded."""
    expected = f"; expected: {tool_text(sample.reference)}" if sample.reference else ""
    return {True: "\n(right)", False: f"\n(wrong{expected})", None: ""}[sample.correct]


def tool_text(answer: str) -> str:
    """An answer with its tool calls legible: [12*34 -> 408]."""
    return TOOL_CALL.sub(lambda call: f"[{call[1]}{f' -> {call[2]}' if call[2] is not None else ''}] ", answer)


# ---------------------------------------------------------------------------------------------------------------------
# HTML


def to_html(title: str, subtitle: str, blocks: list) -> str:
    headings = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{slug(text)}">{html.escape(text)}</a>' for text in headings)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p><nav>{links}</nav></header>\n<main>\n"
        + "\n".join(map(_html, blocks))
        + "\n</main>\n</body>\n</html>\n"
    )


def _html(block) -> str:
    text = lambda value: html.escape(str(value))  # noqa: E731
    match block:
        case Heading(title, level):
            anchor = f' id="{slug(title)}"' if level == 2 else ""
            return f"<h{level}{anchor}>{text(title)}</h{level}>"
        case Text(value):
            return f"<p>{text(value)}</p>"
        case Tiles(tiles):
            inner = "".join(f"<div><dd>{text(value)}</dd><dt>{text(label)}</dt></div>" for value, label in tiles)
            return f'<dl class="tiles">{inner}</dl>'
        case Table(header, rows, total):
            return _html_table(header, rows, total)
        case Bars(groups):
            inner = "".join(
                f"<h4>{text(title)}</h4>" * bool(title) + "".join(map(_html_bar, bars)) for title, bars in groups
            )
            return f'<div class="bars">{inner}</div>'
        case Curves(panels):
            inner = "".join(_html_panel(f"picture{i}", title, curves) for i, (title, curves) in enumerate(panels))
            return f'<div class="panels">{inner}</div>'
        case Samples(samples):
            return f'<div class="chats">{"".join(map(_html_sample, samples))}</div>'
        case Commands(commands):
            inner = "".join(f"<div><dt>{text(what)}</dt><dd><code>{text(c)}</code></dd></div>" for what, c in commands)
            return f'<dl class="commands">{inner}</dl>'
        case Fold(title, blocks):
            inner = "\n".join(map(_html, blocks))
            return f"<details><summary>{text(title)}</summary>\n{inner}\n</details>"
    raise TypeError(block)


def _html_table(header: list[str], rows: list[list[str]], total: bool) -> str:
    def cell(value: str, tag: str = "td") -> str:
        first, _, small = value.partition("\n")
        return f"<{tag}>{html.escape(first)}{f'<small>{html.escape(small)}</small>' if small else ''}</{tag}>"

    lines = ["".join([cell(row[0], "th"), *map(cell, row[1:])]) for row in rows]
    body = "".join(f"<tr{' class=total' * (total and line is lines[-1])}>{line}</tr>\n" for line in lines)
    head = "".join(cell(name, "th") for name in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    kind = "" if head else ' class="facts"'
    return f'<div class="scroll"><table{kind}>{head}<tbody>\n{body}</tbody></table></div>'


def _html_panel(name: str, title: str, curves: list[Curve]) -> str:
    """A picture with its legend, which gives each curve's last value."""
    legend = "".join(
        f'<span class="line{i % LINE_COLORS}">{html.escape(curve.name)} <b>{smooth(curve.y)[-1]:.4g}</b></span>'
        for i, curve in enumerate(curves)
    )
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    return f"<figure>{caption}<p>{legend}</p>{draw(name, curves)}</figure>\n"


def _html_bar(bar: Bar) -> str:
    percent = lambda value: f"{100 * min(max(value, 0.0), 1.0):.2f}%"  # noqa: E731
    marks = '<rect class="track" width="100%" height="14"/>'
    marks += f'<rect class="fill{bar.kind}" width="{percent(bar.value)}" height="14"/>'
    if bar.interval:
        low, high = map(percent, bar.interval)
        marks += f'<line class="whisker" x1="{low}" x2="{high}" y1="7" y2="7"/>'
        marks += "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="3" y2="11"/>' for x in (low, high))
    if bar.chance is not None:
        x = percent(bar.chance)
        marks += f'<line class="chance" x1="{x}" x2="{x}" y1="-3" y2="17"/>'
    label, text = html.escape(bar.label), html.escape(bar.text)
    return (
        f'<div class="bar"><span>{label}</span><svg height="14" aria-hidden="true">{marks}</svg><b>{text}</b></div>\n'
    )


def _html_sample(sample: Sample) -> str:
    def escaped(value: str) -> str:
        """Tool calls become chips. Escaped first: the special tokens are looked for in their escaped form."""
        return re.sub(html.escape(TOOL_CALL.pattern), call, html.escape(value), flags=re.DOTALL)

    def call(match: re.Match) -> str:
        result = f"<samp>{match[2]}</samp>" if match[2] is not None else ""
        return f'<span class="tool"><code>{match[1]}</code>{result}</span>'

    expected = f"; expected: {escaped(sample.reference)}" if sample.reference else ""
    mark = {True: '<i class="right">right</i>', False: f'<i class="wrong">wrong{expected}</i>', None: ""}[
        sample.correct
    ]
    prompt, answer = html.escape(sample.prompt), escaped(sample.answer)
    return f'<div class="chat"><div class="prompt">{prompt}</div><div class="answer">{answer}{mark}</div></div>'


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def smooth(values: list[float]) -> list[float]:
    """The moving mean of a noisy curve, a twentieth of it wide, less at its steep start; a short one as it is."""
    half = len(values) // 40 if len(values) > NOISY else 0
    windows = [values[i - min(i, half) : i + min(i, half) + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw(name: str, curves: list[Curve]) -> str:
    """Curves on one pair of axes as inline SVG, in the colours of the page, whose text is text."""
    from matplotlib import rc_context  # slow to import, and only needed here
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, grid = "#010101", "#020202"  # stand-ins for colours of the style sheet
    lines = [f"#0{i}0303" for i in range(LINE_COLORS)]
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "text.color": ink,
        "axes.labelcolor": ink,
    }
    settings |= {"xtick.color": ink, "ytick.color": ink, "axes.edgecolor": grid, "text.parse_math": False}
    with rc_context(settings):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for i, curve in enumerate(curves):
            marker, color = "o" if len(curve.x) < 3 else None, lines[i % LINE_COLORS]
            if len(curve.y) > NOISY:
                axes.plot(curve.x, curve.y, color=color, linewidth=0.8, alpha=0.35)
            axes.plot(curve.x, smooth(curve.y), color=color, linewidth=1.8, marker=marker, markersize=4)
        values = [value for curve in curves for value in curve.y]
        if len(curves) > 1 and min(values) > 0 and max(values) > WIDE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        if max(x for curve in curves for x in curve.x) >= 1e5:
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.locator_params("x", nbins=6)
        axes.set_xlabel(curves[0].x_label)
        axes.set_ylabel(curves[0].y_label)
        axes.grid(color=grid, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02, y=0.08)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r"(url\(#|xlink:href=\"#)", rf"\g<1>{name}-", svg)
    colors = {ink: "var(--muted)", grid: "var(--rule)"} | {line: f"var(--line{i})" for i, line in enumerate(lines)}
    for stand_in, variable in colors.items():
        svg = svg.replace(stand_in, variable)
    return svg
