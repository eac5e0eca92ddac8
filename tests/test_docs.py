"""The README and the guide are true: each command in them runs, each file, name and flag that they mention exists.

Commands stand in bash blocks, in indented lines, or between backticks. They run in this process, through their own
parser and main, made smaller by the tables below; each page has a home of its own, as a tiny quickstart left it. What
cannot run here is in ONLY_PARSED or ELSEWHERE, with its reason; a command that is nowhere fails. Python blocks run,
too; where no model takes part, what they print must be the text block below them.
"""

import ast
import dataclasses
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import require_corpus

from nanochat.configurator import parse
from nanochat.execution import sandbox_level

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FOLDERS = ("nanochat", "scripts", "tasks", "tests", "dev", "docs")
FILES = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("**/*"))]

# What stands on a page -> what is run here.
SMALLER = {
    r"\.venv/bin/(?=python)": "",
    r"^(?!.*--model_tag)(.*base_train.*)--depth=(\d+)": r"\1--depth=1 --model_tag=d\2",
    r"--depth=\d+": "--depth=1",
    r"--(minutes|num_iterations)=[\d.]+": "--num_iterations=2",
    r"--vocab_size=\d+": "--vocab_size=512",
    r"--(total_batch_size|eval_tokens)=\d+": r"--\1=512",
    r"--(device_batch_size|max_items|examples_per_step|num_samples|eval_items)=\d+": r"--\1=2",
    r"--max_tokens=\d+": "--max_tokens=8",
}
# Flags that a command gets if it does not have them.
STEPS = ["--num_iterations=2", "--total_batch_size=512", "--device_batch_size=2"]
ADDED = {
    "scripts.tok_train": ["--data=wiki", "--vocab_size=512"],
    "scripts.base_train": ["--data=wiki", "--max_seq_len=256", "--eval_tokens=512", *STEPS],
    "scripts.base_loss": ["--eval_tokens=512"],
    "scripts.mid_train": ["--mixture=quickstart", *STEPS],
    "scripts.chat_sft": ["--mixture=quickstart", *STEPS],
    "scripts.chat_eval": ["--max_items=2", "--max_tokens=8"],
    "scripts.chat_cli": ["--max_tokens=8"],
}
ONLY_PARSED = {
    r"nanochat\.dataset($| .*(-n |climbmix|fineweb|--prepare))": "downloads; tests/test_dataset.py has a server for it",
    r"nanochat\.dataset .*PATH|nanochat\.report .*FOLDER": "a path that the reader fills in",
    r"tasks\.published": "downloads; tests/test_eval_tasks.py and tests/test_packages.py",
    r"scripts\.import_hf": "downloads; tests/test_import_hf.py makes a model of that class",
    r"scripts\.base_eval": "needs the evaluation sets; tests/test_core_eval.py",
    r"scripts\.chat_web": "serves until it is stopped; tests/test_server.py and tests/test_ui.py",
    r"dev\.(ablations|scaling)": "takes an hour",
    r"torchrun": "wants as many GPUs as ranks; tests/test_tiny.py has two ranks",
}
ELSEWHERE = {
    "bash quickstart.sh": "takes minutes; its commands are those of tests/test_tiny.py",
    "bash speedrun.sh": "takes minutes; tests/test_speedrun.py",
    "bash test.sh": "is running now",
    "git clone": "needs the network",
    "cd nanochat": "we are there",
    "source .venv/bin/activate": "made by quickstart.sh",
    "curl": "needs the server of the line before; tests/test_server.py sends the same",
}
# Pages that say that they go on from another page, and its command.
BEFORE = {"08-finetuning": "python -m scripts.base_train --depth=2"}
# Pages with sh blocks, which need what the page changes first, and the test that runs them.
OTHER_TESTS = {"changes": "test_guide_changes.py", "export": "test_export.py"}
ARTIFACTS = {
    "report.md",
    "report.html",
    "comparison.md",
    "comparison.html",
    "plan.json",
}  # files that are made, and lie in no checkout


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def in_backticks(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def lines(block: str) -> list[str]:
    """The commands of a bash block."""
    joined = block.replace("\\\n", " ").replace(" && ", "\n").splitlines()
    return [line for line in joined if shlex.split(line, comments=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.fixture(scope="module")
def after_quickstart(tmp_path_factory):
    """A home folder after the quickstart, whose model says nothing sensible."""
    require_corpus()
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder / ".cache" / "nanochat"))
        for line in (
            "python -m nanochat.dataset --source wiki",
            "python -m scripts.tok_train",
            "python -m scripts.base_train --depth=1 --model_tag=quickstart",
            "python -m scripts.mid_train",
            "python -m scripts.chat_sft",
        ):
            run(line, folder, patch)
    return folder


@pytest.fixture
def home(after_quickstart, tmp_path, monkeypatch):
    """A copy of it: no page needs what another page makes, or stumbles over it."""
    folder = shutil.copytree(after_quickstart, tmp_path / "home")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder / ".cache" / "nanochat"))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, home, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/quit\n"))  # what a chat in the terminal is told
    if page.stem == "11-tools" and sandbox_level()[0] != "strict":
        pytest.skip("the programs on this page need a kernel with Landlock and seccomp")
    if page.stem in BEFORE:
        run(BEFORE[page.stem], home, monkeypatch)
    found, names = fences(page), {"__name__": "__main__"}
    for (language, block), (following, expected) in zip(found, [*found[1:], ("", "")]):
        if language == "bash":
            for line in lines(block):
                run(line, home, monkeypatch)
        elif language == "python":
            capsys.readouterr()
            exec(compile(block, str(page), "exec"), names)
            printed = capsys.readouterr().out
            if following == "text" and not re.search(r"checkpoint_manager|base_dir", block):
                assert printed == expected
        elif language == "sh":
            assert (ROOT / "tests" / OTHER_TESTS[page.stem]).exists()
    for text in [*in_backticks(page), *re.findall(r"^ {4,}(\S.*)$", prose(page), re.M)]:
        if re.match(r"(\.venv/bin/)?(python -m|torchrun|bash) ", text):
            run(text, home, monkeypatch)


