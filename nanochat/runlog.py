"""What a run of training writes while it goes on: its log of metrics, a line on the terminal, wandb if it is asked for.

In: the run's flags, and each Step. Out: rows of logs/<stage>-<tag>.jsonl, which everything else is read from.
"""

import importlib.util
import re
from dataclasses import asdict
from pathlib import Path

from nanochat.common import Dist, MetricsLog, Progress, base_dir
from nanochat.trainer import Hook, State, Step


def open_log(cfg, stage: str, tag: str, step: int, dist: Dist) -> MetricsLog:
    """The log of a run. SystemExit on every rank if it cannot be written: then nor can a checkpoint."""
    log, problem = None, None
    try:
        log = MetricsLog(base_dir() / "logs" / f"{stage}-{tag}.jsonl", step, dist)
    except OSError as error:
        problem = f"Cannot write to {base_dir()}: {error.strerror}. NANOCHAT_BASE_DIR says where all files go."
    if problem := dist.gather_objects(problem)[0]:
        raise SystemExit(problem)
    if cfg.run:
        log.copy_to = weights_and_biases(cfg, f"{stage}-{tag}", log.path, step > 0, dist)
    return log


def weights_and_biases(cfg, name: str, path: Path, resumed: bool, dist: Dist):
    """A function (numbers, step) that sends what is logged to wandb, of the main rank only. WANDB_MODE=offline keeps it
    on this machine."""
    if importlib.util.find_spec("wandb") is None:
        raise SystemExit(
            f"--run={cfg.run} needs the package wandb: pip install 'nanochat[wandb]'. All metrics are in {path} anyway."
        )
    if not dist.is_main:
        return None
    import wandb

    unique = re.sub(r"[^\w-]", "-", f"{cfg.run}-{name}")
    options = {"id": unique, "resume": "allow" if resumed else None, "config": asdict(cfg), "dir": str(path.parent)}
    run = wandb.init(project="nanochat", name=f"{cfg.run} {name}", **options)
    return lambda numbers, step: run.log(numbers, step=step)


def shown(log: MetricsLog, progress: Progress, batches, title: str, start: State) -> Hook:
    """A hook that logs every step, and says what is worth a line."""
    epoch, skipped = start.data.get("epoch", 0), start.skipped

    def show(step: Step) -> None:
        nonlocal epoch, skipped
        state = step.state
        if state.data.get("epoch", 0) > epoch:
            epoch = state.data["epoch"]
            progress.message(f"{title}: step {state.step:,} begins pass {epoch + 1} over the data")
        if state.skipped > skipped:
            skipped = state.skipped
            progress.message(f"{title}: step {state.step:,} was skipped, its loss of {step.loss:.3f} is out of line")
        log.log(
            state.step,
            loss=step.loss,
            **getattr(batches, "metrics", {}),
            multiplier=step.multiplier,
            seconds=round(state.seconds, 3),
            tokens=state.tokens,
            progress=round(state.progress, 5),
            **({"epoch": epoch} if "epoch" in state.data else {}),  # passes that are complete
        )
        speed = f"{step.tokens_per_second:,.0f} tok/s"
        progress.update(state.progress, step=f"{state.step:,}", loss=f"{step.loss:.3f}", speed=speed)

    return show
