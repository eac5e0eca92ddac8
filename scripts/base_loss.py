"""Bits per byte of a base model on its training and validation text, and a few continuations.

python -m scripts.base_loss
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from nanochat import checkpoint_manager, report
from nanochat.common import Progress, compute_dtype, describe_machine, setup
from nanochat.configurator import launch
from nanochat.dataloader import Batches, DocumentSource
from nanochat.engine import Engine, Sampling
from nanochat.loss_eval import evaluate_bpb
from nanochat.trainer import Batch

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are",
    "Isaac Newton was",
    "Water is",
    "In mathematics, a prime number is",
)


@dataclass(frozen=True)
class Config:
    """Bits per byte of a base model on its training and validation text, and a few continuations."""

    model_tag: str | None = None
    """which model; by default the newest"""
    step: int | None = None
    """which of its checkpoints; by default the newest"""
    data: str | None = None
    """dataset; by default the one that the model was trained on"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""
    device_batch_size: int = 16
    """rows at once on a device"""
    eval_tokens: int = 10 << 20
    """tokens of each split"""


def main(cfg: Config) -> None:
    start = time.monotonic()
    with setup(cfg.device) as dist:
        loaded = checkpoint_manager.load(
            "base", cfg.model_tag, cfg.step, device=dist.device, dtype=compute_dtype(dist.device)
        )
        model, tokenizer = loaded.model, loaded.tokenizer
        name = cfg.data or loaded.settings["data"]
        token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(dist.device)
        metrics = {}
        for split in ("train", "val"):
            progress = Progress(f"Loss on {split}", 1, "%", dist)
            source = DocumentSource.open(tokenizer, name, split, model.config.sequence_len, None)
            rows = cfg.device_batch_size * dist.world_size
            batches = Batches(source, rows, cfg.device_batch_size, dist, epochs=1)
            seen = shown(batches, progress, cfg.eval_tokens // dist.world_size)
            metrics[f"{split}_bpb"] = evaluate_bpb(model, seen, token_bytes, dist, cfg.eval_tokens)
            progress.update(1, bits_per_byte=f"{metrics[f'{split}_bpb']:.4f}")
        if dist.is_main:
            engine = Engine(model, tokenizer, max_batch=len(PROMPTS))
            prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt).tolist()] for prompt in PROMPTS]
            answers = engine.generate(prompts, Sampling(max_tokens=32, temperature=0, repetition_penalty=1.2))
            samples = [{"prompt": prompt, "answer": answer.text} for prompt, answer in zip(PROMPTS, answers)]
            print("How it goes on with a text, always with the likeliest token:")
            for sample in samples:
                print(f"  {sample['prompt']} | {' '.join(sample['answer'].split())}")
            report.write_section(
                "base_loss",
                {
                    "title": "Base model",
                    "seconds": time.monotonic() - start,
                    "machine": describe_machine(dist.device),
                    "settings": asdict(cfg) | {"checkpoint": str(loaded.path)},
                    "metrics": metrics,
                    "samples": samples,
                },
            )
        dist.barrier()


def shown(batches: Batches, progress: Progress, most: int) -> Iterator[list[Batch]]:
    """The batches, and on the progress line how far they are through the text or through `most` tokens of this rank."""
    tokens = 0
    for step in batches:
        yield step
        tokens += sum(batch.inputs.numel() for batch in step)
        progress.update(min(0.999, max(batches.progress, tokens / most)))


if __name__ == "__main__":
    launch(main, Config)
