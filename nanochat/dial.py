"""What --depth decides, said before the first step: every derived value with its rule, and what the run will cost.

In: a model, its optimizers, the size of a step. Out: a table on the terminal; with --dry_run a rehearsal.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nanochat import attention, checkpoint_manager
from nanochat.common import Dist, compute_dtype, describe_machine, format_seconds, peak_memory, synchronize
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpus import peak_flops, price_an_hour
from nanochat.lora import merged
from nanochat.muon import Muon
from nanochat.optim import families
from nanochat.products import prefers_onednn, product
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import State, next_token_loss, train_step

MATMUL = {"cpu": 1024, "mps": 2048, "cuda": 8192}  # side of the matrices that the device is timed with
# Of a device's own matrix products, what training reaches, by channels: 2 cores of Zen 4, in bf16 in runs of minutes
# with their evaluations, in fp32 without. Also for GPUs that are not in the table of gpus.py.
SHARE_ON_CPU = {
    torch.float32: ((128, 0.50), (256, 0.56)),
    torch.bfloat16: ((128, 0.25), (192, 0.33), (256, 0.40)),
}
SHARE_BY_ONEDNN = ((128, 0.31), (256, 0.39))  # where products.py doubles those in fp32: Zen 5
# Of the published FLOP/s, by channels: from the tokens a second that Karpathy's nanochat reaches in bf16 on H100 at
# depths 8, 12, 18 and 24, times our FLOPs a token. His MFU is higher: he counts what the causal mask leaves out, too.
SHARE_BY_WIDTH = ((512, 0.35), (768, 0.39), (1152, 0.44), (1536, 0.47))
# Numbers that the layers keep for the backward pass, for each channel of a token. torch.compile saves many of them:
# 18 is the one with which the published batch sizes fit on GPUs of 80 and 24 GB (tests/test_forecast.py).
KEPT = {"cpu": 30, "mps": 30, "cuda": 18}


@functools.cache
def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product on this device, the best that there was in a third of a second, since processors take
    a while to wake up. Of random numbers: a GPU multiplies ones faster, since less in it switches."""
    a = torch.rand(MATMUL[device.type], MATMUL[device.type], device=device, dtype=dtype)
    begin, times = time.perf_counter(), []
    while len(times) < 6 or time.perf_counter() - begin < 1 / 3:
        synchronize(device)
        start = time.perf_counter()
        product(a, a)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * len(a) ** 3 / min(times)


def usual_window(sequence_len: int, device_type: str) -> int:
    """Tokens that three of four layers see if nothing is said: a quarter of the context, in whole blocks of 128, on a
    CUDA GPU if the context is long; else 0, which is all: a window would save no time there."""
    return 128 * math.ceil(sequence_len / 512) if device_type == "cuda" and sequence_len >= 1024 else 0


def usual_share(n_embd: int, by_width: tuple = SHARE_BY_WIDTH) -> float:
    """The part that training with so many channels reaches of a GPU's published bf16 FLOP/s, or as the table says."""
    return float(np.interp(n_embd, *zip(*by_width)))


def reach(model: GPT, device: torch.device) -> tuple[float, float]:
    """(FLOP/s of matrix products on this device, the part of them that training reaches)."""
    peak, width = matmul_flops(device, model.compute_dtype), model.config.n_embd
    if published := peak_flops(device):
        return peak, usual_share(width) * published / peak
    doubled = device.type == "cpu" and model.compute_dtype == torch.float32 and prefers_onednn()
    return peak, usual_share(width, SHARE_BY_ONEDNN if doubled else SHARE_ON_CPU[model.compute_dtype])


def flops_in(minutes: float, model: GPT, dist: Dist) -> float:
    """What training will compute in that time on all devices, as far as one can say before; the same on every rank."""
    peak, share = reach(model, dist.device)
    flops = torch.tensor(60 * minutes * share * peak * dist.world_size, device=dist.device)
    return float(dist.all_reduce(flops, "max"))


def counts(model: GPT, optimizers: list) -> tuple[int, int]:
    """How many numbers are weights, how many the moments of the optimizers on all ranks together."""
    moments = sum((1 if isinstance(o, Muon) else 2) * sum(p.numel() for p in o.params.values()) for o in optimizers)
    return sum(p.numel() for p in model.parameters()), moments


