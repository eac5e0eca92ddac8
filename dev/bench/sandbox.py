"""What the sandbox contains and what it costs, beside a bare interpreter on the same machine, as a Markdown page.

In: tests/attacks.py, and HumanEval.jsonl if it is given. Out: the page, and with --save the figures for a page of
several runs. It needs no package. Run it as root and as a plain user, for whom the kernel refuses more:

    python dev/bench/sandbox.py HumanEval.jsonl --save root.json
    sudo -u nobody python3 dev/bench/sandbox.py HumanEval.jsonl --save /tmp/nobody.json
    python dev/bench/sandbox.py --page root.json /tmp/nobody.json > dev/bench/sandbox.md
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from attacks import ATTACKS, BENIGN, CHEATS, HELPERS, NOT_BARE, SQUARE_TEST, TWICE, make_scene  # noqa: E402

from nanochat import execution  # noqa: E402

RUNS, PARALLEL = 200, 1000
NAIVE = SQUARE_TEST.replace(', "seven"', "") + "\ncheck(square)"


def bare(program: str, folder: Path) -> subprocess.CompletedProcess:
    """What the program does without walls; no input, one descriptor too many, 20 seconds."""
    command = [sys.executable, "-c", program]
    try:
        with open(os.devnull) as extra:
            more = [extra.fileno()]
            return subprocess.run(command, cwd=folder, capture_output=True, stdin=extra, pass_fds=more, timeout=20)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, b"", b"")


def attack_all(sandbox: execution.Sandbox, folder: Path) -> list[tuple[str, str, str, str]]:
    """(family, name, what a bare interpreter let happen, what the sandbox let happen)."""
    packages = (path for place in map(Path, sys.path) if place.name == "site-packages" for path in place.glob("*/*.py"))
    names = make_scene(folder, execution.__file__, str(next(packages, execution.__file__)))
    scene = "".join(f"{name} = {value!r}\n" for name, value in names.items() if not name.startswith("_"))
    os.environ["NANOCHAT_TEST_SECRET"] = "secret"
    rows = []
    for key, attack in ATTACKS.items():
        outcomes = []
        for walls in (False, True):
            Path(names["VICTIM"]).write_text("victim")
            Path(names["SECRET"]).write_text("secret")
            if not walls and key in NOT_BARE:
                outcomes.append("not tried")
                continue
            said = ""
            with tempfile.TemporaryDirectory() as own:
                for _ in range(1 + (key in TWICE)):
                    if walls:
                        result = sandbox.run(HELPERS + scene + attack, timeout=1.0, memory_mb=128)
                        said += result.output + result.error
                    else:
                        said += bare(HELPERS + scene + attack, Path(own)).stdout.decode(errors="replace")
            outcomes.append("ESCAPED" if "ESCAPED" in said else "contained" if walls else "failed")
        rows.append((*key, *outcomes))
        for leftover in folder.glob("secret.*"):
            leftover.rmdir() if leftover.is_dir() else leftover.unlink()
    for key, cheat in CHEATS.items():
        fooled = bare(cheat + NAIVE, folder).returncode == 0
        passed = sandbox.check(cheat, SQUARE_TEST, "square", timeout=1.0).passed
        rows.append((*key, "ESCAPED" if fooled else "failed", "ESCAPED" if passed else "contained"))
    for place in (f"/tmp/{names['MARK']}", f"/tmp/{names['MARK']}.mark", f"/dev/shm/{names['MARK']}"):
        Path(place).unlink(missing_ok=True)
    return rows


def passing_solutions(sandbox: execution.Sandbox, path: str) -> list[bool]:
    """HumanEval's own solutions, judged by its own tests."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    programs = [(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"]) for row in rows]
    return [sandbox.check(*p, prelude=row["prompt"], timeout=20).passed for p, row in zip(programs, rows)]


