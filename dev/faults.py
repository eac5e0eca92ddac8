"""Whatever can befall a training run befalls base_train: kill -9, lost ranks, damaged data, a disk that is full.

In: names of faults (all of them if there is none), how many kills. Out: a line a fault, or what went wrong.
In the environment of test.sh: python dev/faults.py [kills saves rot ranks lost damage disk] [--kills=20] [--seed=0]
"""

import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from models import random_model  # noqa: E402
from ranks import free_port  # noqa: E402

from nanochat import checkpoint_manager, dataset  # noqa: E402
from nanochat.checkpoint_manager import MODEL, OPTIMIZER, folder_of  # noqa: E402
from nanochat.common import MetricsLog, base_dir  # noqa: E402
from nanochat.configurator import launch  # noqa: E402
from nanochat.gpt import GPTConfig  # noqa: E402
from nanochat.optim import build_optimizers  # noqa: E402
from nanochat.tokenizer import Tokenizer  # noqa: E402
from nanochat.trainer import State  # noqa: E402
from scripts import base_train  # noqa: E402

T = 64
RUN = {"device": "cpu", "data": "own", "depth": 1, "max_seq_len": T, "total_batch_size": 8 * T, "device_batch_size": 4}
RUN |= {"dtype": "float32", "eval_tokens": 512, "keep_last": 99, "resume": True, "lr_scale": 0.2}
PATIENCE = 50_000  # looks at a run, 2 ms apart; one that takes longer hangs


# ---------------------------------------------------------------------------------------------------------------------
# Runs: children of this process, which has imported everything and started no thread