def training_bytes(
    model: GPT, optimizers: list, device_rows: int, world_size: int, device_type: str, number: int
) -> int:
    """About what a device holds in training: weights, gradients, its share of the moments, what the layers of one
    micro-batch keep for the backward pass in numbers of `number` bytes, and a chunk of logits."""
    c, (weights, moments) = model.config, counts(model, optimizers)
    kept = device_rows * c.sequence_len * c.n_embd * c.n_layer * KEPT[device_type]
    chunk = 3 * (256 if device_type == "cpu" else 4096) * c.vocab_size
    return 8 * weights + 4 * moments // world_size + number * kept + 4 * chunk


def require_memory(config: GPTConfig, dist: Dist) -> None:
    """SystemExit if such a model is too large to be trained in the memory of a CPU: the system would end this process,
    or another one, without a word. (A GPU says so itself.) Each rank on the machine has weights and gradients of its
    own; the moments are shared out, and one rank saves."""
    with torch.device("meta"):  # shapes without memory
        weights = sum(p.numel() for p in GPT(config).parameters())
    ranks = dist.local_world_size
    least = (8 * ranks + 12) * weights / 2**30
    there = describe_machine(dist.device).get("memory_gib", math.inf)
    if dist.device.type == "cpu" and least > there:
        raise SystemExit(
            f"--depth={config.n_layer} needs {least:,.0f} GiB for weights, gradients, moments and the copy that is "
            f"saved{f', in {ranks} processes' if ranks > 1 else ''}; this machine has {there:,.0f}. Choose a smaller "
            f"--depth. What it takes on GPUs: python -m scripts.forecast --gpus=8xH100 --depth={config.n_layer}"
        )


def rates(optimizer) -> str:
    decay = f", weight decay {optimizer.weight_decay:.2g}" if optimizer.weight_decay else ""
    decay += " falling to 0" if decay and isinstance(optimizer, Muon) else ""
    return f"{type(optimizer).__name__}, rate {optimizer.lr:g}{decay}"


