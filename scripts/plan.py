"""The sizes of the quickstart, for this machine and the time that there is.

bash quickstart.sh --minutes 30        (which runs: eval "$(python -m scripts.plan --minutes 30)")
"""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.common import STAGES, base_dir, pick_device, training_dtype
from nanochat.configurator import launch
from nanochat.files import read_json, write_json
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import horizon


@dataclass(frozen=True)
class Config:
    """From an empty folder to a chat with a model that you trained yourself. Run it again to go on where it stopped."""

    depth: int | None = None
    """layers of the model; by default what fits the machine and the time"""
    data: Path | None = None
    """your own text, a file or folder of .txt, .md, .html, .jsonl or .parquet; by default Wikipedia's vital articles"""
    minutes: float = 12.0
    """the time that it may take after installing"""
    fresh: bool = False
    """start over instead of going on"""


FLOPS_A_CORE = {torch.float32: 50e9, torch.bfloat16: 80e9}  # a second, of Zen 4 in training; others: a factor of two
BASE, MID, SFT = 0.36, 0.43, 0.21  # of the time for training
VOCABULARY, CONTEXT = 4096, 256
MOST_TEXT = 3.3 * 1.34e6  # tokens: 3.3 passes through the embedded corpus
DEEPEST = 5  # of so little text: after an hour depth 8 was worse than depth 4 after ten minutes (dev/LOG.md)


def sizes_for(flops: float, depth: int | None = None) -> tuple[int, int]:
    """(depth, tokens of a step) on a CPU. Unless it is given, the depth is that of the smallest model with which these
    FLOPs pay for no more than MOST_TEXT. In so little time small ones are better, but what reads the same text more
    often learns it by heart: depth 2 is best for 2 minutes, 3 for 3 and for 4, 4 for 10, 5 for 21 (dev/LOG.md)."""
    for layers in [depth] if depth else range(2, DEEPEST + 1):
        with torch.device("meta"):
            model = GPT(GPTConfig.from_depth(layers, VOCABULARY, CONTEXT))
        tokens, batch = horizon(model, flops=flops)
        if tokens <= MOST_TEXT:
            break
    return layers, max(batch, CONTEXT)


def plan(cfg: Config, device: str) -> dict[str, str]:
    """Every size that quickstart.sh needs, as text. It must not change when it is asked again: so no clock is asked."""
    overhead = min(1.8, cfg.minutes / 4)  # starting, tokenizer and evaluation, minutes on two slow cores
    training = cfg.minutes - overhead
    if device == "cpu":
        flops = 60 * training * BASE * torch.get_num_threads() * FLOPS_A_CORE[training_dtype(torch.device("cpu"))]
        depth, batch = sizes_for(flops, cfg.depth)
    else:
        depth, batch = cfg.depth or {"mps": 4, "cuda": 6}[device] + (cfg.minutes >= 30), 16384
    return {
        "DATA": "own" if cfg.data else "wiki",
        "SOURCE": str(cfg.data.expanduser().resolve()) if cfg.data else "",
        "DEPTH": str(depth),
        "VOCABULARY": str(VOCABULARY),
        "CONTEXT": str(CONTEXT),
        "BATCH": str(batch),
        "BASE_MINUTES": f"{training * BASE:.2f}",
        "MID_MINUTES": f"{training * MID:.2f}",
        "SFT_MINUTES": f"{training * SFT:.2f}",
        "ITEMS": "200" if device == "cpu" else "500",
    }


def main(cfg: Config) -> None:
    if cfg.data and not cfg.data.expanduser().exists():
        raise SystemExit(
            f"--data {cfg.data} does not exist. Give a file or folder with .txt, .md, .html, .jsonl or .parquet."
        )
    if cfg.minutes < 1 or (cfg.depth is not None and cfg.depth < 1):
        raise SystemExit("--minutes and --depth must be at least 1.")
    sizes = plan(cfg, pick_device().type)
    folder = base_dir() / "quickstart"
    before = folder / "plan.json"
    if cfg.fresh or not before.exists() or read_json(before) != sizes:
        # What an earlier quickstart with other settings made is not gone on with.
        shutil.rmtree(folder, ignore_errors=True)
        for stage in STAGES:
            shutil.rmtree(base_dir() / "checkpoints" / stage / "quickstart", ignore_errors=True)
        shutil.rmtree(base_dir() / "report", ignore_errors=True)
        write_json(before, sizes)
    for name, value in (sizes | {"DONE": str(folder)}).items():
        print(f"{name}={shlex.quote(value)}")


if __name__ == "__main__":
    launch(main, Config, command="bash quickstart.sh")
