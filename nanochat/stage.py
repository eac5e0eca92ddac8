"""What the training scripts share: flags, resuming, and the hooks that log, evaluate, save and show.

In: a model, its data and its rates. Out: checkpoints, a log of metrics, a section of the report.
"""

import math
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from nanochat import checkpoint_manager, report
from nanochat.common import (
    Dist,
    MetricsLog,
    Progress,
    cannot_compile,
    compute_dtype,
    describe_machine,
    format_seconds,
    peak_memory,
    training_dtype,
)
from nanochat.dataloader import Batches, ChatSource
from nanochat.dial import rehearse
from nanochat.gpt import GPT
from nanochat.gpus import peak_flops
from nanochat.lora import LowRankAdamW, merged
from nanochat.loss_eval import evaluate_loss
from nanochat.optim import build_optimizers
from nanochat.rows import show_rows
from nanochat.runlog import open_log, shown
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import BadData, RunDiverged, State, Step, every, fit, next_token_loss
from nanochat.watch import write_samples

NOT_METRICS = {"step", "multiplier", "seconds", "loss", "tokens", "progress", "epoch", "samples"}  # of what a log has


@dataclass(frozen=True)
class RunConfig:
    device: str = "auto"
    """auto, cuda, mps or cpu"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """what the model computes in while it is trained; auto: bfloat16 where the hardware multiplies it faster"""
    seed: int = 0
    """of the weights and of the order of the data"""
    model_tag: str | None = None
    """name of the model's folder; by default d and its depth"""
    resume: bool = False
    """go on from the newest valid checkpoint of this model, if there is one"""
    num_iterations: int | None = None
    """stop after this many optimizer steps"""
    minutes: float | None = None
    """stop after this much time, whatever the machine's speed; the schedule follows the clock"""
    device_batch_size: int | None = None
    """rows at once on a device; by default as many as fit on a CUDA GPU, on a CPU those of 2,048 tokens, on Apple's GPU
    of 16,384; the result is the same"""
    lr_scale: float = 1.0
    """multiplies all learning rates"""
    eval_every: int | None = None
    """steps between evaluations, with one at the end; by default a tenth of the run; 0: never"""
    save_every: int | None = None
    """steps between checkpoints, with one at the end; by default a tenth of the run; 0: never"""
    keep_last: int = 2
    """checkpoints to keep"""
    run: str | None = None
    """name of the run in Weights & Biases, if it is to be there too; needs pip install 'nanochat[wandb]'"""


