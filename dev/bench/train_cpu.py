"""Pretraining on this machine's CPU, side by side with Karpathy's nanochat: speed, first step, time to a quality.

    python -m dev.bench.train_cpu --peer PATH_TO_A_CHECKOUT --peer_python PYTHON_WITH_ITS_DEPENDENCIES
    python -m dev.bench.train_cpu --goal 1.5569

Both read the same documents (the embedded corpus) with 4,096 tokens of vocabulary and 256 of context, hold out the same
ones, and run one after the other in processes of their own; the clock includes starting and compiling. Each measures
itself with its own evaluation on the held-out text. The peer has its rates raised by hand for steps this small.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat import dataset
from nanochat.common import MetricsLog, base_dir, describe_machine, training_dtype
from nanochat.configurator import launch
from nanochat.gpt import GPT, GPTConfig
from nanochat.products import product

HERE = Path(__file__).resolve().parents[2]
PEER = [
    *("--device-type=cpu", "--depth=4", "--max-seq-len=256", "--window-pattern=L", "--device-batch-size=16"),
    *("--total-batch-size=4096", "--matrix-lr=0.2", "--embedding-lr=2.0", "--unembedding-lr=0.05"),
    *("--weight-decay=0.05", "--eval-every=100", "--eval-tokens=65536", "--core-metric-every=-1", "--sample-every=-1"),
]
OURS = ["--data=wiki", "--max_seq_len=256", "--device=cpu", "--keep_last=1"]
SPEED = ["--depth=4", "--total_batch_size=4096", "--eval_every=0", "--save_every=0"]
MODEL = GPTConfig.from_depth(4, 4096, 256)
LINES = r"(tok/s)|([\d.]+) bits per byte"  # of ours: progress, and what an evaluation found


@dataclass(frozen=True)
class Config:
    """Pretraining on this machine's CPU, side by side with Karpathy's nanochat."""

    peer: Path | None = None
    """checkout of the peer; without it only ours is measured"""
    peer_python: str = sys.executable
    """interpreter that has the peer's dependencies"""
    peer_steps: int = 300
    """optimizer steps of the peer, 4,096 tokens each"""
    goal: float | None = None
    """bits per byte to reach; by default what the peer ends with"""
    steps: int = 40
    """of ours, in each type of number, of which the last three quarters count for the speed"""
    runs: int = 3
    """of ours towards the goal"""
    depth: int = 2
    """of the model that is to reach the goal"""
    minutes: float = 2.2
    """of training that it is given for that"""


def watch(command: list[str], environment: dict, cwd: Path, pattern: str) -> list[tuple[float, re.Match]]:
    """Run a command; (seconds since its start, match) for each line in which the pattern is found."""
    start, found, tail = time.monotonic(), [], []
    environment = os.environ | environment | {"PYTHONUNBUFFERED": "1"}  # lines come when they are printed
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        tail = [*tail[-20:], line]
        if match := re.search(pattern, line):
            found.append((time.monotonic() - start, match))
    if process.wait():
        raise SystemExit("".join(tail) + f"{' '.join(command)} failed.")
    return found


