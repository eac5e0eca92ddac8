"""The CORE metric of a base model: 22 few-shot tasks.

python -m scripts.base_eval --max_per_task=100
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat import checkpoint_manager, report
from nanochat.common import base_dir, compute_dtype, describe_machine, setup
from nanochat.configurator import parse
from nanochat.core_eval import CORE_TASKS, evaluate_core
from nanochat.score import score_console, score_table


@dataclass(frozen=True)
class Config:
    """The CORE metric of a base model: 22 few-shot tasks."""

    model_tag: str | None = None
    """which model; by default the newest"""
    step: int | None = None
    """which of its checkpoints; by default the newest"""
    tasks: tuple[str, ...] = ()
    """names of CORE tasks; by default all whose files are here"""
    max_per_task: int | None = None
    """only so many items of each task, for a quick look"""
    evals: Path | None = None
    """folder of the evaluation sets; by default evals/ under the base directory"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        loaded = checkpoint_manager.load(
            "base", cfg.model_tag, cfg.step, device=dist.device, dtype=compute_dtype(dist.device)
        )
        start = time.monotonic()
        result = evaluate_core(
            loaded.model.eval(),
            loaded.tokenizer,
            cfg.evals or base_dir() / "evals",
            names=cfg.tasks,
            max_per_task=cfg.max_per_task,
            dist=dist,
        )
        if dist.is_main:
            label = "CORE" if len(result.scores) == len(CORE_TASKS) else f"CORE of {len(result.scores)} tasks"
            centered = [f"{score.centered:.4f}" for score in result.scores]
            cut = [f"{score.cut:,}" if score.cut else "" for score in result.scores]
            console = score_console()
            console.print(score_table(str(loaded.path), result.scores, centered=centered, cut=cut))
            notes = [f"The files of these tasks are missing: {', '.join(result.missing)}."] if result.missing else []
            if any(score.cut for score in result.scores):
                total = sum(score.cut for score in result.scores)
                limit = loaded.model.config.sequence_len
                notes.append(
                    f"{total:,} prompts were longer than the model's {limit:,} tokens and lost their beginning."
                )
            if cfg.max_per_task:
                notes.append(f"A quick look: at most {cfg.max_per_task:,} items of each task.")
            console.print(*notes, f"{label}: {result.core:.4f}", sep="\n", highlight=False)
            report.write_section(
                "base_eval",
                {
                    "title": "CORE",
                    "seconds": time.monotonic() - start,
                    "machine": describe_machine(dist.device),
                    "settings": asdict(cfg) | {"checkpoint": str(loaded.path)},
                    "metrics": {label: result.core},
                    "scores": [score.summary() for score in result.scores],
                    "notes": notes,
                },
            )
        dist.barrier()


if __name__ == "__main__":
    main(parse(Config))
