"""Hostile programs in the sandbox: every attack of attacks.py is contained, no cheat passes, honest programs run."""

import ast
import concurrent.futures
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks import ATTACKS, BENIGN, CHEATS, HELPERS, SQUARE_TEST, TWICE, make_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import confinement as walls
from nanochat import execution, judge
from nanochat import sandbox as inside
from nanochat.execution import (
    Run,
    Sandbox,
    SandboxError,
    accept_level,
    check_program,
    gather,
    python_tool,
    run_python,
    sandbox_level,
)

HONEST = "def square(n):\n    return n * n\n"
REAL_EVERYWHERE = [
    ("files", "read a secret by its path"),
    ("files", "delete a file"),
    ("links", "symlink to the secret"),
    ("links", "hard link to the secret"),
    ("environment", "a variable of the host"),
    ("network", "TCP over IPv4"),
    ("network", "unix socket"),
    ("exec", "os.system"),
    ("process", "fork"),
    ("process", "thread"),
    ("signals", "the host"),
    ("kernel", "prctl"),
    ("descriptors", "inherited ones"),
]
FOOLS_EXIT_STATUS = [
    "sys.exit(0)",
    "os._exit(0)",
    "raise SystemExit",
    "equal to everything",
    "number equal to everything",
]
HANGING = ("hangs", "sleeps", "takes the question away")


@pytest.fixture(scope="module")
def sandbox():
    level, reasons = sandbox_level()
    if level != "strict":
        pytest.skip(f"this kernel lacks Landlock or seccomp: {'; '.join(reasons)}")
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The names that attacks aim at: files, servers and processes that are really there."""
    folder = tmp_path_factory.mktemp("host")
    names = make_scene(folder, inside.__file__, pytest.__file__)
    os.environ["NANOCHAT_TEST_SECRET"] = "secret"
    yield "".join(f"{name} = {value!r}\n" for name, value in names.items() if not name.startswith("_"))
    del os.environ["NANOCHAT_TEST_SECRET"]
    for server in names["_servers"]:
        server.close()
    assert Path(names["SECRET"]).read_text() == "secret"


@pytest.fixture
def victim(scene):
    path = Path(next(line for line in scene.splitlines() if line.startswith("VICTIM")).split("'")[1])
    path.write_text("victim")
    return path


@pytest.mark.parametrize("key", ATTACKS, ids=": ".join)
def test_attack_is_contained(key, sandbox, scene, victim):
    for _ in range(1 + (key in TWICE)):
        result = sandbox.run(HELPERS + scene + ATTACKS[key], timeout=0.3 if key[0] == "flood" else 1.0, memory_mb=128)
        assert "ESCAPED" not in result.output + result.error
    assert victim.exists()
    assert os.listdir(sandbox.base) == []


@pytest.mark.parametrize("key", REAL_EVERYWHERE, ids=": ".join)
def test_attack_is_real_without_the_sandbox(key, scene, victim, tmp_path):
    program = HELPERS + scene + ATTACKS[key]
    with open(os.devnull) as extra:
        bare = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, pass_fds=[extra.fileno()]
        )
    assert "ESCAPED" in bare.stdout, bare.stderr


@pytest.mark.parametrize("key", CHEATS, ids=lambda key: key[1])
def test_cheat_does_not_pass(key, sandbox):
    verdict = sandbox.check(CHEATS[key], SQUARE_TEST, "square", timeout=0.4 if key[1] in HANGING else 1.0)
    assert not verdict.passed
    assert verdict.reason


@pytest.mark.parametrize("name", FOOLS_EXIT_STATUS)
def test_cheat_fools_an_exit_status(name):
    program = CHEATS["cheat", name] + SQUARE_TEST.replace("assert candidate(7)", "candidate(7)") + "\ncheck(square)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("key", BENIGN, ids=lambda key: key[1])
def test_honest_program_runs(key, sandbox):
    result = sandbox.run(BENIGN[key], timeout=20)
    assert (result.success, result.output, result.error) == (True, "ok\n", "")


def test_honest_function_passes(sandbox):
    assert sandbox.check(HONEST, SQUARE_TEST, "square").passed
    assert sandbox.check(HONEST, "assert square(3) == 9", "square").passed
    failed = sandbox.check(HONEST, "assert square(3) == 8, 'eight'", "square")
    assert (failed.passed, failed.reason) == (False, "AssertionError: eight")


def test_values_keep_their_types(sandbox):
    program = "def same(*args, **kwargs):\n    return args[0] if args else kwargs\n"
    test = """
