"""What each choice in the architecture is worth: small models, each trained with one choice undone.

In: a depth and a number of tokens. Out: a JSON file with every run, and a Markdown table; for the guide also a picture.

    python -m nanochat.dataset --source wiki && python -m scripts.tok_train --data=wiki --vocab_size=4096
    python -m dev.ablations --depth=3 --tokens=524288
    python -m dev.ablations --table_only --page docs/guide/ablations.md

The model's code has no switches for this. Each variant swaps one function of it or changes one number, and is written
out here. All see the same documents in the same order. A series that was stopped goes on when it is started again.
"""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

from dev.experiment import Data, T, train
from nanochat import gpt, optim
from nanochat.adamw import AdamW
from nanochat.common import describe_machine
from nanochat.configurator import launch
from nanochat.files import read_json, write_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """What each choice in the architecture is worth."""

    depth: int = 3
    """layers of the model"""
    tokens: int = 524288
    """to train on, in each run"""
    batch: int = 2048
    """tokens of a step"""
    seeds: int = 2
    """runs of each variant: other weights, other order of the documents"""
    data: str = "wiki"
    """dataset, as prepared by python -m nanochat.dataset; the tokenizer is the newest one"""
    eval_tokens: int = 262144
    """held-out tokens that judge every run"""
    dtype: str = "float32"
    """float32 or bfloat16: what the models compute in"""
    only: tuple[str, ...] = ()
    """names of variants to run; by default all"""
    out: Path = HERE / "ablations.json"
    """where the runs are kept"""
    page: Path | None = None
    """Markdown to put the table into, between its two marks, and the picture beside it"""
    table_only: bool = False
    """train nothing, make table and picture of what is there"""


# ---------------------------------------------------------------------------------------------------------------------
# The variants


def plain_loss(x, weight, targets, scale):
    """The summed losses without a cap on the logits."""
    logits = F.linear(x, weight.to(x.dtype)).float()
    return (F.cross_entropy(logits, targets.clamp(min=0), reduction="none") * scale).sum()


def plain_token_losses(x, weight, targets):
    logits = F.linear(x, weight.to(x.dtype)).float()
    return F.cross_entropy(logits, targets.clamp(min=0), reduction="none") * (targets >= 0)


def unnormalised_queries(x):
    return x if x.dim() == 4 else gpt._Norm.apply(x)  # (B, T, H, D) are queries and keys


def tie(model, optimizers):
    """One table for the embedding and the head, moved at the head's rate. It is normalised after the lookup, so its
    size, which suits the head, does not matter to the blocks."""
    model.embedding.weight = model.head.weight
    with torch.no_grad():
        model.head.weight.mul_(20)  # from 0.001 to 0.02: else the norm's epsilon would count
    optimizers[2].params.clear()


def all_adamw(lr: float):
    def change(model, optimizers):
        matrices = optim.families(model)["matrices"]
        optimizers[0] = AdamW(matrices, lr=lr, betas=(0.9, 0.95), weight_decay=0.05)

    return change


def freeze(name: str, value: float):
    """A scale of the model that stays at a value."""

    def change(model, optimizers):
        model.get_parameter(name).data.fill_(value)
        del next(o for o in optimizers if name in o.params).params[name]

    return change


@dataclass(frozen=True)
class Variant:
    name: str
    without: str
    """what is undone, for the table"""
    functions: dict = None
    """of the module gpt: name -> what stands there instead"""
    config: Callable = lambda config: config
    """the shape of the model -> another"""
    change: Callable = lambda model, optimizers: None
    """done to them before the first step"""


VARIANTS = [
    Variant("baseline", "nothing"),
    Variant(
        "no-qk-norm",
        "queries and keys as they are, not normalised",
        {"norm": unnormalised_queries},
        config=lambda c: replace(c, attention_sharpness=1.0),
    ),
    Variant("gelu", "GELU instead of ReLU^2", {"relu_squared": F.gelu}),
    Variant("adamw-0.001", "AdamW instead of Muon, rate 0.001", change=all_adamw(0.001)),
    Variant("adamw-0.003", "AdamW instead of Muon, rate 0.003", change=all_adamw(0.003)),
    Variant("adamw-0.01", "AdamW instead of Muon, rate 0.01", change=all_adamw(0.01)),
    Variant("no-value-embeddings", "no value embeddings", config=lambda c: replace(c, value_embeddings=False)),
    Variant(
        "no-softcap",
        "no soft-cap on the logits",
        {"linear_cross_entropy": plain_loss, "token_losses": plain_token_losses},
    ),
    Variant("tied", "one table for embedding and head", change=tie),
    Variant("one-kv-head", "all queries share one head of keys and values", config=lambda c: replace(c, n_kv_head=1)),
    Variant("rope-10k", "rotary base 10,000, not 1,024", config=lambda c: replace(c, rope_base=1e4)),
    Variant("rope-100k", "rotary base 100,000", config=lambda c: replace(c, rope_base=1e5)),
    Variant("no-smear", "no mixing of neighbouring embeddings (smear)", change=freeze("smear_scale", 0.0)),
    Variant("float32", "no bf16: all in fp32", change=lambda model, _: setattr(model, "compute_dtype", torch.float32)),
    Variant("no-x0", "no second look at the embedding in each layer (x0)", change=freeze("x0_scale", 0.0)),
]


