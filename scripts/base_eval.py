"""The CORE metric of a base model: 22 few-shot tasks.

python -m scripts.base_eval --max_items=100
python -m scripts.base_eval --hf_path=openai-community/gpt2       any causal model of Hugging Face
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from nanochat import checkpoint_manager, hf_model, report
from nanochat.common import Dist, base_dir, compute_dtype, describe_machine, setup
from nanochat.configurator import launch
from nanochat.contamination import explain, mark_seen
from nanochat.core_eval import CORE_TASKS, CoreResult, evaluate_core, read_items
from nanochat.files import read_json, write_json
from nanochat.score import Score, score_console, score_table
from nanochat.sealed import read_manifest


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
    contamination: str | None = None
    """dataset (data/<name>) that the model was trained on: also count the items that share 13 words in a row with it"""
    resume: bool = False
    """keep the scores of the tasks that an interrupted evaluation of this model had finished"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        dtype = compute_dtype(dist.device)
        if cfg.hf_path:
            name = weights = cfg.hf_path
            model, tokenizer = hf_model.load(cfg.hf_path, dist.device, dtype)
        else:
            loaded = checkpoint_manager.load("base", cfg.model_tag, cfg.step, device=dist.device, dtype=dtype)
            name, model, tokenizer = str(loaded.path), loaded.model.eval(), loaded.tokenizer
            weights = read_manifest(loaded.path)["files"]["model.safetensors"]["sha256"]
        start, folder = time.monotonic(), cfg.evals or base_dir() / "evals"
        finished = Finished({"weights": weights, "evals": str(folder), "max_items": cfg.max_items}, cfg.resume, dist)
        result = evaluate_core(
            model,
            tokenizer,
            folder,
            names=cfg.tasks,
            max_per_task=cfg.max_items,
            known=finished.scores,
            keep=finished.add,
            dist=dist,
        )
        if cfg.contamination:
            texts = [read_items(folder, score.name, score.total) for score in result.scores]
            result = replace(result, scores=mark_seen(result.scores, texts, cfg.contamination, dist))
        if dist.is_main:
            show(cfg, name, model.config.sequence_len, result, finished.seconds + time.monotonic() - start, dist)
        dist.barrier()


class Finished:
    """The scores of this evaluation so far, in a file, so that one that is interrupted can go on."""

    def __init__(self, what: dict, resume: bool, dist: Dist):
        self.path, self.what, self.dist = base_dir() / "logs" / "base_eval.json", what, dist
        self.start = time.monotonic()
        kept = read_json(self.path) if resume and self.path.exists() else {}
        kept = dist.gather_objects(kept)[0]  # the ranks must skip the same tasks, also on several machines
        kept = kept if kept.get("what") == what else {}
        self.scores = {name: Score(**score) for name, score in kept.get("scores", {}).items()}
        self.seconds = kept.get("seconds", 0.0)  # of the runs before
        if self.scores:
            dist.print(f"Going on behind {len(self.scores)} finished tasks: {', '.join(self.scores)}")

    def add(self, score: Score) -> None:
        self.scores[score.name] = score
        seconds = self.seconds + time.monotonic() - self.start
        scores = {name: asdict(score) for name, score in self.scores.items()}
        if self.dist.is_main:
            write_json(self.path, {"what": self.what, "seconds": seconds, "scores": scores})


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
    if cfg.contamination:
        notes.append(explain(cfg.contamination))
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
    launch(main, Config)
