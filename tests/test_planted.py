"""No grader can be gamed: on every task a planted perfect model gets all, a planted wrong one nothing, chance chance.

With NANOCHAT_EVALS=<folder of the published sets> it runs on all of their items, else on a few made here.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from models import random_model
from test_chat_eval import Oracle
from test_eval_tasks import BODY, PROMPT, TEST, arc_row, mmlu_row, require_sandbox, write

from nanochat.chat_eval import CHAT_CORE, evaluate
from nanochat.engine import Completion
from nanochat.gpt import GPT, GPTConfig
from tasks.common import visible_text
from tasks.registry import PUBLISHED, evaluation_task, evaluation_tasks

EVALS = os.environ.get("NANOCHAT_EVALS")
BUILT_IN = ("Arithmetic", "MentalArithmetic", "LetterCount", "Spelling", "Topic", "Identity", "WhatIs")


@pytest.fixture(scope="module")
def evals(tmp_path_factory) -> Path:
    if EVALS:
        return Path(EVALS)
    folder = tmp_path_factory.mktemp("evals")
    for name, first in (("easy", 600), ("challenge", 3900)):  # numbers whose right letters are about even
        rows = [arc_row(i, "ABCDE"[: 3 + i % 3]) for i in range(first, first + 300)]
        write(folder / f"arc_{name}_test.jsonl", rows)
    write(folder / "mmlu_test.jsonl", [mmlu_row(i) for i in range(400)])
    write(folder / "gsm8k_test.jsonl", [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(20)])
    human = {"prompt": PROMPT, "canonical_solution": BODY, "test": TEST, "entry_point": "area"}
    write(folder / "HumanEval.jsonl", [human] * 3)
    return folder


class Planted:
    """An engine that answers every prompt as it was told."""

    def __init__(self, tokenizer, answers: dict):
        self.model = SimpleNamespace(config=SimpleNamespace(sequence_len=10**6))
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, prompts, sampling):
        contents = [self.answers[tuple(prompt)] for prompt in prompts]
        parts = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
        return [Completion([1], [True], visible_text(p), p, "stop", None, 1, 0) for p in parts]


@pytest.mark.parametrize("name", [*PUBLISHED, *BUILT_IN])
def test_a_perfect_model_gets_all_and_a_wrong_one_nothing(name, evals, tiny_tokenizer):
    if name == "HumanEval":
        require_sandbox()
    (task,), _ = evaluation_tasks((name,), evals)
    items = [task[i] for i in range(len(task) if EVALS else min(len(task), 60))]
    for right in (True, False):
        if task.kind == "categorical":
            engine = SimpleNamespace(model=planted_letters(tiny_tokenizer, items, 1.0 if right else -1.0))
        else:
            prompts = [tuple(tiny_tokenizer.render_for_completion(item).tolist()) for item in items]
            references = [item["messages"][-1]["content"] if right else "I do not know." for item in items]
            engine = Planted(tiny_tokenizer, dict(zip(prompts, references)))
        score = evaluate(engine, tiny_tokenizer, task, max_items=len(items))
        assert (score.correct, score.total) == (len(items) if right else 0, len(items)), name


def planted_letters(tokenizer, items, sign) -> Oracle:
    oracle = Oracle(tokenizer, items, sign)
    oracle.config = GPTConfig(tokenizer.vocab_size, 10**6, 1, 1, 1, 4)
    return oracle


class FirstIsRight:
    """A biased grader: whatever the question, the first letter counts as right."""

    def __init__(self, task):
        self.task, self.name, self.kind, self.chance = task, task.name, task.kind, task.chance

    def __len__(self):
        return len(self.task)

    def __getitem__(self, index):
        return self.task[index]

    def grade(self, conversation, completion):
        return completion.text == conversation["letters"][0]


def noisy_model(tokenizer, seed: int) -> GPT:
    """Noise in every weight, so that it prefers some letters to others, more with some questions than with others."""
    config = GPTConfig(tokenizer.vocab_size, 1024, n_layer=2, n_head=1, n_kv_head=1, n_embd=32)
    return random_model(config, noise=0.2, seed=seed)


@pytest.mark.parametrize("name", [name for name in CHAT_CORE if name in ("ARC-Easy", "ARC-Challenge", "MMLU")])
def test_random_weights_score_at_chance(name, evals, tiny_tokenizer):
    """Whatever such a model prefers. With a biased grader the same models would not."""
    task = evaluation_task(name, evals)
    biased = []
    for seed in range(3):
        engine = SimpleNamespace(model=noisy_model(tiny_tokenizer, seed))
        score, other = (evaluate(engine, tiny_tokenizer, t) for t in (task, FirstIsRight(task)))
        print(
            f"{name}: {score.correct} of {score.total}, {score.low:.4f} to {score.high:.4f}, chance {task.chance:.4f}"
        )
        assert score.total == len(task) and score.low < task.chance < score.high
        biased.append(not other.low < task.chance < other.high)
    assert sum(biased) >= 2, "these models prefer no letter, so they would not show a bias"
