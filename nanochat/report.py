"""The report card: what each script wrote of its stage, on one page.

In: report/<section>.json, one a script (dev/ARCHITECTURE.md has the keys). Out: report/report.md and a report.html that
needs nothing else. `python -m nanochat.report reset` begins a new one, `generate` writes the page.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat.common import base_dir, git_commit
from nanochat.configurator import launch
from nanochat.files import read_json, write_bytes
from nanochat.report_card import code_size, compose
from nanochat.report_page import Text, to_html, to_markdown
from nanochat.report_section import Section

PIPELINE = ("data", "tokenizer", "tokenizer_eval", "base_train", "base_loss", "base_eval", "chat_eval_base")
PIPELINE += ("mid_train", "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl")


def report_dir() -> Path:
    return base_dir() / "report"


def write_section(name: str, section: dict) -> None:
    """Keep what a script has to say, in place of what it said before. Values that JSON lacks become text."""
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    text = json.dumps({**section, "written": time.time()}, default=str, indent=1)  # ASCII: any text that a model wrote
    write_bytes(report_dir() / f"{name}.json", text.encode("ascii"))


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
    written = max((s.written for s in sections if s.written), default=time.time())
    device = machine.get("device")
    facts = [None if device == "cpu" else device, machine.get("processor")]
    for key, form in (("cores", "{} cores"), ("memory_gib", "{} GiB of memory"), ("torch", "torch {}")):
        facts += [form.format(machine[key])] if key in machine else []
    facts += [f"commit {commit}"] if (commit := machine.get("commit") or git_commit()) else []
    facts.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(written)))
    title, subtitle = "nanochat report card", " · ".join(str(fact) for fact in facts if fact)
    blocks = compose(sections, hourly_price, _started()) + code_size()
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
    launch(main, Config)