def milliseconds(action, runs: int) -> tuple[float, float]:
    """Fastest and median."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return min(times), statistics.median(times)


def cold() -> None:
    with execution.Sandbox() as own:
        own.run("print(1)")


def leftovers(sandbox: execution.Sandbox) -> tuple[int, int, int, int]:
    """Descriptors here and in the warm parent, its children, files in its folder."""
    parent = sandbox.process.pid
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    descriptors = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{parent}/fd"))
    return *descriptors, len(children.split()), len(os.listdir(sandbox.base))


def measure(paths: list[str]) -> dict:
    """All figures of one user: JSON values."""
    level, reasons = execution.sandbox_level()
    who = f"root (uid {os.getuid()})" if os.getuid() == 0 else f"user (uid {os.getuid()})"
    machine = f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}, {os.cpu_count()} cores"
    figures = {"who": who, "machine": f"{machine}, Python {platform.python_version()}", "level": level}
    figures["reasons"] = ", ".join(reasons)
    with execution.Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        figures["attacks"] = attack_all(sandbox, Path(folder))
        honest = [sandbox.run(program, timeout=20).output == "ok\n" for program in BENIGN.values()]
        figures["programs"] = f"{sum(honest)} of {len(honest)}"
        solved = [passed for path in paths for passed in passing_solutions(sandbox, path)]
        figures["HumanEval"] = f"{sum(solved)} of {len(solved)}"
        check = lambda: sandbox.check("def square(n): return n * n", SQUARE_TEST, "square")  # noqa: E731
        figures["milliseconds"] = {
            "bare interpreter, `print(1)`": milliseconds(lambda: bare("print(1)", Path(folder)), 20),
            "cold: start, one run, stop": milliseconds(cold, 10),
            "warm: run `print(1)`": milliseconds(lambda: sandbox.run("print(1)"), RUNS),
            "warm: check, two processes": milliseconds(check, RUNS),
        }
        before, start = leftovers(sandbox), time.perf_counter()
        with ThreadPoolExecutor(64) as pool:
            right = sum(pool.map(lambda i: sandbox.run(f"print({i})").output == f"{i}\n", range(PARALLEL)))
        rate = PARALLEL / (time.perf_counter() - start)
        more = [after - first for after, first in zip(leftovers(sandbox), before)]
    figures["parallel"] = [f"{right:,} of {PARALLEL:,}", f"{rate:.0f}", f"{more[0] + more[1]}, {more[2]}, {more[3]}"]
    return figures


def table(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def share(rows: list, column: int, word: str) -> str:
    """How many of the rows that were tried say `word`: "3 of 4"."""
    tried = [row[column] for row in rows if row[column] != "not tried"]
    return f"{tried.count(word)} of {len(tried)}"


def wrap(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 130, break_long_words=False, break_on_hyphens=False)


def page(runs: list[dict]) -> str:
    """One page of Markdown about the same attacks by several users: the summary first, every attack by name last."""
    users = [run["who"] for run in runs]
    families = list(dict.fromkeys(row[0] for row in runs[0]["attacks"]))
    contained = ", ".join(f"{share(run['attacks'], 3, 'contained')} as {run['who']}" for run in runs)
    text = f"# What the sandbox contains\n\nAttacks contained: **{contained}**.\n"
    text += f"{runs[0]['machine']}; level {runs[0]['level']}: {runs[0]['reasons']}.\n\n"
    text += table(
        ["", *users],
        [
            ["attacks that get through in a bare interpreter", *(share(run["attacks"], 2, "ESCAPED") for run in runs)],
            ["honest standard-library programs that run", *(run["programs"] for run in runs)],
            ["canonical HumanEval solutions that pass", *(run["HumanEval"] for run in runs)],
            [f"{PARALLEL:,} runs from 64 threads: right", *(run["parallel"][0] for run in runs)],
            ["the same, runs a second", *(run["parallel"][1] for run in runs)],
            ["descriptors, processes and files more than before", *(run["parallel"][2] for run in runs)],
        ],
    )
    text += "\nMilliseconds, fastest and median:\n\n"
    texts = [{name: f"{low:.1f}, {mid:.1f}" for name, (low, mid) in run["milliseconds"].items()} for run in runs]
    text += table(["", *users], [[name, *(each[name] for each in texts)] for name in texts[0]])
    text += "\n## By family\n\nReal: gets through in a bare interpreter, of those that do not hurt the machine there.\n"
    text += "For a verdict cheat that interpreter runs program and test in one process and trusts the exit status.\n\n"
    heads = ["family", "attacks", *(f"{word} as {user}" for user in users for word in ("real", "contained"))]
    rows = []
    for family in families:
        ours = [[row for row in run["attacks"] if row[0] == family] for run in runs]
        cells = [share(each, *what) for each in ours for what in ((2, "ESCAPED"), (3, "contained"))]
        rows.append([family, len(ours[0]), *cells])
    text += table(heads, rows)
    limits = execution.Sandbox.__doc__.partition("    Not contained, ")[2].partition("    Raises")[0]
    text += f"\n{wrap('Not contained, ' + limits)}\n"
    text += "\n## Every attack\n\nNot marked: real for the first user. (-): fails in a bare interpreter too. (!): not "
    text += "tried there. **Bold**: NOT contained.\n"
    marks = {"ESCAPED": "", "failed": " (-)", "not tried": " (!)"}
    for family in families:
        names = []
        for rows in zip(*(run["attacks"] for run in runs)):
            if rows[0][0] == family:
                held = all(row[3] == "contained" for row in rows)
                names.append((rows[0][1] if held else f"**{rows[0][1]}**") + marks[rows[0][2]])
        text += f"\n{wrap(f'**{family}**: ' + '; '.join(names))}.\n"
    return text


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--page"]:
        print(page([json.loads(Path(path).read_text()) for path in arguments[1:]]), end="")
        return
    paths, _, save = " ".join(arguments).partition("--save")
    figures = measure(paths.split())
    print(page([figures]), end="")
    if save:
        Path(save.strip()).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
