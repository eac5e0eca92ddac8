"""What a run would take on machines that are not here: memory, tokens, shards, time, disk, dollars.

In: a depth, GPUs by name. Out: a Forecast, and its table. Sizes, horizon, batch, memory and speed are what training
itself computes (gpt.py, optim.py, stage.py, dial.py), on a model without weights; what is assumed beside them is named
here in capitals.
"""

import math
import re
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from nanochat.common import Dist, format_seconds
from nanochat.corpus import SHARD_CHARACTERS
from nanochat.dial import counts, training_bytes, usual_share, usual_window
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpus import GPUS
from nanochat.optim import build_optimizers, horizon
from nanochat.sources import PUBLISHED
from nanochat.stage import whole_rows

USABLE = 0.9  # of a GPU's memory; the rest is CUDA's own, and gaps
CHARACTERS_A_TOKEN = 4.53  # of 32,768 ids on held-out articles of Wikipedia; dev/LOG.md
NETWORK = 50e6  # bytes a second that the shards come in
LARGEST_MICRO_BATCH = 32  # rows; more of them are no faster
# Tokens that the other stages read, about: rough, since nobody has run them on GPUs yet.
MID_TOKENS, SFT_TOKENS, CORE_TOKENS, LOSS_TOKENS = 400e6, 25e6, 30e6, 21e6
START = 90  # seconds that a stage on GPUs takes to start and to compile
CHAT_EVAL, RL = 420, 5400  # seconds; the answers' lengths decide


@dataclass(frozen=True)
class Gpus:
    """`count` times the GPU `name`; flops a second and bytes of each, dollars an hour of each (None: unknown)."""

    name: str
    count: int
    flops: float
    bytes: float
    price: float | None

    @classmethod
    def parse(cls, text: str, price: float | None = None) -> "Gpus":
        """ "8xH100", "2 x A100-40GB", "4090". SystemExit with the table of what is known for anything else."""
        match = re.fullmatch(r"\s*(?:(\d+)\s*[x*]\s*)?([A-Za-z][\w \-]*|\d{4})\s*", text)
        count, wanted = (int(match[1] or 1), plain(match[2])) if match else (0, "")
        gpu = next((gpu for gpu in GPUS if plain(gpu.name) == wanted), None)
        if gpu is None or not 1 <= count <= 4096:
            known = ", ".join(gpu.name for gpu in GPUS)
            raise SystemExit(f"--gpus={text} is not a number of GPUs that are known here: say 8xH100. Known: {known}.")
        return cls(gpu.name, count, gpu.flops, gpu.gib * 2**30, gpu.price if price is None else price)

    @property
    def dist(self) -> Dist:
        """The first of its ranks, on a device that holds no numbers."""
        return Dist(world_size=self.count, device=torch.device("meta"))


def plain(name: str) -> str:
    return re.sub("[ -]", "", name.upper()).removeprefix("RTX")


@dataclass(frozen=True)
class Forecast:
    """One run of the pipeline. Bytes, seconds, tokens."""

    gpus: Gpus
    model: GPT
    tokens: int
    batch_tokens: int
    device_rows: int  # 0: not even one row fits
    memory: float  # of a device, with that many rows
    share: float  # of the GPUs' published FLOP/s that training reaches
    checkpoint: float

    @property
    def fits(self) -> bool:
        return self.memory <= USABLE * self.gpus.bytes

    @property
    def micro_batches(self) -> int:
        return self.batch_tokens // (max(1, self.device_rows) * self.model.config.sequence_len * self.gpus.count)

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / self.batch_tokens))

    @property
    def tokens_a_second(self) -> float:
        return self.share * self.gpus.flops * self.gpus.count / self.model.flops_per_token()

    @property
    def seconds(self) -> float:
        """Of pretraining, without its start."""
        return self.tokens / self.tokens_a_second

    @property
    def shards(self) -> int:
        """For one pass, and a tenth more, since no tokenizer knows the text before."""
        return math.ceil(1.1 * self.tokens * CHARACTERS_A_TOKEN / SHARD_CHARACTERS)

    @property
    def disk(self) -> float:
        """Shards, and two checkpoints of each of three stages, with one more while it is written."""
        return self.shards * PUBLISHED["climbmix"].shard_mb * 1e6 + 7 * self.checkpoint

    def stages(self, reinforcement: bool = False) -> dict[str, float]:
        """Seconds of each step of speedrun.sh. All but pretraining are rough."""

        def read(tokens: float) -> float:
            return START + tokens / (3 * self.tokens_a_second)  # a forward pass is a third

        evaluations = 1.9 * 10 * (1 << 20)  # nine during training, and the last, which takes ten times as many tokens
        stages = {
            "text": 9 * PUBLISHED["climbmix"].shard_mb * 1e6 / NETWORK,
            "tokenizer": 150,
            "pretraining": self.seconds + read(evaluations),
            "base model": read(LOSS_TOKENS) + read(CORE_TOKENS),
            "midtraining": START + MID_TOKENS / self.tokens_a_second + CHAT_EVAL,
            "finetuning": START + SFT_TOKENS / self.tokens_a_second + CHAT_EVAL,
        }
        return stages | ({"learning from rewards": RL + CHAT_EVAL} if reinforcement else {}) | {"report": 30}

    def dollars(self, seconds: float) -> float | None:
        return None if self.gpus.price is None else self.gpus.price * self.gpus.count * seconds / 3600


