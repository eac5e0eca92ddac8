"""The shape of the house: who may import whom, silence at import, small files, and what may never be in them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("nanochat", "tasks", "scripts")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))
# nanochat/exported/ is copied to folders outside, where it runs without this program: it stands in no layer.
MODULE_OF = {
    path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in SOURCES
    if path.stem != "__init__" and path.parent.name != "exported"
}
MODULES = list(MODULE_OF.values())
SCRIPTS = [name for name in MODULES if name.startswith("scripts.")]
TEXTS = (".py", ".sh", ".md", ".toml", ".txt", ".js", ".css", ".html", ".json", ".yml", "")
MAX_LINES = 450

# Only these run code that they are given as text; all others stay far from eval and exec.
MAY_EXECUTE = {"nanochat/sandbox.py", "nanochat/judge.py"}


def layers() -> dict[str, int]:
    """Module -> number of its line in the list of dev/ARCHITECTURE.md; `tasks` and `scripts` stand for all in them."""
    page = (ROOT / "dev" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = page.split("## Layers", 1)[1].split("\n\n")[1]
    return {name.strip(): number for number, line in enumerate(block.splitlines()) for name in line.split(",")}


def imports(path: Path, at_top: bool = False) -> set[str]:
    """The modules of ours that a file imports, anywhere in it or only outside of functions, as dotted names."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here, not relative"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in MODULES}


def layer_of(module: str, order: dict[str, int]) -> int:
    package, _, name = module.partition(".")
    key = name if package == "nanochat" else package
    assert key in order, f"{module} stands in no layer: put it into the list in dev/ARCHITECTURE.md"
    return order[key]


def tracked() -> list[Path]:
    """The text files of the repository: what git tracks, or everything if this is not a checkout."""
    listed = subprocess.run(["sh", "-c", "git ls-files -z"], cwd=ROOT, capture_output=True, text=True).stdout
    names = [Path(name) for name in listed.split("\0") if name]
    if not names:  # a tarball, perhaps on a machine without git
        names = [path.relative_to(ROOT) for path in ROOT.glob("**/*")]
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return [ROOT / name for name in names if (ROOT / name).is_file() and name.suffix in TEXTS]


def test_imports_point_down_the_list():
    order = layers()
    for path, module in MODULE_OF.items():
        for other in imports(path):
            assert layer_of(other, order) <= layer_of(module, order), f"{module} imports {other}, which is above it"


def test_scripts_do_not_import_scripts():
    for path in (ROOT / "scripts").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("scripts.")], path


def test_there_is_no_circle_of_imports():
    """Modules of one layer may use each other, but never in a circle."""
    graph = {name: imports(path, at_top=True) for path, name in MODULE_OF.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_are_small_enough_to_be_read():
    files = [*SOURCES, *(ROOT / "nanochat" / "ui").glob("*.js")]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_every_module_says_what_it_is():
    for path in SOURCES:
        if path.stem != "__init__":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


# One process imports all modules one after another and tells what each of them did beside that. Then it forks once a
# script for --help, since importing torch anew for each would take most of a minute.
WATCH = """
import contextlib, importlib, io, json, os, runpy, sys, threading
import numba, numpy, torch, tyro  # what these do at import is theirs
did, modules = {}, sys.argv[1:]
for module in modules:
    out, threads, environment = io.StringIO(), threading.active_count(), dict(os.environ)
    sys.argv = ["program", "--no-such-flag"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        imported = importlib.import_module(module)
    did[module] = [f"compiled {name}" for name, value in vars(imported).items() if getattr(value, "signatures", None)]
    if out.getvalue():
        did[module].append("printed " + repr(out.getvalue()))
    if os.listdir("."):
        did[module].append("made " + repr(os.listdir(".")))
    if threading.active_count() > threads:
        did[module].append("started a thread")
    if dict(os.environ) != environment:
        did[module].append("changed the environment")
print(json.dumps({module: facts for module, facts in did.items() if facts}), flush=True)

for script in [module for module in modules if module.startswith("scripts.")]:
    child = os.fork()
    if child == 0:
        sys.argv = [script, "--help"]
        del sys.modules[script]
        runpy.run_module(script, run_name="__main__", alter_sys=True)
        os._exit(9)  # --help must exit by itself
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"\\x00{script} {status}", flush=True)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What WATCH printed: facts about imports, then the help of each script and its exit status."""
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "HOME": str(home), "NANOCHAT_BASE_DIR": str(home / "base"), "PYTHONPATH": str(ROOT)}
    env["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))
    command = [sys.executable, "-W", "error", "-c", WATCH, *MODULES]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not list(home.iterdir())
    return done.stdout.split("\n", 1)


def test_importing_does_nothing(watched):
    assert watched[0] == "{}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(watched, script):
    parts = re.split(r"\x00(\S+) (-?\d+)\n", watched[1])
    text, status = dict(zip(parts[1::3], zip(parts[0::3], parts[2::3])))[script]
    assert status == "0", f"{script} --help exited with {status}: {text}"
    assert "--help" in text, f"{script} --help says nothing: {text!r}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_execution_of_text(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            bad = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
            assert not bad & {name.split(".")[0] for name in names}, f"{path}:{node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            where = f"{path}:{node.lineno}"
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "os.system"), f"{where} calls {called}"
            if called in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"):
                assert str(path.relative_to(ROOT)) in MAY_EXECUTE, f"{where} calls {called}"
            for keyword in node.keywords:
                shell = keyword.arg == "shell" and getattr(keyword.value, "value", True)
                assert not shell, f"{where} starts a shell"
                assert not (keyword.arg == "allow_pickle" and keyword.value.value), f"{where} allows pickle"


# Written in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~$}])/(work|home/\w+|Users/\w+|mnt|data\d)" + r"/\w",
    "the host of a package registry": r"files\.python"
    + r"hosted\.org|pypi\."
    + r"org/simple|registry\."
    + r"npmjs|/opt/"
    + "pypi",
    "a private key": "BEGIN [A-Z ]*PRIVATE" + " KEY",
    "an access token": r"\b(hf_|gh[pousr]_|sk-|AKIA)[A-Za-z0-9]{20,}",
    "a merge that was not finished": r"^(<{7}|>{7})" + " ",
}


def test_no_file_names_this_machine_a_registry_or_a_secret():
    found = []
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN.items():
            for match in re.finditer(pattern, text, re.M):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line} has {what}: {match.group()!r}")
    assert not found, "\n".join(found)


def test_the_checks_above_can_fail(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\n")
    with pytest.raises(AssertionError, match="pickle"):
        test_no_pickle_and_no_execution_of_text(bad)
    assert re.search(FORBIDDEN["a path of one machine"], "open('/" + "home/me/x')")
    bad.write_text("from nanochat import engine\nimport scripts.base_train\n")
    assert imports(bad) == {"nanochat.engine", "scripts.base_train"}
    order = layers()
    assert layer_of("nanochat.engine", order) > layer_of("nanochat.gpt", order) > layer_of("nanochat.common", order)
