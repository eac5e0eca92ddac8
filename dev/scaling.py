"""How the loss falls with compute: a miniseries of small models, a fit, a picture.

In: depths and minutes. Out: dev/scaling/NAME.json with every run, NAME.svg, and the fits on the terminal.

    python -m nanochat.dataset --source wiki && python -m scripts.tok_train --data=wiki --vocab_size=4096
    python -m dev.scaling --depths 2 3 4 6 --minutes 60
    python -m dev.scaling --fit_only

Every depth is trained with several amounts of compute, each a fresh run with its whole schedule, for the loss in the
middle of a schedule says nothing; the best depth for each amount makes the curve L = E + A C^-a. A second series trains
the smallest depth with steps of several sizes, to see how the best size grows with the run. What is in the file is not
trained twice, so a series that was stopped goes on when it is started again, and other flags add to it.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dev.experiment import ROWS, Data, T, train
from nanochat.common import Dist, Progress, describe_machine
from nanochat.configurator import launch
from nanochat.files import read_json, write_json
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizers
from nanochat.trainer import Batch, next_token_loss, train_step

BUDGETS = 6  # amounts of compute, each twice the one before: 1e12 FLOPs times a power of two
LEAST_STEPS = 40  # a shorter run is all warm-up
BATCH = 2048  # tokens of a step in the series of depths
FOLDER = Path(__file__).parent / "scaling"


@dataclass(frozen=True)
class Config:
    """How the loss falls with compute: a miniseries of small models, a fit, a picture."""

    depths: tuple[int, ...] = (2, 3, 4, 6)
    """models to train"""
    minutes: float = 60.0
    """about how long the series of depths takes, at the speed measured at its start"""
    data: str = "wiki"
    """dataset, as prepared by python -m nanochat.dataset; the tokenizer is the newest one"""
    batches: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """tokens of a step to compare, with the smallest depth"""
    horizons: tuple[int, ...] = (131072, 524288, 1048576)
    """lengths of run, in tokens, to compare them at; none leaves this series out"""
    eval_tokens: int = 131072
    """held-out tokens that judge every run"""
    dtype: str = "float32"
    """float32 or bfloat16: what the models compute in"""
    name: str = "cpu"
    """of the files in dev/scaling"""
    fit_only: bool = False
    """train nothing, fit what is there"""


# ---------------------------------------------------------------------------------------------------------------------
# The runs


def build(depth: int, vocab_size: int, dtype: str, seed: int = 0) -> GPT:
    model = GPT(GPTConfig.from_depth(depth, vocab_size, T)).init_weights(torch.Generator().manual_seed(seed))
    model.compute_dtype = getattr(torch, dtype)
    return model


def flops_per_second(depth: int, vocab_size: int, dtype: str) -> float:
    """What training reaches on this machine now: the best of three steps."""
    model, seconds = build(depth, vocab_size, dtype), []
    optimizers, idx = build_optimizers(model), torch.randint(vocab_size, (ROWS, T + 1))
    for _ in range(4):
        start = time.perf_counter()
        batch = Batch(idx[:, :-1].contiguous(), idx[:, 1:].contiguous())
        train_step(model, optimizers, [batch], next_token_loss, Dist(), 0.01, 0.5)
        seconds.append(time.perf_counter() - start)
    return ROWS * T * model.flops_per_token() / min(seconds[1:])


def series(cfg: Config, data: Data) -> list[dict]:
    """The runs to make: {"depth", "tokens", "batch"}. Least compute first, so that a series cut short has a fit."""
    vocab_size = data.tokenizer.vocab_size
    seconds_a_flop = sum(1 / flops_per_second(d, vocab_size, cfg.dtype) for d in cfg.depths)
    most = math.floor(math.log2(60 * cfg.minutes / seconds_a_flop / 2 / 1e12))  # the smaller ones cost as much again
    budgets = [1e12 * 2.0**k for k in range(most - BUDGETS + 1, most + 1)]
    runs = [
        {"depth": d, "tokens": round(budget / flops_per_token(d, vocab_size) / BATCH) * BATCH, "batch": BATCH}
        for budget in budgets
        for d in cfg.depths
    ]
    runs += [{"depth": min(cfg.depths), "tokens": h, "batch": b} for h in cfg.horizons for b in cfg.batches]
    return [run for run in runs if run["tokens"] >= LEAST_STEPS * run["batch"]]


def run_all(cfg: Config, path: Path) -> None:
    data = Data.open(cfg.data, cfg.eval_tokens)
    record = read_json(path) if path.exists() else None
    if record is None:
        about = {"data": cfg.data, "vocabulary": data.tokenizer.vocab_size, "context": T, "dtype": cfg.dtype}
        about |= {"eval_tokens": cfg.eval_tokens, "machine": describe_machine(torch.device("cpu"))}
        record = {"about": about, "runs": []}
    work = [run for run in series(cfg, data) if not any(alike(run, old) for old in record["runs"])]
    for run in work:
        run["flops"] = run["tokens"] * flops_per_token(run["depth"], data.tokenizer.vocab_size)
    progress = Progress("Scaling", sum(run["flops"] for run in work), "FLOP", every=0)
    done = 0.0
    for run in work:
        model = build(run["depth"], data.tokenizer.vocab_size, cfg.dtype)
        result = train(model, build_optimizers(model), data, run["tokens"], run["batch"], seed=0)
        record["runs"].append(run | {"weights": weights(model)} | result)
        write_json(path, record)
        progress.message(str(record["runs"][-1]))
        done += run["flops"]
        progress.update(done)


def weights(model: GPT) -> int:
    """Those that multiply: of the blocks and the head."""
    return sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()


def flops_per_token(depth: int, vocab_size: int) -> float:
    return GPT(GPTConfig.from_depth(depth, vocab_size, T)).flops_per_token()


def alike(a: dict, b: dict) -> bool:
    return a["depth"] == b["depth"] and a["batch"] == b["batch"] and abs(a["tokens"] / b["tokens"] - 1) < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# The fits


def power_law(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """E, A, a of the best y = E + A x^-a in least squares, E >= 0, a in [0.01, 1.5]."""
    best = (np.inf, 0.0, 0.0, 0.0)
    for a in np.arange(0.01, 1.5, 0.005):
        basis = np.stack((np.ones_like(x), (x / x[0]) ** -a), axis=1)
        (E, A), *_ = np.linalg.lstsq(basis, y, rcond=None)
        if E < 0:
            E, A = 0.0, float(basis[:, 1] @ y / (basis[:, 1] @ basis[:, 1]))
        error = float(((E + A * basis[:, 1] - y) ** 2).sum())
        best = min(best, (error, E, A * x[0] ** a, a))
    return best[1:]


def jackknife(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float, float]]:
    """The fit with each point left out in turn: its range is the honest spread of a fit to few points."""
    keep = [np.arange(len(x)) != k for k in range(len(x))]
    return [power_law(x[mask], y[mask]) for mask in keep]


def envelope(runs: list[dict]) -> list[dict]:
    """The best run for each amount of compute, least compute first."""
    by_budget: dict[int, dict] = {}
    for run in runs:
        best = by_budget.setdefault(budget(run), run)
        by_budget[budget(run)] = min(best, run, key=lambda run: run["bpb"])
    return [by_budget[k] for k in sorted(by_budget)]


def budget(run: dict) -> int:
    """k of the nearest 1e12 * 2^k FLOPs."""
    return round(math.log2(run["flops"] / 1e12))


def slope(x, y) -> float:
    """p of y = k x^p."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def best_batches(runs: list[dict]) -> list[tuple[int, float]]:
    """(tokens of the run, the size of step at the bottom of a parabola through its log), for each length of run."""
    found = []
    for tokens in sorted({run["tokens"] for run in runs}):
        some = sorted((run["batch"], run["bpb"]) for run in runs if run["tokens"] == tokens)
        if len(some) >= 3:
            batch, bpb = np.array(some).T
            near = slice(max(0, bpb.argmin() - 1), bpb.argmin() + 2)
            a, b, _ = np.polyfit(np.log2(batch[near]), bpb[near], 2) if len(bpb[near]) == 3 else (0, 0, 0)
            found.append((tokens, float(2 ** (-b / (2 * a)) if a > 0 else batch[bpb.argmin()])))
    return found


