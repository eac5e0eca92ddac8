"""Chat tasks and ChatCORE: how many items of a task a chat model gets right, and how sure that is.

In: an Engine, a tokenizer and a task (dev/ARCHITECTURE.md). Out: a Score with its 95% interval and transcripts.
Categorical tasks are read off the logits of the answer letters; generative ones are answered and graded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import torch

from nanochat.common import Dist, Progress, tokens_at_once
from nanochat.core_eval import pad
from nanochat.engine import Completion, Sampling
from nanochat.score import Score, fingerprint

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "Spelling")
PASS_AT = (1, 2, 4, 8, 16, 32, 64, 100)
TRANSCRIPTS = 10  # of each task are kept, the first ones, right or wrong


def chat_core(scores: Sequence[Score]) -> float:
    """Mean centred accuracy. It is ChatCORE if the scores are those of the tasks in CHAT_CORE."""
    return sum(score.centered for score in scores) / len(scores)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of k answers is right, estimated without bias from `correct` of `samples`. Chen et al., 2021."""
    return 1 - comb(samples - correct, k) / comb(samples, k)


def evaluate(
    engine,
    tokenizer,
    task,
    *,
    max_items: int | None = None,
    batch: int = 64,
    max_tokens: int = 512,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    dist: Dist = Dist(),
) -> Score:
    """Score a task, or its first `max_items` items. Ranks share the items and agree on the result.

    With `num_samples` above 1 a generative item is right if one of its answers is, and Score.pass_at says more. The
    answer to an item depends on the seed and the item, never on the batch or on the number of ranks. ValueError for
    several samples at temperature 0, which would all be the same.
    """
    if num_samples > 1 and temperature == 0:
        raise ValueError(f"{num_samples} samples at temperature 0 would all be the same; set --temperature above 0.")
    count = min(len(task), max_items or len(task))
    indices = range(dist.rank, count, dist.world_size)
    if task.kind == "categorical":
        num_samples = 1
        answers = answer_with_letters(engine.model, tokenizer, task, indices)
    else:
        base = Sampling(max_tokens=max_tokens, temperature=temperature)
        answers = answer_with_text(engine, tokenizer, task, indices, base, num_samples, seed, batch)

    right = torch.zeros(count, dtype=torch.int64, device=dist.device)  # answers that are right, by item
    cut = torch.zeros(1, dtype=torch.int64, device=dist.device)
    progress, transcripts = Progress(task.name, len(indices), unit="items", dist=dist), {}
    for done, answer in enumerate(answers, start=1):
        verdicts = [bool(task.grade(answer.conversation, completion)) for completion in answer.completions]
        right[answer.index] = sum(verdicts)
        cut += answer.cut
        if answer.index < TRANSCRIPTS:
            transcripts[answer.index] = describe(answer, verdicts[0])
        progress.update(done)

    counts, cut = dist.all_reduce(right).tolist(), int(dist.all_reduce(cut))
    transcripts = {index: item for part in dist.gather_objects(transcripts) for index, item in part.items()}
    pass_at = {k: sum(pass_at_k(num_samples, c, k) for c in counts) / count for k in PASS_AT if k <= num_samples > 1}
    items = [transcripts[index] for index in sorted(transcripts)]
    verdicts = [c > 0 for c in counts]
    asked = fingerprint(task[index] for index in range(count))
    return Score(task.name, sum(verdicts), count, task.chance, cut, pass_at, verdicts, items, asked=asked)


@dataclass(frozen=True)
class Answered:
    index: int
    conversation: dict
    completions: list[Completion]
    cut: bool


def answer_with_letters(model, tokenizer, task, indices: Sequence[int]) -> Iterator[Answered]:
    """The likeliest of each item's letters, read where the answer would begin. Longest prompts first."""
    device = next(model.parameters()).device
    items = [(index, task[index]) for index in indices]
    prompts = [cut_prompt(tokenizer.render_for_completion(c), model.config.sequence_len) for _, c in items]
    order = sorted(range(len(items)), key=lambda i: -len(prompts[i][0]))
    while order:
        size = max(1, tokens_at_once(device) // len(prompts[order[0]][0]))
        chunk, order = order[:size], order[size:]
        logits = last_logits(model, [prompts[i][0] for i in chunk], device).cpu()
        for i, row in zip(chunk, logits):
            index, conversation = items[i]
            ids = [letter_id(tokenizer, letter) for letter in conversation["letters"]]
            best = int(row[ids].argmax())
            letter, prompt = conversation["letters"][best], prompts[i]
            yield Answered(index, conversation, [say(letter, ids[best], len(prompt[0]))], prompt[1])


@torch.inference_mode()
def last_logits(model, prompts: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """Logits (B, V) after the last token of each prompt, in one forward of rows padded on the right."""
    at = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return model(pad(prompts, device), at=at)


def letter_id(tokenizer, letter: str) -> int:
    """The token that an answer of this letter is. ValueError if the tokenizer needs several."""
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(
            f"The letter {letter!r} must be one token to be read off the logits; this tokenizer makes {len(ids)}."
        )
    return int(ids[0])


def say(text: str, token: int, prompt_tokens: int) -> Completion:
    """An answer of one token, as the engine would hand it over."""
    return Completion([token], [True], text, [{"type": "text", "text": text}], "stop", None, prompt_tokens, 0)


def answer_with_text(
    engine, tokenizer, task, indices, base: Sampling, samples: int, seed: int, batch: int
) -> Iterator[Answered]:
    """Whole answers from the engine, about `batch` at a time."""
    limit = engine.model.config.sequence_len
    room = min(base.max_tokens, limit // 2)  # what a long prompt must leave for the answer
    size = max(1, batch // samples)
    for start in range(0, len(indices), size):
        items = [(index, task[index]) for index in indices[start : start + size]]
        prompts = [cut_prompt(tokenizer.render_for_completion(conversation), limit - room) for _, conversation in items]
        requests = [
            (
                prompt,
                replace(
                    base, seed=draw_seed(seed, index, sample), max_tokens=min(base.max_tokens, limit - len(prompt))
                ),
            )
            for (index, _), (prompt, _) in zip(items, prompts)
            for sample in range(samples)
        ]
        completions = iter(
            engine.generate([list(map(int, p)) for p, _ in requests], [sampling for _, sampling in requests])
        )
        for (index, conversation), (_, cut) in zip(items, prompts):
            yield Answered(index, conversation, [next(completions) for _ in range(samples)], cut)


def cut_prompt(ids: np.ndarray, limit: int) -> tuple[np.ndarray, bool]:
    """At most `limit` tokens: <|bos|><|user_start|> and the end of the conversation. Also whether anything was lost."""
    return (ids, False) if len(ids) <= limit else (np.concatenate((ids[:2], ids[len(ids) - limit + 2 :])), True)


def draw_seed(*keys: int) -> int:
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def describe(answer: Answered, correct: bool) -> dict:
    """A transcript for the report."""
    *before, reference = answer.conversation["messages"]
    return {
        "prompt": before[-1]["content"],
        "answer": flatten(answer.completions[0].parts),
        "reference": flatten(reference["content"]),
        "correct": correct,
    }


def flatten(content: str | list[dict]) -> str:
    """A message as one text, with tool calls between their special tokens."""
    if isinstance(content, str):
        return content
    around = {
        "text": ("", ""),
        "python": ("<|python_start|>", "<|python_end|>"),
        "python_output": ("<|output_start|>", "<|output_end|>"),
    }
    return "".join(part["text"].join(around[part["type"]]) for part in content)