def run(line: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Run a command of a page, as the tables say."""
    for pattern, smaller in SMALLER.items():
        line = re.sub(pattern, smaller, line)
    line = line.replace("~/", f"{home}/").replace("~", "/nowhere/")
    program, *words = shlex.split(line, comments=True)
    if program == "export":
        name, _, value = words[0].partition("=")
        patch.setenv(name, value)
    elif program == "cp":
        subprocess.run([program, *words], check=True)
    elif program in ("python", "torchrun") and "-m" in words:
        at = words.index("-m") + 1
        run_module(words[at], words[at + 1 :], line)
    else:
        assert any(line.startswith(known) for known in ELSEWHERE), f"{line!r} is in no table of this test"
        if program == "bash":
            assert subprocess.run(["bash", "-n", ROOT / words[0]]).returncode == 0
        if words[:1] == ["quickstart.sh"]:
            parse(importlib.import_module("scripts.plan").Config, words[1:])


def run_module(name: str, arguments: list[str], line: str) -> None:
    module = importlib.import_module(name)
    given = {argument.split("=")[0] for argument in arguments}
    if any(re.search(pattern, line) for pattern in ONLY_PARSED):
        parse(module.Config, arguments)
        return
    added = [flag for flag in ADDED.get(name, []) if flag.split("=")[0] not in given]
    try:
        module.main(parse(module.Config, arguments + added))
    except SystemExit as stop:
        assert not stop.code, f"{line}: {stop.code}"


def test_the_quickstart_says_what_it_can_before_it_installs_anything(tmp_path):
    script = tmp_path / "quickstart.sh"  # alone: whatever it needs, it would not find
    script.write_text((ROOT / "quickstart.sh").read_text(encoding="utf-8"), encoding="utf-8")
    told = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert told.returncode == 0 and "bash quickstart.sh --minutes N" in told.stdout and not told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.sh"]


def test_an_environment_follows_its_python_and_says_what_it_lacks(tmp_path):
    """Here it lacks all: there is no pyproject.toml. What another Python had left would mix two of them."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python3").symlink_to("/bin/true")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    command = ["bash", "-c", f"source {shlex.quote(str(ROOT / 'dev' / 'venv.sh'))} && make_venv .venv wiki"]
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 1 and "pip could not install" in made.stderr.splitlines()[-1]
    assert (tmp_path / ".venv" / "bin" / "python3").resolve() == Path(sys.executable).resolve()
    assert not (tmp_path / ".venv" / "stamp").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Files, names, flags


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "dev").glob("*.md")], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_names_exist(page):
    """`gpt.py` is a file somewhere, `nanochat/gpt.py` this very one, and `nanochat/gpt.py:Attention` defines that."""
    ends = {path.relative_to(ROOT).as_posix() for path in FILES}
    for text in in_backticks(page):
        match = re.fullmatch(r"([\w./-]+\.(?:py|sh|md|js|css|html|svg|txt))(?::([\w.]+))?", text)
        if not match or match[1] in ARTIFACTS:
            continue
        here = [end for end in ends if end == match[1] or ("/" not in match[1] and end.endswith("/" + match[1]))]
        assert here, f"{page.name}: there is no file {match[1]}"
        if match[2]:
            assert match[2] in definitions(ROOT / here[0]), f"{page.name}: {match[1]} does not define {match[2]}"


def test_identifiers_stand_in_the_code():
    """Whatever looks like a name of the code: snake_case, or CAPITALS."""
    code = [path for path in FILES if path.suffix in (".py", ".sh", ".js", ".css", ".toml")]
    known = {path.stem for path in FILES}.union(*(re.findall(r"\w+", path.read_text("utf-8")) for path in code))
    for page in [*PAGES, ROOT / "dev" / "ARCHITECTURE.md"]:
        for text in in_backticks(page):
            unknown = set(re.findall(r"\b(?:[a-z]\w*_\w+|[A-Z][A-Z_]{3,})\b", text)) - known
            assert not unknown, f"{page.name}: {text!r} names what is not in the code: {unknown}"


def definitions(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and names that are assigned at the top of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_flags_exist():
    """Every --flag that a page mentions is one of a script, or stands in a shell script."""
    modules = [f"{folder}.{path.stem}" for folder in ("scripts", "tasks") for path in (ROOT / folder).glob("*.py")]
    configs = [getattr(importlib.import_module(name), "Config", None) for name in [*modules, "nanochat.dataset"]]
    configs.append(importlib.import_module("nanochat.report").Config)
    flags = {f"--{field.name}" for config in configs if config for field in dataclasses.fields(config)}
    shell = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.sh"))
    flags |= set(re.findall(r"--[a-z][\w-]+", shell)) | {"--help", "--from"}
    for page in PAGES:
        for text in in_backticks(page):
            if "pip" not in text and "torchrun" not in text:
                for flag in re.findall(r"(?<!\S)--[a-z]\w*", text):
                    assert flag in flags, f"{page.name}: no script has {flag}"