def split(record: dict) -> tuple[list[dict], list[dict]]:
    """(the series of depths, the series of step sizes)."""
    horizons = {run["tokens"] for run in record["runs"] if run["batch"] != BATCH}
    of_batches = [run for run in record["runs"] if run["tokens"] in horizons]
    return [run for run in record["runs"] if run not in of_batches], of_batches


def report(record: dict) -> None:
    depths, batches = split(record)
    print("| FLOPs | " + " | ".join(f"depth {d}" for d in sorted({run["depth"] for run in depths})) + " |")
    for best in envelope(depths):
        same = {r["depth"]: r["bpb"] for r in depths if budget(r) == budget(best)}
        cells = [f"{same[d]:.4f}" if d in same else "" for d in sorted({run["depth"] for run in depths})]
        print(f"| {best['flops']:.2e} | " + " | ".join(cells) + " |")
    best = envelope(depths)
    x, y = np.array([run["flops"] for run in best]), np.array([run["bpb"] for run in best])
    if len(x) > 3:
        E, A, a = power_law(x, y)
        ranges = [(min(v), max(v)) for v in zip(*jackknife(x, y))]
        spread = "; ".join(f"{n} {low:.3g} to {high:.3g}" for n, (low, high) in zip("EAa", ranges))
        print(f"bits per byte = {E:.3f} + {A:.3g} C^-{a:.3f}   (one point left out: {spread})")
        ratio = [run["tokens"] / run["weights"] for run in best]
        print("tokens for each weight that multiplies, at the best depth: " + ", ".join(f"{r:.2f}" for r in ratio))
        print(f"tokens grow with compute to the power {slope(x, [run['tokens'] for run in best]):.2f}")
    if found := best_batches(batches):
        print("best size of a step: " + ", ".join(f"{size:,.0f} for {tokens:,}" for tokens, size in found))
        if len(found) > 1:
            print(f"it grows with the tokens to the power {slope(*zip(*found)):.2f}")


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def draw(record: dict, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    depths, batches = split(record)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for depth in sorted({run["depth"] for run in depths}):
        runs = sorted((r["flops"], r["bpb"]) for r in depths if r["depth"] == depth)
        left.plot(*zip(*runs), "o-", markersize=4, linewidth=1, label=f"depth {depth}")
    best = envelope(depths)
    if len(best) > 3:
        x = np.array([run["flops"] for run in best])
        E, A, a = power_law(x, np.array([run["bpb"] for run in best]))
        line = np.geomspace(x[0], 2 * x[-1])
        left.plot(line, E + A * line**-a, "k--", linewidth=1, label=f"{E:.2f} + {A:.3g} C$^{{-{a:.2f}}}$")
    left.set(xscale="log", xlabel="training FLOPs", ylabel="bits per byte, held out")
    for tokens in sorted({run["tokens"] for run in batches}):
        runs = sorted((r["batch"], r["bpb"]) for r in batches if r["tokens"] == tokens)
        right.plot(*zip(*runs), "o-", markersize=4, linewidth=1, label=f"{tokens / 1e6:.2g} M tokens")
    right.set(xscale="log", xlabel="tokens of a step")
    sizes = sorted({run["batch"] for run in batches})
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nanochat"}):  # small, and the same each time
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def main(cfg: Config) -> None:
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{cfg.name}.json"
    if not cfg.fit_only:
        run_all(cfg, path)
    record = read_json(path)
    report(record)
    draw(record, path.with_suffix(".svg"))


if __name__ == "__main__":
    launch(main, Config)
