"""The report card: what each script wrote of its stage, on one page.

In: report/<section>.json, one a script (dev/ARCHITECTURE.md has the keys). Out: report/report.md and a report.html that
needs nothing else. `python -m nanochat.report reset` begins a new one, `generate` writes the page.
"""

import json
import re
import time
from pathlib import Path

from nanochat.common import base_dir, read_json, write_json


def report_dir() -> Path:
    return base_dir() / "report"


def write_section(name: str, section: dict) -> None:
    """Keep what a script has to say, in place of what it said before. Values that JSON lacks become text."""
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    plain = json.loads(json.dumps({**section, "written": time.time()}, default=str))
    write_json(report_dir() / f"{name}.json", plain)


def read_sections() -> dict[str, dict]:
    """Every section, by name. A file that is no JSON object becomes a section whose note says so."""
    sections = {}
    for path in sorted(report_dir().glob("*.json")):
        try:
            section = read_json(path)
            if not isinstance(section, dict):
                raise ValueError(f"{path} holds no JSON object.")
        except (OSError, ValueError) as error:
            section = {"notes": [str(error)]}
        sections[path.stem] = section
    return sections
