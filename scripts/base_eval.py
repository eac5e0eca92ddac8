"""The CORE metric of a base model: 22 few-shot tasks.

python -m scripts.base_eval --max_items=100
python -m scripts.base_eval --hf_path=openai-community/gpt2       any causal model of Hugging Face
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from nanochat import checkpoint_manager, hf_model, report
from nanochat.common import Dist, base_dir, compute_dtype, describe_machine, setup
from nanochat.configurator import parse
from nanochat.core_eval import CORE_TASKS, CoreResult, evaluate_core
from nanochat.score import score_console, score_table


@dataclass(frozen=True)
class Config:
    """The CORE metric of a base model: 22 few-shot tasks."""

    model_tag: str | None = None
    """which model; by default the newest"""
    hf_path: str | None = None
    """a Hugging Face model to evaluate instead: a folder, or a name on the hub"""
    step: int | None = None
    """which of its checkpoints; by default the newest"""
    tasks: tuple[str, ...] = ()
    """names of CORE tasks; by default all whose files are here"""
    max_items: Annotated[int | None, arg(aliases=["-x", "--max_per_task", "--max_problems", "--max-problems"])] = None
    """only so many items of each task, for a quick look"""
    evals: Path | None = None
    """folder of the evaluation sets; by default evals/ under the base directory"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        dtype = compute_dtype(dist.device)
        if cfg.hf_path:
            name, (model, tokenizer) = cfg.hf_path, hf_model.load(cfg.hf_path, dist.device, dtype)
        else:
            loaded = checkpoint_manager.load("base", cfg.model_tag, cfg.step, device=dist.device, dtype=dtype)
            name, model, tokenizer = str(loaded.path), loaded.model.eval(), loaded.tokenizer
        start = time.monotonic()
        result = evaluate_core(
            model,
            tokenizer,
            cfg.evals or base_dir() / "evals",
            names=cfg.tasks,
            max_per_task=cfg.max_items,
            dist=dist,
        )
        if dist.is_main:
            show(cfg, name, model.config.sequence_len, result, time.monotonic() - start, dist)
        dist.barrier()


def show(cfg: Config, name: str, limit: int, result: CoreResult, seconds: float, dist: Dist) -> None:
    """Print the table, and leave a section for the report."""
    label = "CORE" if len(result.scores) == len(CORE_TASKS) else f"CORE of {len(result.scores)} tasks"
    centered = [f"{score.centered:.4f}" for score in result.scores]
    cut = [f"{score.cut:,}" if score.cut else "" for score in result.scores]
    console = score_console()
    console.print(score_table(name, result.scores, centered=centered, cut=cut))
    notes = [f"The files of these tasks are missing: {', '.join(result.missing)}."] if result.missing else []
    if total := sum(score.cut for score in result.scores):
        notes.append(f"{total:,} prompts were longer than the model's {limit:,} tokens and lost their beginning.")
    if cfg.max_items:
        notes.append(f"A quick look: at most {cfg.max_items:,} items of each task.")
    console.print(*notes, f"{label}: {result.core:.4f}", sep="\n", highlight=False)
    report.write_section(
        "base_eval",
        {
            "title": "CORE",
            "seconds": seconds,
            "machine": describe_machine(dist.device),
            "settings": asdict(cfg) | {"checkpoint": name},
            "metrics": {label: result.core},
            "scores": [score.summary() for score in result.scores],
            "notes": notes,
        },
    )


if __name__ == "__main__":
    main(parse(Config))
