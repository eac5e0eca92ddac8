"""The report card: what each script wrote of its stage, on one page; and two runs side by side.

In: report/<section>.json, one a script (dev/ARCHITECTURE.md has the keys). Out: report/report.md and a report.html that
needs nothing else. `python -m nanochat.report reset` begins a new one, `generate` writes the page, `compare FOLDER`
prints how this run differs from the one in that folder, and writes comparison.md and comparison.html.
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
from nanochat.report_compare import Run, compose_comparison
from nanochat.report_page import Text, to_html, to_markdown
from nanochat.report_section import Section
from nanochat.report_terminal import print_blocks

PIPELINE = ("data", "tokenizer", "tokenizer_eval", "base_train", "base_loss", "base_eval", "chat_eval_base")
PIPELINE += ("mid_train", "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl")


def report_dir() -> Path:
    return base_dir() / "report"


def write_section(name: str, section: dict) -> None:
    """Keep what a script has to say, in place of what it said before. Values that JSON lacks become text."""
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    text = json.dumps({**section, "written": time.time()}, default=str, indent=1)  # ASCII: any text that a model wrote
    write_bytes(report_dir() / f"{name}.json", text.encode("ascii"))


def read_sections(folder: Path | None = None) -> dict[str, dict]:
    """Every section of the report in `folder`, by default this run's, in the order of the pipeline. A file that is no
    JSON object becomes a note that says so."""
    sections = {}
    for path in (folder or report_dir()).glob("*.json"):
        try:
            sections[path.stem] = read_json(path)
            if not isinstance(sections[path.stem], dict):
                raise ValueError(f"{path} holds no JSON object.")
        except (OSError, ValueError, RecursionError) as error:
            sections[path.stem] = {"notes": [str(error)], "damaged": str(error)}
    place = {name: i for i, name in enumerate(PIPELINE)}
    return dict(sorted(sections.items(), key=lambda item: (place.get(item[0], len(place)), item[0])))


def reset() -> None:
    """Forget all sections and reports, and start the clock."""
    pages = [report_dir() / f"{name}.{kind}" for name in ("report", "comparison") for kind in ("md", "html")]
    for path in [*report_dir().glob("*.json"), *pages]:
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
    title, subtitle = "nanochat report card", described(sections, git_commit())
    blocks = compose(sections, hourly_price, _started()) + code_size()
    return _write("report", title, subtitle, blocks)


def described(sections: list[Section], commit: str = "") -> str:
    """On which machine, by which program (`commit` if the sections do not say) and when."""
    machine = next((s.machine for s in reversed(sections) if s.machine), {})
    written = max((s.written for s in sections if s.written), default=time.time())
    device = machine.get("device")
    facts = [None if device == "cpu" else device, machine.get("processor")]
    for key, form in (("cores", "{} cores"), ("memory_gib", "{} GiB of memory"), ("torch", "torch {}")):
        facts += [form.format(machine[key])] if key in machine else []
    facts += [f"commit {commit}"] if (commit := machine.get("commit") or commit) else []
    facts.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(written)))
    return " · ".join(str(fact) for fact in facts if fact)


def compare(before: Path, now: Path | None = None, hourly_price: float | None = None) -> tuple[Path, Path]:
    """Print how the run in `now`, by default this one, differs from the one in `before`; write comparison.md and .html.
    A folder is that of all artifacts, or a copy of its report/. SystemExit if there is no report in it."""
    folders = [_report_in(before), _report_in(now or base_dir())]
    if folders[0].samefile(folders[1]):
        raise SystemExit(
            f"Both are {folders[0]}. To compare a run with a later one, keep a copy of its report/ folder."
        )
    names = _distinct([folder.resolve() for folder in folders])
    runs = []
    for name, folder in zip(names, folders):
        raw = read_sections(folder)
        whole = [Section.read(key, section) for key, section in raw.items() if "damaged" not in section]
        runs.append(Run(name, whole, [section["damaged"] for section in raw.values() if "damaged" in section]))
    title = f"{names[1]} against {names[0]}"
    said, figures = compose_comparison(*runs, hourly_price)
    print_blocks(title, [*figures, *said])  # what is read first stands where the eye is: at the end, or on top
    subtitle = " / ".join(f"{run.name}: {described(run.sections)}" for run in runs)
    return _write("comparison", title, subtitle, [*said, *figures])


def _report_in(folder: Path) -> Path:
    folder = folder.expanduser()
    for place in (folder / "report", folder):
        if any(place.glob("*.json")):
            return place
    raise SystemExit(f"There is no report in {folder}: neither there nor in {folder / 'report'} is a section (*.json).")


def _distinct(folders: list[Path]) -> list[str]:
    """What two runs are called: the name of their folder, with as much of the path as tells them apart."""
    paths = [(folder.parent if folder.name == "report" else folder).parts for folder in folders]
    longest = max(map(len, paths))
    count = next((n for n in range(1, longest) if paths[0][-n:] != paths[1][-n:]), longest)
    return ["/".join(path[-count:]) for path in paths]


def _write(name: str, title: str, subtitle: str, blocks: list) -> tuple[Path, Path]:
    pages = {"md": to_markdown(title, [Text(subtitle), *blocks]), "html": to_html(title, subtitle, blocks)}
    for kind, page in pages.items():
        write_bytes(report_dir() / f"{name}.{kind}", page.encode("utf-8"))
    return report_dir() / f"{name}.md", report_dir() / f"{name}.html"


@dataclass(frozen=True)
class Config:
    """The report card: `generate` it from what the scripts wrote, `reset` it before a run, or `compare` two runs."""

    command: Annotated[Literal["generate", "reset", "compare"], tyro.conf.Positional] = "generate"
    """generate, reset or compare"""
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """for compare: the artifacts of the run before this one (another NANOCHAT_BASE_DIR, or a copy of its report/);
    if there are two, the first is compared with the second"""
    hourly_price: float | None = None
    """Dollars that the machine costs an hour; by default what renting such a one costs."""
    here: bool = False
    """Also copy report.md, or comparison.md, into the current folder."""


def main(cfg: Config) -> None:
    if cfg.command != "compare" and cfg.folders:
        raise SystemExit(f"{cfg.command} takes no folder: it is for {report_dir()}. NANOCHAT_BASE_DIR names another.")
    if cfg.command == "compare" and len(cfg.folders) not in (1, 2):
        raise SystemExit("Name the run to compare with: python -m nanochat.report compare FOLDER")
    if cfg.command == "reset":
        reset()
        print(f"Began a new report in {report_dir()}")
        return
    compared = cfg.command == "compare"
    markdown, page = compare(*cfg.folders, hourly_price=cfg.hourly_price) if compared else generate(cfg.hourly_price)
    print(f"{markdown}\n{page}")
    if cfg.here:
        write_bytes(Path(markdown.name), markdown.read_bytes())
        print(Path(markdown.name).resolve())


if __name__ == "__main__":
    launch(main, Config)
