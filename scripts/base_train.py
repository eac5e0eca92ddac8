"""Pretrain a base model on documents; --depth is the one dial.

python -m scripts.base_train --depth=4 --data=wiki
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
"""

from dataclasses import dataclass, replace

import torch

from nanochat import fp8
from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import Dist, base_dir, setup, training_dtype
from nanochat.configurator import launch
from nanochat.dataloader import Batches, DocumentSource
from nanochat.dial import flops_in, rehearse, require_memory, show_dial, usual_window
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import evaluate_bpb
from nanochat.optim import build_optimizers, decay_for, horizon, warmup_flat_warmdown
from nanochat.stage import RunConfig, device_rows, finished, resume_point, train, whole_rows
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config(RunConfig):
    """Pretrain a base model on documents; --depth is the one dial."""

    depth: int = 20
    """layers; the width, the number of tokens and the batch follow from it"""
    data: str = "climbmix"
    """dataset to train on, as prepared by python -m nanochat.dataset"""
    max_seq_len: int = 2048
    """tokens of context"""
    window: int | None = None
    """tokens that a token sees in three of four layers, 0 for all; by default a quarter of the context on a CUDA GPU if
    that is at least 1,024, else all: elsewhere it saves no time"""
    fp8: bool = False
    """multiply matrices in 8 bits: faster from about depth 20 on, on GPUs that can, for a little quality"""
    total_batch_size: int | None = None
    """tokens of a whole optimizer step, over all devices; by default from the tokens in all"""
    target_param_data_ratio: float = 12.0
    """tokens to train on for each weight that multiplies, if nothing else says how long to train"""
    target_flops: float | None = None
    """train for this many FLOPs instead"""
    table_decay: float | None = None
    """weight decay of the embeddings and the head; by default the more, the more often the run goes through its text"""
    dry_run: bool = False
    """only show what --depth decides, and rehearse a step, an evaluation, an answer and a checkpoint"""
    eval_tokens: int = 1 << 20
    """tokens of the validation split for an evaluation; the last one takes ten times as many"""


