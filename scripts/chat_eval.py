"""What a chat model can do: accuracy on chat tasks, with intervals, and ChatCORE.

python -m scripts.chat_eval -i sft -a GSM8K MMLU --max_items=200
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from nanochat import checkpoint_manager, report
from nanochat.chat_eval import CHAT_CORE, chat_core, evaluate
from nanochat.common import STAGES, Dist, compute_dtype, describe_machine, setup
from nanochat.configurator import launch
from nanochat.contamination import explain, mark_seen
from nanochat.engine import Engine
from nanochat.execution import SandboxError, accept_level
from nanochat.score import Score, score_console, score_table
from tasks.common import Task, visible_text
from tasks.registry import evaluation_tasks

SAMPLES = {"WhatIs": 10}  # transcripts that go into the report: the first ones, not picked; one of any other task


@dataclass(frozen=True)
class Config:
    """What a chat model can do: accuracy on chat tasks, with intervals, and ChatCORE."""

    source: Annotated[Literal[STAGES], arg(aliases=["-i"])] = "sft"
    """stage of the model"""
    tasks: Annotated[tuple[str, ...], arg(aliases=["-a"])] = ()
    """names of tasks, such as ARC-Easy GSM8K Spelling; by default all that this machine has the files for"""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """which model; by default the newest"""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """which of its checkpoints; by default the newest"""
    max_items: Annotated[int | None, arg(aliases=["-x", "--max_problems", "--max-problems"])] = None
    """only so many items of each task, for a quick look"""
    max_tokens: Annotated[int, arg(aliases=["-m"])] = 512
    """of an answer"""
    temperature: Annotated[float, arg(aliases=["-t"])] = 0.0
    """0 is greedy"""
    num_samples: Annotated[int, arg(aliases=["-n"])] = 1
    """answers to each item of a generative task; it counts as right if one of them is, and pass@k is reported"""
    batch: Annotated[int, arg(aliases=["-b"])] = 32
    """answers at once on a device"""
    seed: int = 0
    """of the samples"""
    contamination: str | None = None
    """dataset (data/<name>) that the model was trained on: also count the items that share 13 words in a row with it"""
    evals: Path | None = None
    """folder of the evaluation sets; by default evals/ under the base directory"""
    sandbox: Literal["strict", "basic"] = "strict"
    """what the model's programs must at least be contained by; basic where the kernel has no Landlock (execution.py)"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    if cfg.num_samples > 1 and cfg.temperature == 0:
        raise SystemExit(
            f"--num_samples={cfg.num_samples} needs --temperature above 0: greedy answers are all the same."
        )
    accept_level(cfg.sandbox)
    with setup(cfg.device) as dist:
        tasks, notes = evaluation_tasks(cfg.tasks, cfg.evals)
        loaded = checkpoint_manager.load(
            cfg.source, cfg.model_tag, cfg.step, device=dist.device, dtype=compute_dtype(dist.device)
        )
        start = time.monotonic()
        engine = Engine(loaded.model, loaded.tokenizer, max_batch=cfg.batch)
        scores = []
        for task in tasks:
            try:
                scores.append(score_task(cfg, engine, loaded.tokenizer, task, dist))
            except SandboxError as error:
                notes.append(f"{task.name} is left out: {error}")
        if cfg.contamination:
            scores = mark_seen(scores, question_texts(tasks, scores), cfg.contamination, dist)
        if dist.is_main:
            show(cfg, loaded, scores, notes, time.monotonic() - start, dist)
        dist.barrier()


def score_task(cfg: Config, engine: Engine, tokenizer, task: Task, dist: Dist) -> Score:
    return evaluate(
        engine,
        tokenizer,
        task,
        max_items=cfg.max_items,
        batch=8 * cfg.batch,
        max_tokens=cfg.max_tokens,
        num_samples=cfg.num_samples,
        temperature=cfg.temperature,
        seed=cfg.seed,
        dist=dist,
    )


def question_texts(tasks: list[Task], scores: list[Score]) -> list[list[str]]:
    """What the user asks in every item that was scored."""
    by_name = {task.name: task for task in tasks}
    items = [[by_name[score.name][i] for i in range(score.total)] for score in scores]
    return [[visible_text(item["messages"][-2]["content"]) for item in group] for group in items]


def show(cfg: Config, loaded, scores: list[Score], notes: list[str], seconds: float, dist: Dist) -> None:
    """Print the table, and leave a section for the report."""
    counted = [score for score in scores if score.name in CHAT_CORE]
    metrics = {"ChatCORE": chat_core(counted)} if len(counted) == len(CHAT_CORE) else {}
    for score in scores:
        if score.cut:
            notes.append(f"{score.name}: {score.cut:,} prompts were longer than the context and lost their beginning.")
        if score.pass_at:
            passes = ", ".join(f"pass@{k} {value:.1%}" for k, value in score.pass_at.items())
            notes.append(f"{score.name}: {passes}; an item counts as right if one of {cfg.num_samples} answers is.")
    if cfg.contamination:
        notes.append(explain(cfg.contamination))
    if cfg.max_items:
        notes.append(f"A quick look: at most {cfg.max_items:,} items of each task.")
    console = score_console()
    console.print(score_table(str(loaded.path), scores))
    console.print(*notes, *(f"{name}: {value:.4f}" for name, value in metrics.items()), sep="\n", highlight=False)
    report.write_section(
        f"chat_eval_{cfg.source}",
        {
            "title": f"Chat evaluation: {cfg.source}",
            "seconds": seconds,
            "machine": describe_machine(dist.device),
            "settings": asdict(cfg) | {"checkpoint": str(loaded.path)},
            "metrics": metrics,
            "scores": [score.summary() for score in scores],
            "samples": [item for score in scores for item in score.items[: SAMPLES.get(score.name, 1)]],
            "notes": notes,
        },
    )


if __name__ == "__main__":
    launch(main, Config)