def products(dtype: torch.dtype) -> float:
    """FLOP/s of the largest matrix product of a training step, the best of twenty."""
    x, w = torch.ones(4096, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        product(x, w)
        seconds.append(time.perf_counter() - start)
    return 2 * len(x) * w.numel() / min(seconds)


def peer(cfg: Config, folder: Path) -> tuple[float, float]:
    """Its bits per byte at the end, and the seconds from its start to them."""
    target = folder / "base_data_climbmix"
    target.mkdir(parents=True)
    for split, number in (("train", 0), ("val", 9)):  # the peer validates on its last shard
        (shard,) = dataset.shards("wiki", split)
        shutil.copy(shard, target / f"shard_{number:05d}.parquet")
    path = os.pathsep.join([str(cfg.peer.resolve()), os.environ.get("PYTHONPATH", "")])
    environment = {"NANOCHAT_BASE_DIR": str(folder), "PYTHONPATH": path}
    python = [cfg.peer_python, "-m"]
    watch([*python, "scripts.tok_train", "--vocab-size=4096"], environment, cfg.peer, "$^")
    command = [*python, "scripts.base_train", f"--num-iterations={cfg.peer_steps}", *PEER]
    lines = watch(command, environment, cfg.peer, r"^step \d.*tok/sec: ([\d,]+)|Validation bpb: ([\d.]+)")
    steps = [(at, float(match[1].replace(",", ""))) for at, match in lines if match[1]]
    evaluations = [(at, float(match[2])) for at, match in lines if match[2]]
    speed_line("Karpathy's nanochat, fp32, compiled", [speed for _, speed in steps[10:]], steps[0][0], torch.float32)
    for at, bpb in evaluations[1:]:
        print(f"    {at:6.1f} s   {bpb:.4f} bits per byte")
    return evaluations[-1][1], evaluations[-1][0]


def speed_line(name: str, speeds: list[float], first_step: float, dtype: torch.dtype) -> None:
    tenths = statistics.quantiles(speeds, n=10)
    share = statistics.median(speeds) * GPT(MODEL).flops_per_token() / products(dtype)
    print(
        f"{name}: {statistics.median(speeds):,.0f} tokens/s (a tenth below {tenths[0]:,.0f}, a tenth above "
        f"{tenths[-1]:,.0f}), {share:.0%} of its matrix products; first step after {first_step:.1f} s",
        flush=True,
    )


def ours(flags: list[str]) -> tuple[float, list[float], list[tuple[float, float]]]:
    """(seconds to the first step, tokens/s of each step, (seconds, bits per byte) of each evaluation)."""
    command = [sys.executable, "-m", "scripts.base_train", *OURS, *flags, "--model_tag=bench"]
    lines = watch(command, {}, HERE, LINES)
    first = next(at for at, match in lines if match[1])
    rows = [row for row in MetricsLog.read(base_dir() / "logs" / "base-bench.jsonl") if "tokens" in row]
    speeds = [(b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]) for a, b in zip(rows, rows[1:])]
    return first, speeds, [(at, float(match[2])) for at, match in lines if match[2]]


def main(cfg: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = str(Path(folder) / "ours")
        machine = describe_machine(torch.device("cpu"))
        print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {machine['commit']}")
        for dtype in (torch.float32, torch.bfloat16):
            print(f"matrix products in {dtype}: {products(dtype) / 1e9:,.0f} GFLOP/s")
        dataset.prepare_wiki()
        tokenize = [sys.executable, "-m", "scripts.tok_train", "--data=wiki", "--vocab_size=4096"]
        subprocess.run(tokenize, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        goal, theirs = cfg.goal, None
        if cfg.peer:
            reached, theirs = peer(cfg, Path(folder) / "theirs")
            goal = goal or reached
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            first, speeds, _ = ours([*SPEED, f"--num_iterations={cfg.steps}", f"--dtype={name}"])
            speed_line(f"ours, {name}", speeds[cfg.steps // 4 :], first, dtype)
        for _ in range(cfg.runs if goal else 0):
            flags = [f"--depth={cfg.depth}", f"--minutes={cfg.minutes}", "--save_every=0"]
            first, speeds, evaluations = ours([*flags, "--device_batch_size=8", "--eval_tokens=16384"])
            at, bpb = evaluations[-1]
            ratio = f", {theirs / at:.1f} times as fast as the peer" if theirs and bpb <= goal else ""
            print(
                f"ours, depth {cfg.depth}, {training_dtype(torch.device('cpu'))}: first step after {first:.1f} s, "
                f"{bpb:.4f} bits per byte after {at:.1f} s, goal {goal:.4f}{ratio}",
                flush=True,
            )


if __name__ == "__main__":
    launch(main, Config)