# ---------------------------------------------------------------------------------------------------------------------
# The runs


def run(variant: Variant, cfg: Config, data: Data, seed: int) -> dict:
    with patch.multiple(gpt, **variant.functions) if variant.functions else nullcontext():
        config = variant.config(gpt.GPTConfig.from_depth(cfg.depth, data.tokenizer.vocab_size, T))
        model = gpt.GPT(config).init_weights(torch.Generator().manual_seed(seed))
        model.compute_dtype = getattr(torch, cfg.dtype)
        optimizers = optim.build_optimizers(model)
        variant.change(model, optimizers)
        result = train(model, optimizers, data, cfg.tokens, cfg.batch, seed)
    return result | {"variant": variant.name, "seed": seed, "parameters": sum(p.numel() for p in model.parameters())}


def run_all(cfg: Config) -> None:
    data = Data.open(cfg.data, cfg.eval_tokens)
    about = {key: getattr(cfg, key) for key in ("depth", "tokens", "batch", "data", "eval_tokens", "dtype")}
    about |= {"vocabulary": data.tokenizer.vocab_size, "context": T}
    record = read_json(cfg.out) if cfg.out.exists() else {"runs": []}
    if record["runs"] and any(record["about"][key] != value for key, value in about.items()):
        raise SystemExit(f"{cfg.out} holds runs with other settings: {record['about']}. Choose another --out.")
    record["about"] = about | {"machine": describe_machine(torch.device("cpu"))}
    done = {(r["variant"], r["seed"]) for r in record["runs"]}
    chosen = [v for v in VARIANTS if not cfg.only or v.name in cfg.only]
    for seed in range(cfg.seeds):
        for variant in chosen:
            if (variant.name, seed) not in done:
                record["runs"].append(run(variant, cfg, data, seed))
                write_json(cfg.out, record)
                print(record["runs"][-1], flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Table and picture


def results(record: dict) -> list[tuple[Variant, list[float], float]]:
    """(variant, its bits per byte less those of the baseline with the same seed, mean bits per byte), worst first."""
    bpb = {(r["variant"], r["seed"]): r["bpb"] for r in record["runs"]}
    rows = []
    for variant in VARIANTS:
        seeds = [s for s in range(99) if (variant.name, s) in bpb and ("baseline", s) in bpb]
        if seeds:
            gaps = [bpb[variant.name, s] - bpb["baseline", s] for s in seeds]
            rows.append((variant, gaps, statistics.mean(bpb[variant.name, s] for s in seeds)))
    return sorted(rows, key=lambda row: -statistics.mean(row[1]))


def noise(record: dict) -> float:
    """How far two runs of the baseline are apart that differ in nothing but their seed. SystemExit if there is none."""
    values = [r["bpb"] for r in record["runs"] if r["variant"] == "baseline"]
    if not values:
        raise SystemExit("There is no run of the baseline to compare with: add it to --only.")
    return max(values) - min(values)


def table(record: dict) -> str:
    about = record["about"]
    lines = ["| without | bits per byte | change, by seed |", "|---|---|---|"]
    for variant, gaps, mean in results(record):
        change = ", ".join(f"{gap:+.4f}" for gap in gaps) if variant.name != "baseline" else ""
        lines.append(f"| {variant.without} | {mean:.4f} | {change} |")
    head = (
        f"Depth {about['depth']}, {about['tokens']:,} tokens of `{about['data']}` in steps of {about['batch']:,}, "
        f"{about['vocabulary']:,} tokens of vocabulary, context {about['context']}, {about['dtype']}; "
        f"{about['eval_tokens']:,} held-out tokens. The baseline's seeds differ by {noise(record):.4f}."
    )
    return head + "\n\n" + "\n".join(lines) + "\n"


def draw(record: dict, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = [row for row in results(record) if row[0].name != "baseline"][::-1]
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([v.without for v, _, _ in rows], [statistics.mean(g) for _, g, _ in rows], color="#4c78a8")
    for number, (_, gaps, _) in enumerate(rows):
        axes.plot(gaps, [number] * len(gaps), "o", color="black", markersize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("bits per byte lost without it (dots: seeds)")
    means = sorted(statistics.mean(gaps) for _, gaps, _ in rows)
    if len(means) > 1 and means[-1] > 4 * means[-2] > 0:  # one that fails altogether would leave the others no room
        least = min(0, *(gap for _, gaps, _ in rows for gap in gaps))
        axes.set_xlim(least - 0.1 * means[-2], 1.3 * means[-2])
        axes.set_xlabel("bits per byte lost without it (dots: seeds; longest bar cut)")
    axes.grid(axis="x", alpha=0.3)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nanochat"}):  # small, and the same each time
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def write_page(record: dict, page: Path) -> None:
    """Put the table between the two marks of the page; what is written around them stays."""
    start, end = "<!-- table: python -m dev.ablations -->", "<!-- end of table -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    page.write_text(before + start + "\n\n" + table(record) + "\n" + end + rest.split(end)[1], encoding="utf-8")


def main(cfg: Config) -> None:
    if not cfg.table_only:
        run_all(cfg)
    record = read_json(cfg.out)
    print(table(record))
    if cfg.page:
        write_page(record, cfg.page)
        draw(record, cfg.page.with_suffix(".svg"))


if __name__ == "__main__":
    launch(main, Config)