import math
def check(candidate):
    for value in (None, True, 0, -1, 2**70, 1.5, -0.0, 1e308, "", "é\\n\\ud800", b"\\xff", 1 + 2j, [], (), {}, set(),
                  {4}, [1, (2, [3]), {"a": {4}, (5,): None, 6.5: "x", True: 1}], frozenset([(2,)]), bytearray(b"x")):
        back = candidate(value)
        assert type(back) is type(value) and back == value and repr(back) == repr(value), value
    assert candidate(7**9999) == 7**9999
    assert math.isnan(candidate(math.nan)) and candidate(math.inf) == math.inf
    assert candidate(a=1, b=(2,)) == {"a": 1, "b": (2,)}
    assert candidate(range(3)) != range(3)
"""
    assert sandbox.check(program, test, "same").reason == "passed"


def test_errors_reach_the_test(sandbox):
    program = "class Mine(KeyError): pass\ndef f(x):\n    if x: raise ValueError('no')\n    raise Mine('k')\n"
    test = """
def check(candidate):
    for x, kind in ((1, ValueError), (0, KeyError)):
        try: candidate(x)
        except kind: continue
        assert False
"""
    assert sandbox.check(program, test, "f").passed
    assert sandbox.check(program, "f(1)", "f").reason == "ValueError: no"
    dead = "import os\ndef f(x): os._exit(0)"
    assert not sandbox.check(dead, "try: f(1)\nexcept BaseException: pass", "f").passed


def test_an_error_cannot_end_a_loop_of_the_test(sandbox):
    """StopIteration out of `map` looks like the end of the list: `all` would then be true of nothing."""
    for error in ("StopIteration", "StopAsyncIteration"):
        program, test = f"def f(x): raise {error}", "assert all(map(lambda x: f(x) == x, range(3)))"
        assert subprocess.run([sys.executable, "-c", f"{program}\n{test}"], capture_output=True).returncode == (
            error != "StopIteration"
        )
        assert sandbox.check(program, test, "f").reason == "RuntimeError"
    program = "def f(x): return b'\\xff'.decode()"
    assert sandbox.check(program, "try: f(1)\nexcept ValueError: pass\nelse: assert False", "f").passed


def test_helpers_come_from_the_prelude_and_not_from_the_program(sandbox):
    prelude, test = "def twice(x): return 2 * x\n", "def check(candidate):\n    assert twice(candidate(4)) == 4"
    assert sandbox.check(prelude + "def half(x): return x // 2", test, "half", prelude=prelude).passed
    assert not sandbox.check("def twice(x): return 4\ndef half(x): return 0", test, "half", prelude=prelude).passed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
tags = st.sampled_from("tuple set frozenset dict bytes bytearray int complex object value error".split())
tagged = st.recursive(
    json_values,
    lambda inner: st.dictionaries(tags, inner, min_size=1, max_size=1) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(json_values | tagged)
@settings(max_examples=200, deadline=None)
def test_decoding_garbage_is_an_error_or_plain_data(data):
    plain = (
        type(None),
        bool,
        int,
        float,
        str,
        list,
        tuple,
        set,
        frozenset,
        dict,
        bytes,
        bytearray,
        complex,
        judge.Opaque,
    )
    try:
        assert type(judge.decode(data)) in plain
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        pass


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda v: (
        st.lists(v) | st.lists(v).map(tuple) | st.sets(st.integers()) | st.dictionaries(st.integers() | st.text(), v)
    ),
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_decode_undoes_encode(value):
    back = judge.decode(json.loads(json.dumps(judge.encode(value))))
    assert back == value and type(back) is type(value)


def test_result_says_what_happened(sandbox):
    result = sandbox.run("print('é', 1)\n1 / 0\n")
    assert (result.success, result.output, result.timed_out) == (False, "é 1\n", False)
    assert result.error.endswith("ZeroDivisionError: division by zero") and 'File "<program>", line 2' in result.error
    assert "sandbox.py" not in result.error
    late = sandbox.run("import time\nprint('early', flush=True)\ntime.sleep(99)", timeout=2)
    assert (late.success, late.output, late.timed_out, late.error) == (False, "early\n", True, "stopped: out of time")
    assert "MemoryError" in sandbox.run("x = 'a' * 10**9").error
    assert "SIGSEGV" in sandbox.run("import ctypes; ctypes.string_at(0)").error
    flood = sandbox.run("while True: print('x' * 1000)")
    assert 60_000 < len(flood.output) < 70_000 and "output" in flood.error
    for code, success in (("raise SystemExit", True), ("exit_code = 3\nraise SystemExit(exit_code)", False)):
        assert sandbox.run(code).success is success
    assert sandbox.run("import sys; sys.exit('why')").error == "why"
    assert "SyntaxError" in sandbox.run("1 +").error
    assert not sandbox.run("x = '\ud800'").success


def test_programs_do_not_see_each_other(sandbox):
    assert sandbox.run("import builtins, json; builtins.mark = json.mark = 1; open('f', 'w').write('x')").success
    assert sandbox.run(
        "import builtins, json, os\nassert not hasattr(json, 'mark') and not os.listdir('.')\nmark"
    ).error.endswith("NameError: name 'mark' is not defined")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        hiding = pool.submit(sandbox.run, "import time; open('f', 'w').write('x'); time.sleep(0.5)")
        look = "import os, time; time.sleep(0.2)\nhere = os.getcwd(); base, n = os.path.split(here)\n"
        look += "for i in range(int(n) - 5, int(n) + 5):\n"
        look += "  try: print(open(f'{base}/{i}/f').read())\n  except OSError: pass"
        assert sandbox.run(look).output == ""
        assert hiding.result().success


def is_alive(pid: int) -> bool:
    """Not even a zombie counts: who adopts orphans may be slow to bury them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def test_many_runs_at_once_leave_nothing_behind(sandbox):
    sandbox.run("1")
    count = lambda pid: len(os.listdir(f"/proc/{pid}/fd"))  # noqa: E731
    before = count("self"), count(sandbox.process.pid)
    codes = ["print({0})", "1/0", "open('f','w').write('x'); print({0})", "while True: pass", "print('x' * 10**6)"]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda i: sandbox.run(codes[i % 5].format(i), timeout=0.2), range(100)))
    assert all(results[i].output == f"{i}\n" for i in range(100) if i % 5 in (0, 2) and not results[i].timed_out)
    assert not any(results[i].success for i in range(100) if i % 5 in (1, 3, 4))
    assert (count("self"), count(sandbox.process.pid)) == before
    assert os.listdir(sandbox.base) == [] and descendants(sandbox.process.pid) == []


