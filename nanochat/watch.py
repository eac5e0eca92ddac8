"""A run that can be watched: what a model says while it is trained, and the logs that tell of it.

In: a model in training; the files logs/<stage>-<tag>.jsonl. Out: samples for the log; runs and rows for /training.
Reading never disturbs the process that writes: only whole lines are taken, from wherever the reader stopped.
"""

import json
import math
import os
import time

import torch

from nanochat.common import base_dir

TEXTS = ("The Moon is", "In 1905, Albert Einstein", "The most important river of")
QUESTIONS = ("Who are you?", "What is the Moon?", "Tell me about music.")
READ_AT_ONCE = 1 << 20  # bytes, and the rest of the line that they end in; a longer log comes in several answers


@torch.no_grad()
def write_samples(model, tokenizer, stage: str, max_tokens: int = 24, temperature: float = 0.7) -> list[dict]:
    """How the model goes on with a few texts or, after the base stage, answers a few questions.

    -> [{"prompt": str, "text": str}]. The same draws each time, so that only the weights make a difference. No tool
    runs.
    """
    if stage == "base":
        prompts, rows = TEXTS, [[tokenizer.bos_id, *tokenizer.encode(text).tolist()] for text in TEXTS]
    else:
        asked = [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
        prompts, rows = QUESTIONS, [tokenizer.render_for_completion(one).tolist() for one in asked]
    device = next(model.parameters()).device
    starts = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(starts.max()) + max_tokens), tokenizer.bos_id)
    for row, prompt in enumerate(rows):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    generator = torch.Generator().manual_seed(0)
    for step in range(max_tokens):
        at = starts + step
        logits = model(ids[:, : int(at.max())].to(device), at=(at - 1).to(device)).cpu()
        probabilities = torch.softmax(torch.nan_to_num(logits.float()) / temperature, dim=-1)
        ids[torch.arange(len(rows)), at] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    ends = {tokenizer.bos_id, tokenizer.special["<|assistant_end|>"]}
    special = set(tokenizer.special.values())
    samples = []
    for prompt, row, start in zip(prompts, ids.tolist(), starts.tolist()):
        answer = row[start : start + max_tokens]
        length = next((place for place, id in enumerate(answer) if id in ends), len(answer))
        text = tokenizer.decode([id for id in answer[:length] if id not in special])
        samples.append({"prompt": prompt, "text": text})
    return samples


def list_runs() -> list[dict]:
    """Every log, the one that was written last first: {"name", "stage", "tag", "quiet_for": seconds since then}."""
    times = {path: path.stat().st_mtime for path in (base_dir() / "logs").glob("*.jsonl")}
    runs = []
    for path in sorted(times, key=times.get, reverse=True):
        stage, _, tag = path.stem.partition("-")
        quiet = round(max(0.0, time.time() - times[path]), 1)
        runs.append({"name": path.stem, "stage": stage, "tag": tag, "quiet_for": quiet})
    return runs


def read_run(name: str, after: int = 0, file: int = 0) -> dict | None:
    """The rows of a log from byte `after` on: {"rows", "after", "file", "fresh", "more", "quiet_for"}; None if there is
    no such run. `file` is what the last answer said: a log that was begun again since, which is another file of that
    name, is read from its start (`fresh`).
    """
    run = next((run for run in list_runs() if run["name"] == name), None)  # a name, never a path
    if run is None:
        return None
    with open(base_dir() / "logs" / f"{name}.jsonl", "rb") as log:
        log.seek(0, 2)
        size, identity = log.tell(), os.fstat(log.fileno()).st_ino
        fresh = identity != file or not 0 <= after <= size
        start = 0 if fresh else after
        log.seek(start)
        data = log.read(READ_AT_ONCE) + log.readline()
    data = data[: data.rfind(b"\n") + 1]  # a line that is just being written comes the next time
    end = start + len(data)
    rows = [row for line in data.splitlines() if (row := _row(line)) is not None]
    more = len(data) > 0 and end < size
    return {"rows": rows, "after": end, "file": identity, "fresh": fresh, "more": more, "quiet_for": run["quiet_for"]}


def _row(line: bytes) -> dict | None:
    """One line; what is not finite becomes None, since JSON has no word for it."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
