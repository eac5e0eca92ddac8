"""Pretrain a base model on documents; --depth is the one dial.

python -m scripts.base_train --depth=4 --data=wiki
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
"""

from dataclasses import dataclass, replace

import torch

from nanochat.common import base_dir, setup
from nanochat.configurator import parse
from nanochat.dataloader import Batches, DocumentSource
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import evaluate_bpb
from nanochat.optim import build_optimizers, horizon, warmup_flat_warmdown
from nanochat.stage import RunConfig, finished, resume_point, train, whole_rows
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
    total_batch_size: int | None = None
    """tokens of a whole optimizer step, over all devices; by default from depth"""
    eval_tokens: int = 1 << 20
    """tokens of the validation split for an evaluation; the last one takes ten times as many"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        path = base_dir() / "tokenizer" / "tokenizer.json"
        if not path.exists():
            raise SystemExit(
                f"There is no tokenizer at {path}. Train one: python -m scripts.tok_train --data={cfg.data}"
            )
        tokenizer = Tokenizer.load(path)
        tag = cfg.model_tag or f"d{cfg.depth}"
        checkpoint = resume_point(cfg, "base", tag, dist)
        if finished(checkpoint, dist):
            return
        if checkpoint and checkpoint.tokenizer.hash != tokenizer.hash:
            raise SystemExit(
                f"{checkpoint.path} was trained with another tokenizer than the one in {base_dir() / 'tokenizer'}. "
                "Leave out --resume to start over, or give the new model another --model_tag."
            )
        config = GPTConfig.from_depth(cfg.depth, tokenizer.vocab_size, cfg.max_seq_len)
        model = checkpoint.model if checkpoint else GPT(config).init_weights(torch.Generator().manual_seed(cfg.seed))
        model.to(dist.device)
        tokens, batch_tokens = horizon(model)
        rows = whole_rows(cfg.total_batch_size or batch_tokens, cfg.max_seq_len, dist)
        cfg = replace(cfg, total_batch_size=rows * cfg.max_seq_len)  # what the next stage starts from
        num_steps = cfg.num_steps or (None if cfg.minutes else max(1, round(tokens / (rows * cfg.max_seq_len))))
        source = DocumentSource.open(tokenizer, cfg.data, "train", cfg.max_seq_len, cfg.seed)
        position = checkpoint.state.data if checkpoint else None
        batches = Batches(source, rows, cfg.device_batch_size, dist, position=position)
        token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(dist.device)
        held_out = DocumentSource.open(tokenizer, cfg.data, "val", cfg.max_seq_len, None)

        def evaluate(model: GPT, last: bool) -> dict[str, float]:
            limit = cfg.eval_tokens * (10 if last else 1)
            val = Batches(held_out, cfg.device_batch_size * dist.world_size, cfg.device_batch_size, dist, epochs=1)
            return {"val_bpb": evaluate_bpb(model, val, token_bytes, dist, limit)}

        train(
            cfg,
            dist,
            stage="base",
            tag=tag,
            title="Pretraining",
            model=model,
            tokenizer=tokenizer,
            optimizers=build_optimizers(model, dist, cfg.lr_scale),
            batches=batches,
            schedule=warmup_flat_warmdown(),
            num_steps=num_steps,
            evaluate=evaluate,
            checkpoint=checkpoint,
        )


if __name__ == "__main__":
    main(parse(Config))