def in_child(tag: str, action, environment: dict[str, str] | None = None) -> int:
    """Run `action` in a fork, with what it prints in the file <tag>.txt. Returns its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        output = os.open(base_dir() / f"{tag}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        os.environ |= environment or {}
        torch.set_num_threads(1)
        action()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        print(error.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(tag: str, ranks: int = 1, **settings) -> list[int]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    config = base_train.Config(**RUN | {"model_tag": tag} | settings)
    numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    main = functools.partial(launch, functools.partial(base_train.main, config))
    return [in_child(tag, main, place | number) for number in numbers]


def wait(children: list[int]) -> list[int]:
    """Their exit codes. TimeoutError if one hangs."""
    codes: dict[int, int] = {}
    for _ in range(PATIENCE):  # looks, not seconds: this process may be stopped for a while
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(children):
            return [codes[child] for child in children]
        time.sleep(0.002)
    raise TimeoutError(f"{len(children) - len(codes)} of {len(children)} processes hang")


def said(tag: str) -> str:
    return (base_dir() / f"{tag}.txt").read_text()


def finish(tag: str, **settings) -> None:
    codes = wait(start(tag, **settings))
    assert not any(codes), said(tag)[-3000:]


def prepare() -> None:
    """Text in several blocks, and a tokenizer of it."""
    words = ["moon", "river", "stone", "forest", "engine", "letter", "winter", "planet", "Füße", "你好"]
    choose = random.Random(0)
    texts = [(f"story {n}", f"Story {n}: " + " ".join(choose.choices(words, k=60)) + ".") for n in range(1200)]
    dataset.prepare("own", texts, "made by dev/faults.py", "1")
    tokenizer = Tokenizer.train([text for _, text in texts], vocab_size=320)
    tokenizer.save(base_dir() / "tokenizer" / "tokenizer.json")


def begin(tag: str) -> None:
    """A checkpoint at step 0 whose weights are all random: gradients that are nothing but rounding, as those of a fresh
    model are in places, would be blown up by the optimizers, and no two numbers of ranks would agree."""
    tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
    model = random_model(GPTConfig.from_depth(RUN["depth"], tokenizer.vocab_size, T), noise=0.05)
    tensors = checkpoint_manager.tensors_of(build_optimizers(model))
    settings = {
        "stage": "base",
        "state": State(),
        "settings": {"total_batch_size": 8 * T},
        "optimizer_tensors": tensors,
    }
    checkpoint_manager.save(folder_of("base", tag), model, tokenizer, **settings)


def log_of(tag: str) -> list[dict]:
    rows = MetricsLog.read(base_dir() / "logs" / f"base-{tag}.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def check_same(a: str, b: str) -> None:
    """The newest checkpoints of two runs have the same bytes, and so have their logs."""
    newest = [checkpoint_manager.steps(folder_of("base", tag))[0] for tag in (a, b)]
    assert newest[0].name == newest[1].name
    for name in (MODEL, OPTIMIZER):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), f"{name} of {b} differs"
    assert log_of(a) == log_of(b), f"the log of {b} differs"


def check_close(a: str, b: str) -> float:
    """The same up to rounding: losses within 1e-5, weights as test_ranks_do_not_matter has them. The largest difference
    of two weights."""
    for one, other in zip(log_of(a), log_of(b), strict=True):
        assert one["step"] == other["step"] and one.keys() == other.keys()
        assert abs(one.get("loss", 0) / other.get("loss", 1) - 1) < 1e-5 or "loss" not in one, (one, other)
    models = [checkpoint_manager.load("base", tag).model.state_dict() for tag in (a, b)]
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], rtol=1e-3, atol=1e-4)
    return max((weight - models[1][name]).abs().max().item() for name, weight in models[0].items())


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def kills(count: int) -> str:
    """kill -9 at random moments, resumed each time, then SIGTERM and Ctrl-C: the same bytes as the run left alone."""
    settings = {"num_iterations": 20 + 20 * count, "save_every": 3}
    begin("whole"), begin("killed")
    before = time.monotonic()
    finish("whole", **settings)
    span, reached = 2.5 * (time.monotonic() - before) / count, []
    while len(reached) < count:
        (child,) = start("killed", **settings)
        time.sleep(random.uniform(0, span))
        if os.waitpid(child, os.WNOHANG) != (0, 0):  # it came to its end: from the beginning again
            shutil.rmtree(folder_of("base", "killed"))
            begin("killed")
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached.append(checkpoint_manager.steps(folder_of("base", "killed"))[0].name)
    for number in (signal.SIGTERM, signal.SIGINT):
        (base_dir() / "killed.txt").write_text("")
        (child,) = start("killed", **settings)
        while "loss" not in said("killed"):  # the line of progress: it trains
            assert os.waitpid(child, os.WNOHANG) == (0, 0), said("killed")[-2000:]
            time.sleep(0.001)
        os.kill(child, number)
        code, text = wait([child])[0], said("killed")
        assert code == 128 + number and "--resume goes on from there" in text, text[-2000:]
    finish("killed", **settings)
    check_same("whole", "killed")
    return f"{count} kills, left behind at {len(set(reached))} different steps; the same bytes"


def saves(count: int) -> str:
    """kill -9 in the middle of saving: the newest checkpoint that is whole always loads."""
    place = folder_of("base", "saves"), base_dir() / "tokenizer" / "tokenizer.json"
    program = "from test_checkpoint_manager import KILL; exec(KILL)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, place), str(count)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return f"{count} kills, {done.stdout.split()[1]} of them while a folder was half written; all loaded"


def rot() -> str:
    """A bit of the newest checkpoint is lost: --resume says so, goes on from the one before, and ends as it should."""
    settings = {"num_iterations": 20, "save_every": 6, "eval_every": 0}
    begin("sane"), begin("rotten")
    finish("sane", **settings), finish("rotten", **settings)
    weights = checkpoint_manager.steps(folder_of("base", "rotten"))[0] / MODEL
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    finish("rotten", **settings)
    text = said("rotten")
    assert f"{weights} is damaged" in text and "going on from step_000018" in text, text[-2000:]
    check_same("sane", "rotten")
    return "the newest checkpoint was damaged, the one before it was taken; the same bytes"


def ranks() -> str:
    """A run on 2 ranks, gone on with on 1 and on 4 from its tenth step: the same to rounding. So is one on 1 and 4."""
    settings = {"num_iterations": 50, "save_every": 10, "eval_every": 0}
    begin("two")
    finish("two", ranks=2, **settings)
    differences = []
    for number, tag in ((1, "two-one"), (4, "two-four")):
        shutil.copytree(folder_of("base", "two") / "step_000010", folder_of("base", tag) / "step_000010")
        log = base_dir() / "logs" / "base-two.jsonl"
        shutil.copy(log, log.with_name(f"base-{tag}.jsonl"))
        finish(tag, ranks=number, **settings)
        differences.append(check_close("two", tag))
    for number, tag in ((1, "one"), (4, "four")):
        begin(tag)
        finish(tag, ranks=number, **settings)
        differences.append(check_close("two", tag))
    return f"1, 2 and 4 ranks over 50 steps and 2 resumed on 1 and 4: weights within {max(differences):.1e}"


def lost() -> str:
    """One of two ranks is killed: the other says so and ends; the newest checkpoint is whole."""
    settings = {"num_iterations": 4000, "save_every": 5, "eval_every": 0}
    begin("lost")
    children = start("lost", ranks=2, **settings)
    while not (folder_of("base", "lost") / "step_000005").exists():
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0), said("lost")[-2000:]
        time.sleep(0.01)
    os.kill(children[1], signal.SIGKILL)
    before = time.monotonic()
    assert wait(children) == [1, -signal.SIGKILL]
    seconds = time.monotonic() - before
    assert "lost another rank" in said("lost") and "Traceback" not in said("lost"), said("lost")[-3000:]
    newest = checkpoint_manager.latest_valid(folder_of("base", "lost"))
    step = checkpoint_manager.load(path=newest).state.step
    finish("lost", num_iterations=step + 2, eval_every=0)
    return f"the other rank ended after {seconds:.1f} s; went on from step {step}"


def damage() -> str:
    """Bytes in the middle of a shard are lost while the run goes on: it says which file, saves, and goes on later."""
    settings = {"num_iterations": 120, "save_every": 1000, "eval_every": 0}
    begin("sound"), begin("damaged")
    finish("sound", **settings)
    (shard,) = dataset.shards("own", "train")
    content = shard.read_bytes()
    (child,) = start("damaged", **settings)
    spoilt = bytearray(content)
    place = len(content) // 2
    spoilt[place : place + 64] = bytes(64)
    for broken in (bytes(spoilt), content[:place]):
        shard.write_bytes(broken)
        (code,) = wait([child])
        text = said("damaged")
        assert code == 1 and f"{shard} is damaged" in text and "Traceback" not in text, text[-3000:]
        newest = checkpoint_manager.latest_valid(folder_of("base", "damaged"))
        shard.write_bytes(content)
        (base_dir() / "damaged.txt").write_text("")
        (child,) = start("damaged", **settings)
    assert wait([child]) == [0], said("damaged")[-3000:]
    check_same("sound", "damaged")
    return f"a damaged and a cut shard were named, step {int(newest.name[5:])} was saved; mended, the same bytes"


@contextmanager
def no_large_files(size: int):
    """As a disk that is full does: what is longer than `size` bytes is not written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def disk() -> str:
    """No checkpoint fits: training goes on and says so, and the run ends with a message; the first one stays."""
    settings = {"num_iterations": 30, "save_every": 10, "eval_every": 0}
    begin("disk")
    with no_large_files(50_000):  # the weights have more
        children = start("disk", **settings)
    assert wait(children) == [1]
    text = said("disk")
    assert text.count("Cannot save") == 3 and text.count("Training goes on") == 2 and "Traceback" not in text, text
    assert [path.name for path in checkpoint_manager.steps(folder_of("base", "disk"))] == ["step_000000"]
    finish("disk", **settings)
    return "three saves failed and were said to; the run ended with a message, and starts again"


def main(arguments: list[str]) -> None:
    flags = {"--kills": "20", "--seed": "0"} | dict(a.split("=") for a in arguments if a.startswith("--"))
    random.seed(int(flags["--seed"]))
    count = int(flags["--kills"])
    faults = {"kills": lambda: kills(count), "saves": lambda: saves(10 * count)}
    faults |= {"rot": rot, "ranks": ranks, "lost": lost, "damage": damage, "disk": disk}
    names = [a for a in arguments if not a.startswith("-")] or list(faults)
    if unknown := set(names) - set(faults):
        raise SystemExit(f"No fault is called {', '.join(unknown)}. There are: {', '.join(faults)}.")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        assert wait([in_child("prepare", prepare)]) == [0], said("prepare")
        for name in names:
            before = time.monotonic()
            print(f"{name}: {faults[name]()} ({time.monotonic() - before:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