def show_dial(
    model: GPT, optimizers: list, *, batch_tokens: int, num_iterations: int | None, minutes: float | None,
    device_rows: int, dist: Dist, horizon_rule: str,
) -> None:  # fmt: skip
    """Print the table. num_iterations None: the clock ends the run after `minutes`."""
    if not dist.is_main:
        return
    c, table = model.config, Table(title=f"--depth={model.config.n_layer}", title_justify="left", box=None)
    for name in ("what", "value", "rule"):
        table.add_column(name, overflow="fold")
    peak, share = reach(model, dist.device)
    speed = share * peak * dist.world_size / model.flops_per_token()
    number = model.compute_dtype.itemsize
    memory = training_bytes(model, optimizers, device_rows, dist.world_size, dist.device.type, number)
    tokens = num_iterations * batch_tokens if num_iterations else round(60 * minutes * speed)
    seconds = tokens / speed if num_iterations else 60 * minutes
    heads = f"{c.n_head} of {c.n_embd // c.n_head} channels"
    heads += f", keys and values: {c.n_kv_head}" if c.n_kv_head != c.n_head else ""
    micro = -(-batch_tokens // (device_rows * c.sequence_len * dist.world_size))
    weights = [
        (name, f"{sum(p.numel() for p in optimizer.params.values()):,} weights", rates(optimizer))
        for name, optimizer in zip(families(model), optimizers)
    ]
    rows = [
        ("width", f"{c.n_embd} channels", "64 a layer"),
        ("heads", heads, "of 64 channels, from 512 channels on of 128 where they divide"),
        ("context, vocabulary", f"{c.sequence_len:,} tokens of {c.vocab_size:,}", "--max_seq_len, the tokenizer"),
        ("window", f"{c.window:,} tokens in 3 of 4 layers" if c.window else "none",
         "--window" + (f", by {attention.windows_by(dist.device)}" if c.window else "")),
        *weights,
        ("tokens in all", f"{'' if num_iterations else 'about '}{tokens:,}", horizon_rule),
        ("a step", f"{batch_tokens:,} tokens", "grows with the tokens in all, a power of two; or as told"),
        ("", f"{micro} x {device_rows} rows on {dist.world_size} device(s)", "gradients are accumulated; same result"),
        ("steps", f"{num_iterations:,}" if num_iterations else "as many as fit",
         "tokens / a step" if num_iterations else "--minutes"),
        ("FLOPs a token", f"{model.flops_per_token():.3g}", "6 a weight that multiplies, and attention"),
        ("FLOPs in all", f"{tokens * model.flops_per_token():.3g}", "forward and backward"),
        ("matrix products", f"{peak / 1e9:,.0f} GFLOP/s", f"in {str(model.compute_dtype)[6:]}, --dtype; measured now"),
        ("time", f"about {format_seconds(seconds)}",
         f"at {share:.0%} of that" if num_iterations else "--minutes"),
        ("memory", f"about {memory / 2**30:.1f} GiB a device", "weights, "
         "gradients, moments, one micro-batch"),
    ]  # fmt: skip
    if price := price_an_hour(describe_machine(dist.device) | {"ranks": dist.world_size}):
        rows.append(("cost", f"about ${price[0] * seconds / 3600:.2f}", price[1]))
    for row in rows:
        table.add_row(*row)
    Console(stderr=True, highlight=False).print(table)


def rehearse(
    model: GPT, optimizers: list, batches, evaluate: Callable[[GPT, bool], dict[str, float]], tokenizer: Tokenizer,
    *, stage: str, settings, num_iterations: int | None, dist: Dist,
) -> None:  # fmt: skip
    """One of everything that a run does, with its time: steps of one and of two micro-batches, evaluation, an answer, a
    checkpoint, which is deleted. An error shows up now and not after hours. The weights are spoiled by it."""
    forward = model.compiled()
    state, micro_batches = State(), next(iter(batches))

    def timed(name: str, action: Callable):
        start = time.perf_counter()
        result = action()
        synchronize(dist.device)
        seconds = time.perf_counter() - start
        dist.print(f"rehearsal: {name:<16}{seconds:8.2f} s   {result if isinstance(result, str) else ''}")
        return seconds

    def step(count: int) -> str:
        loss = train_step(forward, optimizers, micro_batches[:count], next_token_loss, dist, 1.0, 0.0)
        state.step += 1
        return f"loss {loss:.4f}"

    def answer() -> str:
        engine = Engine(merged(model), tokenizer, max_batch=1)
        (completion,) = engine.generate([[tokenizer.bos_id]], Sampling(max_tokens=8, temperature=0.0))
        return repr(completion.text)

    def save(folder: str) -> str:
        path, tensors = Path(folder) / "rehearsal", checkpoint_manager.tensors_of(optimizers)
        checkpoint_manager.save(
            path,
            merged(model),
            tokenizer,
            stage=stage,
            state=state,
            settings=settings,
            optimizer_tensors=tensors,
            dist=dist,
        )
        return f"{sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6:,.0f} MB"

    timed("first step", lambda: step(1))
    sizes = (1, 2)[: len(micro_batches)]
    times = [min(timed(f"step of {n}", lambda n=n: step(n)) for _ in range(2)) for n in sizes]
    model.eval()
    model.compute_dtype = compute_dtype(dist.device)
    timed("evaluation", lambda: ", ".join(f"{name} {value:.4f}" for name, value in evaluate(model, False).items()))
    timed("an answer", answer)
    with tempfile.TemporaryDirectory() as folder:
        timed("checkpoint", lambda: save(folder))
    dist.print(f"rehearsal: peak memory {peak_memory(dist.device) / 2**30:.1f} GiB on the first device")
    if num_iterations:
        seconds = times[0] + (len(micro_batches) - 1) * max(0.0, times[-1] - times[0])
        dist.print(
            f"At this speed the run takes {format_seconds(seconds * num_iterations)}: {num_iterations:,} steps of "
            f"{len(micro_batches):,} micro-batches."
        )
    dist.print("Nothing was kept. Leave out --dry_run to train.")