def test_closing_ends_everything(sandbox):
    with Sandbox() as own, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(own.run, "while True: pass", timeout=60)
        while not descendants(own.process.pid):
            time.sleep(0.01)
        children = descendants(own.process.pid)
        own.close()
        assert not running.result(timeout=20).success
        assert not os.path.exists(own.base)
        assert not any(map(is_alive, (own.process.pid, *children)))


def test_nothing_outlives_a_host_that_is_killed(sandbox):
    code = "from nanochat.execution import Sandbox\nown = Sandbox()\nprint(own.base, own.process.pid, flush=True)\n"
    host = subprocess.Popen(
        [sys.executable, "-c", code + "own.run('while True: pass', timeout=60)"], stdout=subprocess.PIPE, text=True
    )
    base, parent = host.stdout.readline().split()
    while not (children := descendants(int(parent))):
        time.sleep(0.01)
    host.kill()
    host.communicate()
    deadline = time.monotonic() + 20
    alive = lambda: os.path.exists(base) or any(map(is_alive, children))  # noqa: E731
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()


def test_a_warm_parent_that_died_is_replaced(sandbox):
    with Sandbox() as own:
        old = own.process.pid
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(own.run, "import time; time.sleep(99)", timeout=2)
            while not (children := descendants(old)):
                time.sleep(0.01)
            os.kill(old, signal.SIGKILL)
            assert running.result(timeout=20).error == "stopped: out of time"  # it ran again
        assert own.run("print(1)").output == "1\n"
        assert own.process.pid != old
        while is_alive(children[0]):
            time.sleep(0.01)


