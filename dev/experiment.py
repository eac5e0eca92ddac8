"""One small training run as the experiments of dev/ need it, and one number at its end.

In: a model, its optimizers, a dataset, the number of tokens. Out: bits per byte of held-out text. Compared runs
see the same documents in the same order and are judged by the same held-out tokens.
"""

import time
from dataclasses import dataclass

import torch

from nanochat.common import Dist, base_dir
from nanochat.dataloader import Batches, DocumentSource
from nanochat.loss_eval import evaluate_bpb
from nanochat.optim import warmup_flat_warmdown
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import State, fit

T = 256  # tokens of context
ROWS = 8  # of a micro-batch


@dataclass(frozen=True)
class Data:
    """Training rows by seed, and the same held-out batches for every run."""

    name: str
    tokenizer: Tokenizer
    held_out: list

    @classmethod
    def open(cls, name: str, eval_tokens: int) -> "Data":
        """SystemExit if the dataset or the tokenizer is not there."""
        tokenizer = Tokenizer.load(base_dir() / "tokenizer" / "tokenizer.json")
        source = DocumentSource.open(tokenizer, name, "val", T, None)
        held_out = []
        for step in Batches(source, ROWS, ROWS, epochs=1):
            held_out.append(step)
            if len(held_out) * ROWS * T >= eval_tokens:
                break
        return cls(name, tokenizer, held_out)

    def batches(self, batch_tokens: int, seed: int) -> Batches:
        source = DocumentSource.open(self.tokenizer, self.name, "train", T, seed)
        return Batches(source, max(1, batch_tokens // T), ROWS)


def train(model, optimizers, data: Data, tokens: int, batch_tokens: int, seed: int) -> dict:
    """Train on about `tokens` tokens with the usual schedule. {"steps", "tokens", "seconds", "bpb"}."""
    start, steps = time.monotonic(), max(1, round(tokens / batch_tokens))
    batches = data.batches(batch_tokens, seed)
    state = fit(model, optimizers, batches, warmup_flat_warmdown(), State(), num_iterations=steps)
    seconds = time.monotonic() - start
    model.eval()
    bpb = evaluate_bpb(model, data.held_out, torch.from_numpy(data.tokenizer.token_bytes()), Dist())
    return {"steps": steps, "tokens": state.tokens, "seconds": round(seconds, 1), "bpb": round(bpb, 5)}
