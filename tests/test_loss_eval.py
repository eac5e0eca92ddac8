"""Bits per byte against a hand count."""

import math

import torch

from nanochat.loss_eval import evaluate_bpb, evaluate_loss
from nanochat.trainer import Batch


def model(idx, targets, reduction="sum"):
    """Knows each token's loss by heart: id / 8 nats."""
    losses = torch.where(targets >= 0, targets / 8, 0.0)
    return losses if reduction == "none" else losses.sum()


def test_bits_per_byte_is_that_of_a_hand_count():
    token_bytes = torch.tensor([1, 3, 4, 0, 2])  # 3 is a special token
    batch = Batch(torch.zeros(2, 4, dtype=torch.long), torch.tensor([[1, 2, 3, -1], [4, 4, -1, 0]]))
    nats = (1 + 2 + 4 + 4 + 0) / 8
    size = 3 + 4 + 2 + 2 + 1
    assert math.isclose(evaluate_bpb(model, [[batch]], token_bytes), nats / math.log(2) / size, rel_tol=1e-6)
    assert math.isclose(
        evaluate_bpb(model, [[batch], [batch]], token_bytes, max_tokens=8), nats / math.log(2) / size, rel_tol=1e-6
    )
    assert math.isclose(evaluate_loss(model, [[batch]]), (1 + 2 + 3 + 4 + 4 + 0) / 8 / 6, rel_tol=1e-6)


def test_no_text_is_not_a_number_and_not_a_crash():
    batch = Batch(torch.zeros(1, 2, dtype=torch.long), torch.full((1, 2), -1))
    assert math.isnan(evaluate_bpb(model, [[batch]], torch.tensor([1]))) and math.isnan(evaluate_loss(model, [[batch]]))


def test_real_text_counts_its_bytes(tiny_tokenizer, tiny_model):
    """Every byte of a text with multi-byte characters is counted once, and the special token in front is not."""
    text = "Ünïcödé 你好 🙂 The sky."
    ids = torch.tensor([[tiny_tokenizer.bos_id, *tiny_tokenizer.encode(text).tolist()]])
    token_bytes = torch.from_numpy(tiny_tokenizer.token_bytes())
    batch = Batch(ids[:, :-1], ids[:, 1:])
    nats = tiny_model(batch.inputs, targets=batch.targets).item()
    expected = nats / math.log(2) / len(text.encode())
    assert math.isclose(evaluate_bpb(tiny_model, [[batch]], token_bytes), expected, rel_tol=1e-5)