def forecast(
    gpus: Gpus, depth: int, *, ratio: float = 12.0, vocab_size: int = 32768, sequence_len: int = 2048,
    total_batch_size: int | None = None, device_batch_size: int | None = None, share: float | None = None,
) -> Forecast:  # fmt: skip
    """The rules of `--depth` applied to these GPUs. Without a device_batch_size: the largest that fits."""
    with torch.device("meta"):
        window = usual_window(sequence_len, "cuda")
        model = GPT(GPTConfig.from_depth(depth, vocab_size, sequence_len, window))
    optimizers = build_optimizers(model, gpus.dist)
    tokens, batch_tokens = horizon(model, ratio)
    rows = whole_rows(total_batch_size or batch_tokens, sequence_len, gpus.dist)

    def memory(device_rows: int) -> float:
        return training_bytes(model, optimizers, device_rows, gpus.count, "cuda", number=2)

    each = rows // gpus.count
    fitting = [n for n in range(1, min(each, LARGEST_MICRO_BATCH) + 1) if each % n == 0]
    fitting = [n for n in fitting if memory(n) <= USABLE * gpus.bytes]
    device_rows = min(device_batch_size, each) if device_batch_size else max(fitting, default=0)
    return Forecast(
        gpus, model, tokens, rows * sequence_len, device_rows, memory(max(1, device_rows)),
        share or usual_share(model.config.n_embd), 4.0 * sum(counts(model, optimizers)),
    )  # fmt: skip


def deepest(gpus: Gpus, dollars: float, **options) -> Forecast:
    """The largest even depth whose whole pipeline costs at most so much. SystemExit if not even depth 2 does."""
    best = None
    for depth in range(2, 66, 2):
        run = forecast(gpus, depth, **options)
        cost = run.dollars(sum(run.stages().values()))
        if cost is None:
            raise SystemExit(f"What a {gpus.name} costs is not known here: say it with --price, in dollars an hour.")
        if cost > dollars or not run.device_rows:
            break
        best = run
    if best is None:
        raise SystemExit(f"${dollars:g} do not pay for the smallest run on {gpus.count} x {gpus.name}.")
    return best


def show(run: Forecast) -> None:
    """The table on the terminal."""
    c, gpus = run.model.config, run.gpus
    total, flops = sum(run.stages().values()), run.model.flops_per_token()
    weights = sum(p.numel() for p in run.model.parameters())
    fit = ("" if run.fits else "does not fit: ") + f"{run.memory / 2**30:.0f} of {gpus.bytes / 2**30:.0f} GiB a GPU"
    rows = [
        ("model", f"{weights / 1e6:,.0f} M weights, {flops:.3g} FLOPs a token", f"{c.n_embd} wide"),
        ("tokens", f"{run.tokens:,}", "--ratio for each weight that multiplies"),
        ("a step", f"{run.batch_tokens:,} tokens", "grows with the tokens to the power 0.383"),
        ("", f"{gpus.count} GPUs x {run.micro_batches} x {run.device_rows} rows", "the last is --device_batch_size"),
        ("memory", fit, f"up to {USABLE:.0%} is taken to fit"),
        ("speed", f"{run.tokens_a_second:,.0f} tokens a second", f"{run.share:.0%} of {gpus.flops / 1e12:.0f} TFLOP/s"),
        ("pretraining", f"{format_seconds(run.seconds)}, {run.steps:,} steps", "tokens / speed"),
        ("all stages", format_seconds(total), "pretraining, and rough figures for the rest of speedrun.sh"),
        ("shards", f"{run.shards:,} of {SHARD_CHARACTERS / 1e6:.0f} M characters", "one pass, and a tenth to spare"),
        ("disk", f"{run.disk / 1e9:,.0f} GB", f"the shards, and 7 checkpoints of {run.checkpoint / 1e9:.1f} GB"),
    ]  # fmt: skip
    if (cost := run.dollars(total)) is not None:
        rows.append(("cost", f"${cost:,.0f}", f"${gpus.price:.2f} an hour for each GPU; --price says what yours costs"))
    table = Table(title=f"--depth={c.n_layer} on {gpus.count} x {gpus.name}", title_justify="left", box=None)
    for name in ("what", "predicted", "from"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def shell_variables(run: Forecast) -> dict[str, str]:
    """What speedrun.sh needs to know, as text."""
    times = {f"TIME_{name.split()[0].upper()}": format_seconds(s) for name, s in run.stages(reinforcement=True).items()}
    return {
        "DEPTH": str(run.model.config.n_layer),
        "SHARDS": str(run.shards),
        "ROWS": str(run.device_rows),
        "TOKENS": f"{run.tokens:,}",
        **times,
    }


def advice(run: Forecast, **options) -> str:
    """What to do about a run that does not fit, or takes long; "" if nothing."""
    if run.fits:
        days = run.seconds / 86400
        return f"That is {days:.0f} days: take a smaller --depth, or more GPUs." if days > 7 else ""
    depth = run.model.config.n_layer
    largest = forecast(run.gpus, depth, **options).device_rows
    if largest:
        return f"--device_batch_size={largest} fits; gradients are accumulated, and the result is the same."
    smaller = (d for d in range(depth - 1, 0, -1) if forecast(run.gpus, d, **options).device_rows)
    return f"Not even one row fits. The largest depth that does is {next(smaller, 'none')}."
