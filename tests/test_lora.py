"""Low-rank fine-tuning: W + B A is what the model computes and what is saved; W stays; runs resume exactly."""

import copy

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.common import Dist
from nanochat.engine import Engine, Sampling
from nanochat.lora import LowRankAdamW, merged
from nanochat.optim import build_optimizers
from nanochat.stage import TuneConfig, tuning_optimizers
from nanochat.trainer import Batch, State, next_token_loss, train_step

FROZEN = ("value_embeddings", "_scale", "gate")


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def steps(model, optimizer, numbers) -> None:
    for n in numbers:
        ids = torch.randint(200, (4, 17), generator=torch.Generator().manual_seed(n))
        train_step(model, [optimizer], [Batch(ids[:, :-1], ids[:, 1:])], next_token_loss, optimizer.dist, 1.0, 0.0)


def test_the_model_computes_with_base_plus_product_and_the_base_stays(model):
    base = copy.deepcopy(model)
    optimizer = LowRankAdamW(model, 3, torch.float32)
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), base(ids), rtol=0, atol=1e-6)  # training starts at the base model
    steps(model, optimizer, range(3))
    plain, changed = merged(model), 0
    assert type(plain) is type(base) and plain.state_dict().keys() == base.state_dict().keys()
    for name, weight in base.named_parameters():
        now = plain.state_dict()[name]
        if name in optimizer.low_rank:
            low = optimizer.low_rank[name]
            torch.testing.assert_close(now, weight + (low.b @ low.a).view_as(weight), rtol=0, atol=1e-7)
            assert torch.equal(optimizer.beneath[name], weight)
            assert torch.linalg.matrix_rank((now - weight).view(-1, weight.shape[-1])) <= 3
            changed += not torch.equal(now, weight)
        else:
            assert torch.equal(now, weight) and any(part in name for part in FROZEN), name
    assert changed == len(optimizer.low_rank) > 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids), plain(ids), rtol=0, atol=1e-6)
        assert (plain(ids) - base(ids)).abs().max() > 0.01


def test_the_state_is_small(model):
    numbers = lambda tensors: sum(t.numel() for t in tensors.values())  # noqa: E731
    whole = sum(numbers(o.state_dict()) for o in build_optimizers(copy.deepcopy(model)))
    low = LowRankAdamW(model, 1, torch.float32)
    assert numbers(low.mean) + numbers(low.square) + numbers(low.params) < 0.2 * whole
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in low.params.values()}


def test_a_resumed_run_is_the_same_run(model, tiny_tokenizer, tmp_path):
    """Also where the saved model, which is merged, is all that is left of the one it started from."""
    start = copy.deepcopy(model)
    whole = LowRankAdamW(model, 2, torch.float32)
    steps(model, whole, range(4))
    first = LowRankAdamW(start, 2, torch.float32)
    steps(start, first, range(2))
    path = checkpoint_manager.save(
        tmp_path / "tag", merged(start), tiny_tokenizer, stage="sft", state=State(step=2), settings={},
        optimizer_tensors=first.state_dict(),
    )  # fmt: skip
    loaded = checkpoint_manager.load(path=path).model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), merged(start).parameters()))
    again = LowRankAdamW(loaded, 2, torch.float32, seed=9)
    checkpoint_manager.load_optimizers(path, [again])
    steps(loaded, again, range(2, 4))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="optimizer"):
        checkpoint_manager.load_optimizers(path, build_optimizers(checkpoint_manager.load(path=path).model))


def test_the_matrices_beneath_may_be_bf16(model):
    model.compute_dtype = torch.bfloat16
    optimizer = LowRankAdamW(model, 2, torch.bfloat16)
    steps(model, optimizer, range(2))
    assert {w.dtype for w in optimizer.beneath.values()} == {torch.bfloat16}
    assert {p.dtype for p in optimizer.params.values()} == {torch.float32}
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(merged(model)(ids), model(ids), rtol=0, atol=1e-2)


def test_the_engine_answers_with_the_products(model, tiny_tokenizer):
    prompt, greedy = [tiny_tokenizer.bos_id, 5, 6], Sampling(max_tokens=6, temperature=0.0, logprobs=1)
    engine = Engine(model, tiny_tokenizer, max_batch=1)
    optimizer = LowRankAdamW(model, 2, torch.float32)
    steps(model, optimizer, range(3))
    engine.refresh()
    answers = [e.generate([prompt], [greedy])[0] for e in (engine, Engine(merged(model), tiny_tokenizer, max_batch=1))]
    assert answers[0].ids == answers[1].ids
    assert [t.logprob for t in answers[0].logprobs] == [t.logprob for t in answers[1].logprobs]


def test_what_a_stage_kept_in_bf16_is_trained_in_fp32_by_the_next(model):
    """On a GPU the matrices beneath the products are bf16, and so is the checkpoint."""
    LowRankAdamW(model, 2, torch.bfloat16)
    plain = merged(model)
    optimizers = tuning_optimizers(TuneConfig(), plain, Dist())
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    ids = torch.randint(200, (4, 17), generator=torch.Generator().manual_seed(0))
    train_step(plain, optimizers, [Batch(ids[:, :-1], ids[:, 1:])], next_token_loss, Dist(), 1.0, 0.0)
