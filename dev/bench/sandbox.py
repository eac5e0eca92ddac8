"""What the sandbox contains and what it costs, against a bare interpreter on the same machine, as a Markdown table.

In: tests/attacks.py, and HumanEval.jsonl if it is given. Out: the table, for whoever runs it: do so as root and as a
plain user. python dev/bench/sandbox.py [HumanEval.jsonl] [--names]     (--names lists every attack)
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from attacks import ATTACKS, BENIGN, CHEATS, HELPERS, NOT_BARE, SQUARE_TEST, make_scene  # noqa: E402

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
    names = make_scene(folder, execution.__file__, str(next(packages, "")))
    scene = "".join(f"{name} = {value!r}\n" for name, value in names.items() if not name.startswith("_"))
    os.environ["NANOCHAT_TEST_SECRET"] = "secret"
    rows = []
    for (family, name), attack in ATTACKS.items():
        outcomes = []
        for walls in (False, True):
            Path(names["VICTIM"]).write_text("victim")
            Path(names["SECRET"]).write_text("secret")
            if not walls and (family, name) in NOT_BARE:
                outcomes.append("not tried")
                continue
            if walls:
                result = sandbox.run(HELPERS + scene + attack, timeout=1.0, memory_mb=128)
                said = result.output + result.error
            else:
                with tempfile.TemporaryDirectory() as own:
                    said = bare(HELPERS + scene + attack, Path(own)).stdout.decode(errors="replace")
            outcomes.append("ESCAPED" if "ESCAPED" in said else "contained" if walls else "failed")
        rows.append((family, name, *outcomes))
        for leftover in folder.glob("secret.*"):
            leftover.rmdir() if leftover.is_dir() else leftover.unlink()
    for (family, name), cheat in CHEATS.items():
        fooled = bare(cheat + NAIVE, folder).returncode == 0
        passed = sandbox.check(cheat, SQUARE_TEST, "square", timeout=1.0).passed
        rows.append((family, name, "ESCAPED" if fooled else "failed", "ESCAPED" if passed else "contained"))
    for place in ("/tmp", "/dev/shm"):
        Path(place, names["MARK"]).unlink(missing_ok=True)
    return rows


def print_attacks(rows: list[tuple[str, str, str, str]], every: bool) -> None:
    print("| family | attacks | succeed in a bare interpreter | contained in the sandbox |\n|---|---|---|---|")
    for family in dict.fromkeys(row[0] for row in rows):
        ours = [row for row in rows if row[0] == family]
        real, tried = (sum(row[2] == "ESCAPED" for row in ours), sum(row[2] != "not tried" for row in ours))
        held = sum(row[3] == "contained" for row in ours)
        print(f"| {family} | {len(ours)} | {real} of {tried} | {held} of {len(ours)} |")
    held = sum(row[3] == "contained" for row in rows)
    print(f"| **all** | {len(rows)} | {sum(row[2] == 'ESCAPED' for row in rows)} | **{held} of {len(rows)}** |\n")
    for family, name, without, within in rows:
        if every or within != "contained":
            print(f"- {family}: {name}: bare {without}, sandbox {within}")


def milliseconds(action, runs: int) -> str:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return f"{min(times):.1f} | {statistics.median(times):.1f}"


def cold() -> None:
    with execution.Sandbox() as own:
        own.run("print(1)")


def leftovers(sandbox: execution.Sandbox) -> tuple[int, int, int, int]:
    """Descriptors here and in the warm parent, its children, files in its folder."""
    parent = sandbox.process.pid
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout.split()
    return (
        len(os.listdir("/proc/self/fd")),
        len(os.listdir(f"/proc/{parent}/fd")),
        len(children),
        len(os.listdir(sandbox.base)),
    )


def main(arguments: list[str]) -> None:
    level, reasons = execution.sandbox_level()
    print(
        f"Python {sys.version.split()[0]}, uid {os.getuid()}, {os.cpu_count()} cores,",
        f"level {level}: {', '.join(reasons)}\n",
    )
    with execution.Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        print_attacks(attack_all(sandbox, Path(folder)), "--names" in arguments)
        honest = sum(sandbox.run(program, timeout=20).output == "ok\n" for program in BENIGN.values())
        print(f"\nHonest standard-library programs that run: {honest} of {len(BENIGN)}")
        for path in (a for a in arguments if not a.startswith("-")):
            rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
            passed = [
                sandbox.check(
                    row["prompt"] + row["canonical_solution"],
                    row["test"],
                    row["entry_point"],
                    prelude=row["prompt"],
                    timeout=20,
                ).passed
                for row in rows
            ]
            print(f"Canonical HumanEval solutions that pass: {sum(passed)} of {len(passed)}")
        print("\n| milliseconds | fastest | median |\n|---|---|---|")
        print(f"| bare interpreter, `print(1)` | {milliseconds(lambda: bare('print(1)', Path(folder)), 20)} |")
        print(f"| sandbox, cold: start, run, stop | {milliseconds(cold, 10)} |")
        print(f"| sandbox, warm: run | {milliseconds(lambda: sandbox.run('print(1)'), RUNS)} |")
        check = lambda: sandbox.check("def square(n): return n * n", SQUARE_TEST, "square")  # noqa: E731
        print(f"| sandbox, warm: check, two processes | {milliseconds(check, RUNS)} |")
        before, start = leftovers(sandbox), time.perf_counter()
        with ThreadPoolExecutor(64) as pool:
            done = list(pool.map(lambda i: sandbox.run(f"print({i})").output == f"{i}\n", range(PARALLEL)))
        seconds = time.perf_counter() - start
        print(f"\n{PARALLEL} runs from 64 threads: {sum(done)} right, {PARALLEL / seconds:.0f} a second; ", end="")
        print(f"descriptors here and there, processes, files: {before} before, {leftovers(sandbox)} after")


if __name__ == "__main__":
    main(sys.argv[1:])
