"""Pretraining on this machine's CPU, side by side with Karpathy's nanochat: bits per byte against wall clock.

    python dev/bench/train.py --peer PATH_TO_A_CHECKOUT --peer_python PYTHON_WITH_ITS_DEPENDENCIES

Both read the same documents (the embedded corpus) with 4,096 tokens of vocabulary and 256 of context, hold out the same
ones, and run one after the other in processes of their own; the clock includes starting and compiling. Each measures
itself with its own evaluation on the held-out text. The peer has its rates raised by hand for steps this small.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat import dataset
from nanochat.configurator import parse

PEER = [
    *("--device-type=cpu", "--depth=4", "--max-seq-len=256", "--window-pattern=L", "--device-batch-size=16"),
    *("--total-batch-size=4096", "--matrix-lr=0.2", "--embedding-lr=2.0", "--unembedding-lr=0.05"),
    *("--weight-decay=0.05", "--eval-every=100", "--eval-tokens=65536", "--core-metric-every=-1", "--sample-every=-1"),
]
OURS = ["--data=wiki", "--max_seq_len=256", "--total_batch_size=2048", "--device_batch_size=8", "--eval_tokens=131072"]


@dataclass(frozen=True)
class Config:
    """Bits per byte against wall clock, ours and Karpathy's nanochat."""

    peer: Path | None = None
    """checkout of the peer; without it only ours is measured"""
    peer_python: str = sys.executable
    """interpreter that has the peer's dependencies"""
    peer_steps: int = 300
    """optimizer steps of the peer, 4,096 tokens each"""
    depths: tuple[int, ...] = (2, 3, 4)
    """our models to measure"""
    minutes: float = 3.0
    """training time of each of ours"""


def measure(command: list[str], pattern: str, environment: dict, cwd: Path) -> list[tuple[float, float]]:
    """Run a command; (seconds since its start, bits per byte) for each line that the pattern finds."""
    start, points, tail = time.monotonic(), [], []
    environment = os.environ | environment | {"PYTHONUNBUFFERED": "1"}  # lines come when they are printed
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        tail = [*tail[-20:], line]
        if found := re.search(pattern, line):
            points.append((time.monotonic() - start, float(found[1])))
            print(f"    {points[-1][0]:6.0f} s   {points[-1][1]:.4f}", flush=True)
    if process.wait():
        raise SystemExit("".join(tail) + f"{command[2]} failed.")
    return points


def main(cfg: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder, here = Path(folder), Path(__file__).resolve().parents[2]
        os.environ["NANOCHAT_BASE_DIR"] = str(folder / "ours")
        dataset.prepare_wiki()
        run = [sys.executable, "-m"]
        subprocess.run([*run, "scripts.tok_train", "--data=wiki", "--vocab_size=4096"], cwd=here, check=True)
        goal = None
        if cfg.peer:
            theirs = folder / "theirs"
            target = theirs / "base_data_climbmix"
            target.mkdir(parents=True)
            for split, number in (("train", 0), ("val", 9)):  # the peer validates on its last shard
                (shard,) = dataset.shards("wiki", split)
                shutil.copy(shard, target / f"shard_{number:05d}.parquet")
            environment = {"NANOCHAT_BASE_DIR": str(theirs), "PYTHONPATH": str(cfg.peer.resolve())}
            environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
            peer = [cfg.peer_python, "-m"]
            tokenize = [*peer, "scripts.tok_train", "--vocab-size=4096"]
            subprocess.run(tokenize, cwd=cfg.peer, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
            print(f"Karpathy's nanochat, depth 4, {cfg.peer_steps} steps")
            command = [*peer, "scripts.base_train", f"--num-iterations={cfg.peer_steps}", *PEER]
            goal = measure(command, r"Validation bpb: ([\d.]+)", environment, cfg.peer)[-1]
        for depth in cfg.depths:
            print(f"ours, depth {depth}, {cfg.minutes} minutes of training")
            command = [*run, "scripts.base_train", f"--depth={depth}", f"--minutes={cfg.minutes}", *OURS]
            points = measure(command, r"val_bpb ([\d.]+)", {}, here)
            reached = next((seconds for seconds, bpb in points if goal and bpb <= goal[1]), None)
            if reached:
                ratio = goal[0] / reached
                print(f"    {goal[1]:.4f} after {reached:.0f} s, the peer after {goal[0]:.0f} s: {ratio:.2f} x")


if __name__ == "__main__":
    main(parse(Config))