def test_who_holds_a_line_that_was_replaced_takes_the_new_one(sandbox):
    with Sandbox() as own:
        old = own.host

        def attempt(host):
            if host is old:  # another thread sees first that the warm parent died
                own._stop()
                own._start()
            with Run(host, {"part": "program", "code": "print(1)", "echo": False, "memory": 1 << 28}, 5.0) as run:
                gather(run)
            return run.text(run.output)

        assert own._try(attempt) == "1\n"


WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys
from nanochat import confinement as walls
code = [(walls.LOAD, 0, 0, 0), (walls.EQUAL, 0, 1, 444), (walls.RETURN, 0, 0, walls.FAIL + 38)]
code += [(walls.RETURN, 0, 0, walls.ALLOW)]
walls.install_seccomp(ctypes.CDLL(None, use_errno=True), b"".join(struct.pack("=HBBI", *i) for i in code))
from nanochat.execution import SandboxError, accept_level, run_python, sandbox_level
assert sandbox_level()[0] == "basic", sandbox_level()
try: run_python("print(1)")
except SandboxError as error: print(error)
accept_level("basic")
result = run_python("print(1)")
assert result.output == "1\\n", result
assert "Operation not permitted" in run_python("import os; os.fork()").error
"""


def test_one_that_does_not_start_in_time_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "START", 0.001)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SandboxError, match="did not start within 0.001 seconds"):
        Sandbox("basic")
    assert not list(tmp_path.iterdir())


def test_refuses_below_the_level_that_was_asked_for(sandbox):
    found = subprocess.run([sys.executable, "-c", WITHOUT_LANDLOCK], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "basic, but strict was asked for: no Landlock" in found.stdout and "--sandbox=basic" in found.stdout
    assert "Programs run in a sandbox of the level basic: no Landlock" in found.stderr
    with pytest.raises(SandboxError, match="could not close its walls"):
        sandbox.run("print(1)", memory_mb=1 << 50)
    with pytest.raises(ValueError, match="no sandbox level"):
        accept_level("none")
    with pytest.raises(ValueError, match="no sandbox level"):
        Sandbox("tight")


def test_the_tool_answers_like_an_interactive_python(sandbox):
    says = {
        "17 * 23": "391",
        "x = [1, 2]\nx": "[1, 2]",
        "print('a')\n'b'": "a\n'b'",
        "print('a', end=''); 1 / 0": "a\nZeroDivisionError: division by zero",
        "None": "(no output)",
        "": "(no output)",
        "1 +": "SyntaxError: invalid syntax",
        "class C:\n  def __repr__(self): raise SystemExit\nC()": "(no output)",
    }
    assert {code: python_tool(code) for code in says} == says
    assert python_tool("while True: pass", timeout=0.2) == "stopped: out of time"
    long = python_tool("print('x' * 5000)")
    assert len(long) == 2000 and long.endswith("x [...]")


def test_module_functions_share_a_warm_parent(sandbox):
    assert run_python("print(6 * 7)").output == "42\n"
    assert check_program(HONEST, SQUARE_TEST, "square").passed
    assert not check_program("def square(n): return 4", SQUARE_TEST, "square").passed


def test_the_profile_for_macos_is_well_formed():
    """Only a Mac can tell whether it holds; this is what any machine can see."""
    command = walls.mac_command([sys.executable, "-m", "x"], "/private/var/base", "/repo/nanochat")
    assert command[:2] == ["/usr/bin/sandbox-exec", "-p"] and command[3:] == [
        os.path.realpath(sys.executable),
        "-m",
        "x",
    ]
    profile, depth = command[2], 0
    for character in profile:
        depth += (character == "(") - (character == ")")
        assert depth >= 0
    assert depth == 0 and profile.count('"') % 2 == 0 and "{" not in profile
    assert '(allow file-write* (subpath "/private/var/base")' in profile
    with pytest.raises(ValueError, match="no quotes"):
        walls.mac_command([sys.executable], '/private/var/"base', "/repo")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_well_formed(machine):
    code = walls.seccomp_filter(machine)
    instructions = [walls.struct.unpack_from("=HBBI", code, i) for i in range(0, len(code), 8)]
    assert instructions[-1][0] == walls.RETURN and len(instructions) < 4096
    for i, (operation, yes, no, _) in enumerate(instructions):
        if operation in (walls.EQUAL, walls.AT_LEAST, walls.HAS_BITS):
            assert i + 1 + max(yes, no) < len(instructions)
    with pytest.raises(ValueError, match="s390x"):
        walls.seccomp_filter("s390x")


def simulate(code: bytes, data: bytes) -> int:
    """What the kernel would answer: a classic BPF machine of the five instructions that the filter uses."""
    tests = {walls.EQUAL: int.__eq__, walls.AT_LEAST: int.__ge__, walls.HAS_BITS: int.__and__}
    position = accumulator = 0
    while True:
        operation, yes, no, k = walls.struct.unpack_from("=HBBI", code, 8 * position)
        position += 1
        if operation == walls.RETURN:
            return k
        if operation == walls.LOAD:
            accumulator = int.from_bytes(data[k : k + 4], "little")
        else:
            position += yes if tests[operation](accumulator, k) else no


NUMBERS = {  # of x86-64 and arm64, from the kernel's tables, in the order of the names
    "x86_64": (0xC000003E, 0, 41, 56, 435, 59, 62, 72, 302, 425, 9, 202, 28, 74),
    "aarch64": (0xC00000B7, 63, 198, 220, 435, 221, 129, 25, 261, 425, 222, 98, 233, 82),
}
NAMES = "read socket clone clone3 execve kill fcntl prlimit64 io_uring mmap futex madvise fsync".split()


@pytest.mark.parametrize("machine", NUMBERS)
def test_filter_decides_as_written(machine):
    code, audit, number = walls.seccomp_filter(machine), NUMBERS[machine][0], dict(zip(NAMES, NUMBERS[machine][1:]))
    denied = walls.FAIL + 1

    def ask(name, *arguments, arch=audit):
        rest = [0] * (6 - len(arguments))
        return simulate(code, struct.pack("<IIQ6Q", number.get(name, name), arch, 0, *arguments, *rest))

    assert ask("read") == walls.ALLOW
    assert {ask(name) for name in ("socket", "clone", "execve", "kill", "io_uring", 5000)} == {denied}
    assert ask("clone3") == walls.FAIL + 38 and ask("fsync") == walls.FAIL
    assert (
        ask("fcntl", 1, 3) == ask("fcntl", 1, 6) == walls.ALLOW
        and ask("fcntl", 1, 8) == ask("fcntl", 1, 1024) == denied
    )
    assert (
        ask("futex", 1, 128) == ask("futex", 1, 393) == walls.ALLOW
        and ask("futex", 1, 6) == ask("futex", 1, 11) == denied
    )
    assert ask("madvise", 1, 1, 4) == walls.ALLOW and ask("madvise", 1, 1, 12) == denied
    assert ask("mmap", 0, 1, 3, 0x22) == walls.ALLOW
    assert ask("mmap", 0, 1, 1, 2) == ask("mmap", 0, 1, 3, 0x40022) == denied
    assert ask("prlimit64", 0, 7, 0, 1) == walls.ALLOW
    assert ask("prlimit64", 1, 7, 0, 1) == ask("prlimit64", 0, 7, 1 << 32, 1) == denied
    assert ask("read", arch=0x40000003) == ask(0x40000000) == walls.KILL


EVERY_CALL = """
import ctypes, platform
libc, answers = ctypes.CDLL(None, use_errno=True), []
for number in range(600):
    if number in SKIP: continue
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    answers.append((number, result, ctypes.get_errno()))
print(answers)
"""


def test_the_kernel_refuses_every_call_that_the_table_does_not_have(sandbox):
    """All numbers up to 600 with arguments that no call can use; 335 and 336 are for the kernel's own code only: a
    program that calls them dies, before any filter is asked."""
    column = walls.MACHINES[platform.machine()][1]
    words = walls.SYSCALLS.split()
    numbers = {int(number) for number in words[1 + column :: 3] if number != "-"}
    answers = sandbox.run(f"SKIP = {numbers | {335, 336}!r}" + EVERY_CALL)
    free = {walls.IOCTL[column]: 25, walls.CLONE3[column]: 38} | {calls[column]: 0 for calls in walls.PRETENDED}
    for number, result, problem in ast.literal_eval(answers.output):
        assert (result, problem) == (0, 0) if free.get(number) == 0 else (-1, free.get(number, 1)), number