def main(cfg: Config) -> None:
    rule = horizon_rule(cfg)
    with setup(cfg.device) as dist:
        tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
        tag = cfg.model_tag or f"d{cfg.depth}"
        checkpoint = resume_point(cfg, "base", tag, dist)
        if finished(checkpoint, dist):
            return
        if checkpoint:
            require_same(cfg, checkpoint, tokenizer)
        model = checkpoint.model if checkpoint else new_model(cfg, tokenizer.vocab_size, dist)
        model.to(dist.device)
        model.compute_dtype = training_dtype(dist.device, cfg.dtype)
        if cfg.fp8:
            fp8.require(dist.device)
            model.use_fp8()
        source = DocumentSource.open(tokenizer, cfg.data, "train", cfg.max_seq_len, cfg.seed)
        in_a_pass = tokens_of(source, dist)
        cfg, num_iterations, passes = sized(cfg, model, in_a_pass, checkpoint.settings if checkpoint else {}, dist)
        rows = cfg.total_batch_size // cfg.max_seq_len
        optimizers = build_optimizers(model, dist, cfg.lr_scale, cfg.table_decay)
        at_once = device_rows(cfg, model, cfg.max_seq_len, rows // dist.world_size, dist)
        cfg = replace(cfg, device_batch_size=at_once)
        position = checkpoint.state.data if checkpoint else None
        batches = Batches(source, rows, cfg.device_batch_size, dist, position=position)
        token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(dist.device)
        held_out = DocumentSource.open(tokenizer, cfg.data, "val", cfg.max_seq_len, None)

        def evaluate(model: GPT, last: bool) -> dict[str, float]:
            limit = 1 if cfg.dry_run else cfg.eval_tokens * (10 if last else 1)
            val = Batches(held_out, cfg.device_batch_size * dist.world_size, cfg.device_batch_size, dist, epochs=1)
            return {"val_bpb": evaluate_bpb(model, val, token_bytes, dist, limit)}

        run = {"model": model, "optimizers": optimizers, "num_iterations": num_iterations, "dist": dist}
        show_dial(
            **run,
            batch_tokens=cfg.total_batch_size,
            minutes=cfg.minutes,
            device_rows=min(cfg.device_batch_size, rows // dist.world_size),
            horizon_rule=rule,
        )
        dist.print(
            f"{source.shards:,} shards, about {in_a_pass:,.0f} tokens: that makes about {passes:.2g} passes"
            + (". More text would be better." if passes > 1 else ".")
        )
        run |= {"batches": batches, "evaluate": evaluate, "tokenizer": tokenizer, "stage": "base"}
        if cfg.dry_run:
            return rehearse(**run, settings=cfg)
        train(cfg, **run, tag=tag, title="Pretraining", schedule=warmup_flat_warmdown(), checkpoint=checkpoint)


def require_same(cfg: Config, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """SystemExit if the run that --resume goes on with was one of another tokenizer or shape."""
    was = checkpoint.model.config
    flags = {"depth": was.n_layer, "max_seq_len": was.sequence_len, "window": was.window}
    other = [f"--{name}={value}" for name, value in flags.items() if getattr(cfg, name) not in (value, None)]
    if checkpoint.tokenizer.hash != tokenizer.hash:
        other.append(f"another tokenizer than the one in {base_dir() / 'tokenizer'}")
    if other:
        raise SystemExit(
            f"{checkpoint.path} was trained with {' and '.join(other)}. Go on with that, leave out --resume to start "
            "over, or give the new model another --model_tag."
        )


def new_model(cfg: Config, vocab_size: int, dist: Dist) -> GPT:
    """On the CPU, with weights that depend on the seed only."""
    window = usual_window(cfg.max_seq_len, dist.device.type) if cfg.window is None else cfg.window
    config = GPTConfig.from_depth(cfg.depth, vocab_size, cfg.max_seq_len, window)
    require_memory(config, dist)
    return GPT(config).init_weights(torch.Generator().manual_seed(cfg.seed))


def sized(cfg: Config, model: GPT, in_a_pass: float, before: dict, dist: Dist) -> tuple[Config, int | None, float]:
    """`cfg` with the size of a step and the decay that follow from the model and the text, or, since a clock never says
    the same twice, those of `before`, the settings that the run began with; steps (None: as many as fit); passes."""
    flops = flops_in(cfg.minutes, model, dist) if cfg.minutes else cfg.target_flops
    tokens, batch_tokens = horizon(model, cfg.target_param_data_ratio, flops)
    batch_tokens = cfg.total_batch_size or before.get("total_batch_size") or batch_tokens
    batch_tokens = whole_rows(batch_tokens, cfg.max_seq_len, dist) * cfg.max_seq_len
    num_iterations = cfg.num_iterations or (None if cfg.minutes else max(1, round(tokens / batch_tokens)))
    passes = (num_iterations * batch_tokens if num_iterations else tokens) / in_a_pass
    weights = sum(parameter.numel() for parameter in model.parameters())
    chosen = before.get("table_decay", decay_for(passes, weights / in_a_pass))
    decay = chosen if cfg.table_decay is None else cfg.table_decay
    return replace(cfg, total_batch_size=batch_tokens, table_decay=decay), num_iterations, passes


def tokens_of(source: DocumentSource, dist: Dist) -> float:
    """About how many tokens a pass over the text has, on every rank the same, though shards may still arrive."""
    return float(dist.all_reduce(torch.tensor(float(source.tokens()), device=dist.device), "max"))


def horizon_rule(cfg: Config) -> str:
    """Which flag says how long to train, for the table. SystemExit if two do."""
    given = [f"--{name}" for name in ("num_iterations", "minutes", "target_flops") if getattr(cfg, name) is not None]
    if len(given) > 1:
        raise SystemExit(f"{' and '.join(given)} contradict each other: choose one to say how long to train.")
    return given[0] if given else f"{cfg.target_param_data_ratio:g} for each weight that multiplies"


if __name__ == "__main__":
    launch(main, Config)