def device_rows(cfg: RunConfig, model: GPT, T: int, most: int, dist: Dist) -> int:
    """Rows of a micro-batch: what the flag says, else found by trying on a GPU, the same on every rank. The model has
    its optimizers by now, so their memory is taken. It is tried uncompiled, which takes more than compiled."""
    if cfg.device_batch_size or dist.device.type != "cuda":
        return cfg.device_batch_size or max(1, {"cpu": 2048, "mps": 16384}[dist.device.type] // T)
    most = 2 ** (max(1, most).bit_length() - 1)

    def attempt(rows: int) -> bool:
        idx = torch.zeros(rows, T, dtype=torch.int64, device=dist.device)
        torch.cuda.reset_peak_memory_stats(dist.device)
        for _ in range(2):  # the second adds to gradients that are there
            model(idx, targets=idx).backward()
        return torch.cuda.max_memory_allocated(dist.device) < 0.85 * torch.cuda.mem_get_info(dist.device)[1]

    found = largest_that_fits(most, attempt, lambda: model.zero_grad(set_to_none=True))
    torch.cuda.empty_cache()
    rows = int(dist.all_reduce(torch.tensor(float(found), device=dist.device), "min"))
    dist.print(f"{rows} rows at once on each GPU, the most that fit of up to {most}")
    return rows


def largest_that_fits(most: int, attempt: Callable[[int], bool], clear: Callable[[], None]) -> int:
    """`most`, halved until `attempt` says that it fits. SystemExit if not even 1 does."""
    rows = most
    while rows:
        try:
            fits = attempt(rows)
        except torch.OutOfMemoryError:
            fits = False
        clear()
        if fits:
            return rows
        rows //= 2
    raise SystemExit("Not even one row fits the memory of this GPU. Choose a smaller --depth or --max_seq_len.")


@dataclass(frozen=True)
class TuneConfig(RunConfig):
    lora_rank: int = 0
    """above 0: train only products of this rank beside the matrices, for a large model on a small GPU (lora.py)"""


def tuning_optimizers(cfg: TuneConfig, model: GPT, dist: Dist) -> list:
    """Those of all weights; with --lora_rank one for the products only, which are merged when the model is saved."""
    if not cfg.lora_rank:  # in fp32, also the weights that a stage with --lora_rank kept in bf16
        return build_optimizers(model.float(), dist, cfg.lr_scale)
    beneath = torch.float32 if cfg.dtype == "float32" else compute_dtype(dist.device)
    return [LowRankAdamW(model, cfg.lora_rank, beneath, dist, cfg.lr_scale, cfg.seed)]


def resume_point(cfg: RunConfig, stage: str, tag: str, dist: Dist) -> checkpoint_manager.Checkpoint | None:
    """The checkpoint to go on from if --resume says so and there is one."""
    if not cfg.resume:
        return None
    path = checkpoint_manager.latest_valid(checkpoint_manager.folder_of(stage, tag), dist)
    return checkpoint_manager.load(path=path, device=dist.device) if path else None


def finished(checkpoint: checkpoint_manager.Checkpoint | None, dist: Dist) -> bool:
    """Whether there is nothing left to train, and says so."""
    if checkpoint is None or checkpoint.state.progress < 1:
        return False
    dist.print(f"Already trained: {checkpoint.path}. Leave out --resume to start over.")
    return True


@contextmanager
def judged(model: GPT, device: torch.device):
    """While the model is evaluated it computes as it will when it is used."""
    trained_in = model.compute_dtype
    model.eval()
    model.compute_dtype = compute_dtype(device)
    yield
    model.compute_dtype = trained_in
    model.train()


def in_words(values: dict[str, float]) -> str:
    """What an evaluation found, for a reader: {"val_bpb": 1.5, "loss A": 2} -> "1.5000 bits per byte of held-out text,
    held-out loss: A 2.0000"."""
    bpb = [f"{value:.4f} bits per byte of held-out text" for name, value in values.items() if name == "val_bpb"]
    losses = [f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss ")]
    rest = [f"{n} {value:.4f}" for n, value in values.items() if n != "val_bpb" and not n.startswith("loss ")]
    return ", ".join([*bpb, *rest, *([f"held-out loss: {', '.join(losses)}"] if losses else [])])


@contextmanager
def stop_signals():
    """SIGINT and SIGTERM ask the run to save and stop, a second one stops it at once. Yields those received."""
    received: list[int] = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    cfg: RunConfig,
    dist: Dist,
    *,
    stage: str,
    tag: str,
    title: str,
    model: GPT,
    tokenizer: Tokenizer,
    optimizers: list,
    batches,
    schedule: Callable[[float], float],
    num_iterations: int | None,
    evaluate: Callable[[GPT, bool], dict[str, float]],
    checkpoint: checkpoint_manager.Checkpoint | None = None,
    loss_fn=next_token_loss,
    metrics: dict | None = None,
) -> State:
    """Train one stage from beginning or resume point to end. `evaluate(model, last)` returns scalars to log.

    SystemExit if the run cannot go on, with code 128 + signal number if a signal stopped it; it has saved by then.
    """
    state = checkpoint.state if checkpoint else State()
    if checkpoint:
        checkpoint_manager.load_optimizers(checkpoint.path, optimizers)
        dist.print(f"{title}: going on from {checkpoint.path.name}")
    model.compute_dtype = training_dtype(dist.device, cfg.dtype)
    # The answers of RL have all lengths, and a GPU would be compiled for each.
    forward = model if stage == "rl" else model.compiled()
    if dist.device.type == "cuda" and cannot_compile():
        dist.print(cannot_compile())
    folder = checkpoint_manager.folder_of(stage, tag)
    log = open_log(cfg, stage, tag, state.step, dist)
    progress = Progress(title, 1.0, "%", dist, done=state.progress)
    with (
        stop_signals() as received,
        checkpoint_manager.Saver(
            folder, tokenizer, stage=stage, settings=cfg, keep_last=cfg.keep_last, dist=dist
        ) as saver,
    ):

        def evaluate_and_log(step: Step) -> None:
            with judged(model, dist.device):
                values = evaluate(model, step.last)
                samples = write_samples(model, tokenizer, stage) if dist.is_main else []
            log.log(step.state.step, **values, samples=samples)
            progress.message(f"{title}: step {step.state.step:,}, {in_words(values)}")

        def save(state: State) -> None:
            try:
                saver.wait()
            except checkpoint_manager.SaveError as error:  # so does the next save, if the disk is still full
                progress.message(f"{error} Training goes on.")
            saver.save(merged(model), state, checkpoint_manager.tensors_of(optimizers))

        try:
            fit(
                forward,
                optimizers,
                batches,
                schedule,
                state,
                loss_fn=loss_fn,
                hooks=[
                    shown(log, progress, batches, title, state),
                    every(cfg.eval_every, evaluate_and_log, state.progress),
                    every(cfg.save_every, lambda step: save(step.state), state.progress, when_stopped=True),
                ],
                dist=dist,
                num_iterations=num_iterations,
                minutes=cfg.minutes,
                should_stop=lambda: bool(received),
            )
            saver.wait()
        except BadData as error:
            save(state)
            saver.wait()
            raise SystemExit(f"\n{error}\nSaved at step {state.step}; --resume goes on from there.") from error
        except (checkpoint_manager.SaveError, RunDiverged) as error:
            raise SystemExit(f"\n{error}") from error
    if received:
        dist.print(f"\nStopped at step {state.step} and saved. The same command with --resume goes on from there.")
        raise SystemExit(128 + received[0])
    if dist.is_main:
        _write_section(cfg, stage, title, model, state, log.path, dist, metrics or {})
    dist.print(f"{title}: {state.step:,} steps in {format_seconds(state.seconds)}, saved in {folder}")
    return state


@dataclass(frozen=True)
class ChatConfig(TuneConfig):
    source_step: int | None = None
    """step of the model to start from; by default its newest"""
    max_seq_len: int | None = None
    """tokens of context; by default that of the model to start from"""
    total_batch_size: int | None = None
    """tokens of a whole optimizer step; by default that of the model to start from"""
    epochs: int = 1
    """passes through the mixture; with --minutes or --num_iterations as many as fit"""
    dry_run: bool = False
    """only show what is learned from, and rehearse a step, an evaluation, an answer and a checkpoint"""


def train_chat(
    cfg: ChatConfig, dist: Dist, *, stage: str, source: str, title: str, schedule, train_on, validate_on
) -> State | None:
    """Midtraining and SFT: go on from stage `source` with the conversations of a mixture. None if already done.

    validate_on: name -> conversations whose loss is evaluated.
    """
    tag = cfg.model_tag or checkpoint_manager.find(source).parent.name
    checkpoint = resume_point(cfg, stage, tag, dist)
    if finished(checkpoint, dist):
        return None
    start = checkpoint or checkpoint_manager.load(source, tag, cfg.source_step, device=dist.device)
    T = cfg.max_seq_len or start.model.config.sequence_len
    rows = whole_rows(cfg.total_batch_size or start.settings["total_batch_size"], T, dist)
    optimizers = tuning_optimizers(cfg, start.model, dist)
    start.model.compute_dtype = training_dtype(dist.device, cfg.dtype)
    at_once = device_rows(cfg, start.model, T, rows // dist.world_size, dist)
    # What the next stage starts from.
    cfg = replace(cfg, max_seq_len=T, total_batch_size=rows * T, device_batch_size=at_once)
    start.model.config = replace(start.model.config, sequence_len=T)
    open_ended = cfg.minutes is not None or cfg.num_iterations is not None
    batches = Batches(
        ChatSource(start.tokenizer, train_on, T, cfg.seed),
        rows,
        cfg.device_batch_size,
        dist,
        epochs=None if open_ended else cfg.epochs,
        position=checkpoint.state.data if checkpoint else None,
    )

    def evaluate(model: GPT, last: bool) -> dict[str, float]:
        values = {}
        for name, conversations in validate_on.items():
            held_out = Batches(
                ChatSource(start.tokenizer, conversations, T, None), dist.world_size * 8, 8, dist, epochs=1
            )
            values[f"loss {name}"] = evaluate_loss(model, held_out, dist)
        counts = {"left out": batches.position["skipped"], "cut": batches.position["cut"]}
        return values | {f"conversations {name}": count for name, count in counts.items() if count}

    run = {"model": start.model, "tokenizer": start.tokenizer, "optimizers": optimizers, "batches": batches}
    run |= {"evaluate": evaluate, "stage": stage, "dist": dist}
    if cfg.dry_run:
        show_rows(batches, start.tokenizer, dist)
        return rehearse(**run, settings=cfg, num_iterations=cfg.num_iterations or batches.steps())
    state = train(
        cfg, **run, tag=tag, title=title, schedule=schedule, num_iterations=cfg.num_iterations, checkpoint=checkpoint
    )
    if batches.position["skipped"] or batches.position["cut"]:
        dist.print(
            f"{batches.position['cut']:,} conversations longer than {T} tokens were cut after an answer, "
            f"{batches.position['skipped']:,} had no answer that fits and were left out."
        )
    return state


def whole_rows(batch_tokens: int, T: int, dist: Dist) -> int:
    """Rows of T tokens in a step of about batch_tokens, the same number on every rank. SystemExit if that is none."""
    rows = round(batch_tokens / T / dist.world_size) * dist.world_size
    if rows == 0:
        raise SystemExit(
            f"--total_batch_size={batch_tokens} is less than one row of {T} tokens on each of {dist.world_size} ranks. "
            f"Choose at least {T * dist.world_size}."
        )
    return rows


def _write_section(cfg, stage, title, model, state: State, log_path, dist: Dist, metrics: dict) -> None:
    rows = MetricsLog.read(log_path)
    speed = state.tokens / max(state.seconds, 1e-9)
    peak = peak_flops(dist.device)
    metrics = metrics | {
        "parameters": sum(p.numel() for p in merged(model).parameters()),
        "steps": state.step,
        "tokens": state.tokens,
        "tokens_per_second": speed,
        "peak_memory": peak_memory(dist.device),
    }
    if (trained := sum(p.numel() for p in model.parameters() if p.requires_grad)) < metrics["parameters"]:
        metrics["parameters trained"] = trained
    if peak:
        metrics["mfu"] = speed * model.flops_per_token() / (peak * dist.world_size)
    if state.skipped:
        metrics["steps skipped (loss jumped or not finite)"] = state.skipped
    names = sorted({name for row in rows for name in row} - NOT_METRICS)
    for name in names:
        metrics[name] = [row[name] for row in rows if name in row][-1]
    curves = []
    for name in ("loss", *names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        curves.append(_curve("training loss" if name == "loss" else name, _unit(name), *_smooth(points)))
    section = {
        "title": title,
        "seconds": state.seconds,
        "machine": describe_machine(dist.device) | {"ranks": dist.world_size},
        "settings": asdict(cfg),
        "metrics": metrics,
        "curves": curves,
    }
    report.write_section(checkpoint_manager.SCRIPTS[stage], section)


def _unit(name: str) -> str:
    """What the numbers of a metric are."""
    units = {
        "conversations": "conversations",
        "reward": "share",
        "ended": "share",
        "accuracy": "share",
        "length": "tokens",
    }
    return "bits per byte" if name.endswith("bpb") else units.get(name.split()[0], "nats a token")


def _curve(name: str, y_label: str, x=(), y=()) -> dict:
    return {"name": name, "x_label": "step", "y_label": y_label, "x": list(x), "y": list(y)}


def _smooth(points: list[tuple[int, float]], most: int = 300) -> tuple[list, list]:
    """At most `most` points, each the mean of its stretch; what is not finite is left out."""
    points = [p for p in points if math.isfinite(p[1])]
    width = -(-len(points) // most) or 1
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [g[-1][0] for g in groups], [sum(v for _, v in g) / len(g) for g in groups]
