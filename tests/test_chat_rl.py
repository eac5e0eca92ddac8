"""RL: what is trained is what the model chose, the end included, at the probability that it was drawn with."""

import copy

import numpy as np
import pytest
import torch

from nanochat.common import Dist
from nanochat.engine import Engine, Sampling
from scripts.chat_rl import Config, Rollouts
from tasks.common import Task, exchange
from tasks.registry import practice


class Even(Task):
    """Pays for an even number of letters."""

    name = "Even"

    def __init__(self):
        super().__init__("train")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"messages": exchange(f"Say {index}.", "no")}

    def grade(self, conversation, completion):
        return len(completion.text) % 2 == 0


def rollouts(model, tokenizer, **settings) -> Rollouts:
    cfg = Config(**({"examples_per_step": 3, "num_samples": 4, "max_tokens": 9, "device_batch_size": 5} | settings))
    return Rollouts(cfg, Even(), Engine(model, tokenizer, max_batch=4), Dist(), None)


@pytest.fixture
def model(tiny_model, tiny_tokenizer):
    """Ends about every fourth answer."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.head.weight[tiny_tokenizer.special["<|assistant_end|>"]] *= 3
    return model


def test_batches_hold_the_chosen_tokens_and_advantages(model, tiny_tokenizer):
    source = rollouts(model, tiny_tokenizer)
    micro_batches = next(iter(source))
    attempts = [a for a in source.last if a.advantage]
    rows = [(i, t, w) for b in micro_batches for i, t, w in zip(b.inputs, b.targets, b.weights)]
    assert len(rows) == len(attempts) > 0 and all(len(b.inputs) <= 5 for b in micro_batches)
    for (inputs, targets, weights), attempt in zip(rows, attempts):
        assert targets[targets >= 0].tolist() == [
            i for i, chosen in zip(attempt.answer.ids, attempt.answer.mask) if chosen
        ]
        assert inputs[: len(attempt.prompt)].tolist() == attempt.prompt
        assert set(weights.tolist()) == {np.float32(attempt.advantage)}
    ends = [a for a in attempts if a.answer.finish_reason == "stop"]
    assert ends and all(a.answer.ids[-1] in tiny_tokenizer.special.values() and a.answer.mask[-1] for a in ends)
    for i in range(0, 12, 4):  # the advantages of a problem's answers add up to nothing
        assert sum(a.advantage for a in source.last[i : i + 4]) == pytest.approx(0)
    even = sum(len(a.answer.text) % 2 == 0 for a in source.last)
    assert source.metrics["reward"] == pytest.approx(even / 12)
    assert source.metrics["length"] == pytest.approx(sum(len(a.answer.ids) for a in source.last) / 12)


def test_sampling_and_scoring_use_the_same_distribution(model, tiny_tokenizer):
    """The engine's log-probability of every sampled token is the loss that training gives it."""
    source = rollouts(model, tiny_tokenizer)
    next(iter(source))
    prompt = source.last[0].prompt
    answers = source.engine.generate([prompt] * 64, [Sampling(max_tokens=3, logprobs=1, seed=s) for s in range(64)])
    for answer in answers:
        ids = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            nats = model(ids[:, :-1], targets=ids[:, 1:], reduction="none")[0, len(prompt) - 1 :]
        np.testing.assert_allclose([-t.logprob for t in answer.logprobs], nats.numpy(), atol=1e-4)


def test_entropy_and_divergence_are_those_of_the_definition(model, tiny_model, tiny_tokenizer):
    source = rollouts(model, tiny_tokenizer)
    next(iter(source))
    entropy, divergence, count = 0.0, 0.0, 0
    for a in source.last:
        ids = torch.tensor([a.prompt + a.answer.ids])
        with torch.no_grad():
            p, q = (m(ids)[0, len(a.prompt) - 1 : -1].double().softmax(-1) for m in (model, tiny_model))
        entropy -= (p * p.log()).sum().item()
        divergence += (p * (p / q).log()).sum().item()
        count += len(a.answer.ids)
    values = source.compare(model, tiny_model)
    assert values["entropy"] == pytest.approx(entropy / count, rel=1e-4)
    assert values["KL to the start"] == pytest.approx(divergence / count, rel=1e-3) and divergence > 0
    assert source.compare(model, model)["KL to the start"] == pytest.approx(0, abs=1e-6)


def test_answers_depend_on_the_problem_and_not_on_the_ranks(model, tiny_tokenizer):
    class Half(Dist):
        def all_reduce(self, tensor, op="sum"):
            return tensor

    whole = rollouts(model, tiny_tokenizer, examples_per_step=2)
    next(iter(whole))
    halves = []
    for rank in (0, 1):
        part = rollouts(model, tiny_tokenizer, examples_per_step=2)
        part.dist = Half(rank, 0, 2)
        next(iter(part))
        assert part.position == whole.position == {"problems": 2}
        halves += [a.answer.ids for a in part.last]
    assert halves == [a.answer.ids for a in whole.last]
    with pytest.raises(SystemExit, match="multiple of 2"):
        Rollouts(Config(examples_per_step=3), Even(), whole.engine, Half(0, 0, 2), None)


def test_practice_is_never_the_test():
    for name in ("Arithmetic", "MentalArithmetic"):
        assert [task.split for task in practice(name)] == ["train", "validation"]
    for name in ("MMLU", "HumanEval", "Identity", "nothing"):
        with pytest.raises(SystemExit, match="MentalArithmetic"):
            practice(name)
