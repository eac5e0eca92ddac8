"""The CORE metric: 22 few-shot tasks on a base model, each centred on its random baseline, averaged.

In: a model, a tokenizer, and the folder with the tasks' published files. Out: a Score a task, and their mean.
Source: DCLM (Li et al., 2024, https://arxiv.org/abs/2406.11794). What it leaves open follows karpathy/nanochat at
92d63d4, nanochat/core_eval.py: the order of the items, their shots, the mean loss over the tokens that differ.

Every item becomes candidates: token rows of which a tail is scored. What the candidates of an item share at the start
is computed once, many items at a time, and the logits of nothing but the scored tails are ever made.
B rows, T tokens, S stored positions, V vocabulary.
"""

import csv
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nanochat.common import Dist, Progress, tokens_at_once
from nanochat.files import read_jsonl
from nanochat.score import Score, fingerprint

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # all files below, and eval_meta_data.csv
BASELINES = "eval_meta_data.csv"
WINDOW = 2048  # items that are sorted by length together: that saves padding, and all of them would cost memory


@dataclass(frozen=True)
class CoreTask:
    """One of the 22: the kind says which part of an item varies and which part is scored."""

    name: str
    kind: str  # "multiple_choice", "schema" or "language_modeling"
    file: str
    shots: int
    delimiter: str = " "  # between what is given and what is scored


ANSWER = "\nAnswer: "
CORE_TASKS = (
    CoreTask("hellaswag_zeroshot", "multiple_choice", "hellaswag.jsonl", 0),
    CoreTask("jeopardy", "language_modeling", "jeopardy_all.jsonl", 10, ANSWER),
    CoreTask("bigbench_qa_wikidata", "language_modeling", "bigbench_qa_wikidata.jsonl", 10),
    CoreTask("arc_easy", "multiple_choice", "arc_easy.jsonl", 10, ANSWER),
    CoreTask("arc_challenge", "multiple_choice", "arc_challenge.jsonl", 10, ANSWER),
    CoreTask("copa", "multiple_choice", "copa.jsonl", 0),
    CoreTask("commonsense_qa", "multiple_choice", "commonsense_qa.jsonl", 10),
    CoreTask("piqa", "multiple_choice", "piqa.jsonl", 10, ANSWER),
    CoreTask("openbook_qa", "multiple_choice", "openbook_qa.jsonl", 0),
    CoreTask("lambada_openai", "language_modeling", "lambada_openai.jsonl", 0),
    CoreTask("hellaswag", "multiple_choice", "hellaswag.jsonl", 10),
    CoreTask("winograd", "schema", "winograd_wsc.jsonl", 0),
    CoreTask("winogrande", "schema", "winogrande.jsonl", 0),
    CoreTask("bigbench_dyck_languages", "language_modeling", "bigbench_dyck_languages.jsonl", 10),
    CoreTask("agi_eval_lsat_ar", "multiple_choice", "agi_eval_lsat_ar.jsonl", 3),
    CoreTask("bigbench_cs_algorithms", "language_modeling", "bigbench_cs_algorithms.jsonl", 10),
    CoreTask("bigbench_operators", "language_modeling", "bigbench_operators.jsonl", 10),
    CoreTask("bigbench_repeat_copy_logic", "language_modeling", "bigbench_repeat_copy_logic.jsonl", 10),
    CoreTask("squad", "language_modeling", "squad.jsonl", 10),
    CoreTask("coqa", "language_modeling", "coqa.jsonl", 0),
    CoreTask("boolq", "multiple_choice", "boolq.jsonl", 10, ANSWER),
    CoreTask("bigbench_language_identification", "multiple_choice", "bigbench_language_identification.jsonl", 10),
)


@dataclass(frozen=True)
class CoreResult:
    core: float  # mean centred accuracy over the scores
    scores: list[Score]
    missing: list[str]  # tasks whose files are not in the folder


def evaluate_core(
    model,
    tokenizer,
    folder: Path,
    *,
    names: Sequence[str] = (),
    max_per_task: int | None = None,
    known: Mapping[str, Score] = {},
    keep: Callable[[Score], None] = lambda score: None,
    dist: Dist = Dist(),
) -> CoreResult:
    """Score every task whose file is in `folder`, or those in `names`. Ranks share the items and agree on the result.

    SystemExit if nothing is there to score. `max_per_task` keeps the first items of each task in its shuffled order,
    with the same shots as in a full run. Scores that are `known` are not computed again; `keep` gets every new one, on
    all ranks.
    """
    unknown = set(names) - {task.name for task in CORE_TASKS}
    if unknown:
        raise SystemExit(
            f"No CORE task is called {', '.join(sorted(unknown))}. There are: {', '.join(t.name for t in CORE_TASKS)}."
        )
    wanted = [task for task in CORE_TASKS if not names or task.name in names]
    found = {task.name: find_file(folder, task.file) for task in wanted}
    missing = [task.name for task in wanted if found[task.name] is None]
    if len(missing) == len(wanted):
        raise SystemExit(
            f"No CORE task found in {folder}: put the files of the evaluation bundle there ({wanted[0].file}, ..., "
            f"{BASELINES}; published at {URL}), or name another folder with --evals."
        )
    chance = read_baselines(folder)
    scores = []
    for task in wanted:
        if task.name in missing:
            continue
        if (score := known.get(task.name)) is None:
            rows = read_jsonl(found[task.name])
            score = evaluate_task(model, tokenizer, task, rows, chance[task.name], max_per_task, dist)
            keep(score)
        scores.append(score)
    return CoreResult(sum(score.centered for score in scores) / len(scores), scores, missing)


def evaluate_task(model, tokenizer, task, rows, chance, max_items=None, dist=Dist()) -> Score:
    """Accuracy on one task. `rows` are its published rows in their published order."""
    shuffled(rows)
    count = min(len(rows), max_items or len(rows))
    device = next(model.parameters()).device
    limit = model.config.sequence_len
    right, cut, done = torch.zeros(count, device=device), torch.zeros(1, device=device), 0
    progress = Progress(task.name, len(range(dist.rank, count, dist.world_size)), unit="items", dist=dist)
    for start in range(dist.rank, count, dist.world_size * WINDOW):
        indices = range(start, count, dist.world_size)[:WINDOW]
        items = build_items(tokenizer, task, rows, indices, limit)
        cut += sum(item.cut for item in items)
        for item, losses, hits in score_items(model, items, tokens_at_once(device)):
            right[indices[item]] = judge(task, rows[indices[item]], losses, hits)
            done += 1
            progress.update(done)
    dist.all_reduce(right)
    dist.all_reduce(cut)
    verdicts = [v > 0 for v in right.tolist()]
    asked = fingerprint(rows[:count])
    return Score(task.name, sum(verdicts), count, chance, cut=int(cut), verdicts=verdicts, asked=asked)


def read_items(folder: Path, name: str, count: int) -> list[str]:
    """The first `count` items of a task, each with its right answer and without shots, in the order of evaluation."""
    task = next(task for task in CORE_TASKS if task.name == name)
    rows = shuffled(read_jsonl(find_file(folder, task.file)))
    return [render_prompts(task, row, ())[row.get("gold", -1)] for row in rows[:count]]


def shuffled(rows: list[dict]) -> list[dict]:
    """The order that `max_items` cuts; the published evaluation shuffles so too."""
    random.Random(1337).shuffle(rows)
    return rows


def judge(task: CoreTask, row: dict, losses: list[np.ndarray], hits: list[np.ndarray]) -> bool:
    """Right if the gold candidate has the lowest mean loss, or if greedy decoding would write the continuation."""
    if task.kind == "language_modeling":
        return bool(hits[0].all())
    return int(np.argmin([loss.mean() for loss in losses])) == row["gold"]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def find_file(folder: Path, name: str) -> Path | None:
    """The file in the folder or below it (the published bundle has folders); or a part of it, like squad_1000.jsonl."""
    stem = name.removesuffix(".jsonl")
    candidates = sorted(folder.rglob(name)) or sorted(folder.rglob(f"{stem}_[0-9]*.jsonl"))
    return candidates[0] if candidates else None


def read_baselines(folder: Path) -> dict[str, float]:
    """Accuracy of guessing, by task, from the published table."""
    path = find_file(folder, BASELINES)
    if path is None:
        raise SystemExit(
            f"{BASELINES} is missing in {folder}: it is part of the evaluation bundle, published at {URL}."
        )
    with open(path, encoding="utf-8", newline="") as file:
        return {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}


# ---------------------------------------------------------------------------------------------------------------------
# Rows -> prompts -> candidates


@dataclass(frozen=True)
class Item:
    """Candidates of one question: the first `shared` tokens are the same in all, each is scored from `starts` on."""

    tokens: list[np.ndarray]
    starts: list[int]
    shared: int
    cut: bool = False


def choose_shots(rows: Sequence[dict], index: int, shots: int) -> list[dict]:
    """The examples before question `index`: always the same, never the question; all others if there are too few."""
    picks = random.Random(1234 + index).sample(range(len(rows) - 1), min(shots, len(rows) - 1))
    return [rows[pick + (pick >= index)] for pick in picks]


def render_prompts(task: CoreTask, row: dict, shots: Sequence[dict]) -> list[str]:
    """Whole prompts. Two for language modeling: without and with the continuation."""
    if task.kind == "multiple_choice":
        before = "".join(f"{s['query']}{task.delimiter}{s['choices'][s['gold']]}\n\n" for s in shots)
        return [f"{before}{row['query']}{task.delimiter}{choice}" for choice in row["choices"]]
    if task.kind == "schema":
        before = "".join(f"{s['context_options'][s['gold']]}{task.delimiter}{s['continuation']}\n\n" for s in shots)
        return [f"{before}{option}{task.delimiter}{row['continuation']}" for option in row["context_options"]]
    before = "".join(f"{s['context'].strip()}{task.delimiter}{s['continuation']}\n\n" for s in shots)
    given = f"{before}{row['context'].strip()}{task.delimiter}"
    return [given.strip(), given + row["continuation"]]  # a blank at the end would be half of the next token


def build_items(tokenizer, task: CoreTask, rows: Sequence[dict], indices: Sequence[int], limit: int) -> list[Item]:
    """Items of rows[indices], none longer than `limit` tokens."""
    prompts = [render_prompts(task, rows[index], choose_shots(rows, index, task.shots)) for index in indices]
    encoded = iter(tokenizer.encode_batch([text for group in prompts for text in group]))
    return [build_item(task.kind, [next(encoded) for _ in group], tokenizer.bos_id, limit) for group in prompts]


def build_item(kind: str, encoded: list[np.ndarray], bos: int, limit: int) -> Item:
    """Find what is scored: where the candidates differ (multiple choice), what their ends share (schema), or what the
    second prompt adds to the first (language modeling). Every candidate keeps at least one scored token, also when it
    is the beginning of another, where the published code would take the mean of nothing."""
    tokens = [np.concatenate(([bos], ids)).astype(np.int64) for ids in encoded]
    shortest = min(map(len, tokens))
    if kind == "schema":
        suffix = min(common_prefix([ids[::-1] for ids in tokens]), shortest - 1)
        starts = [len(ids) - suffix for ids in tokens]
    else:
        first = min(common_prefix(tokens), len(tokens[-1]) - 1 if kind == "language_modeling" else shortest - 1)
        tokens = tokens[-1:] if kind == "language_modeling" else tokens
        starts = [first] * len(tokens)
    shared = min(common_prefix(tokens), min(starts))
    over = max(map(len, tokens)) - limit
    return Item(tokens, starts, shared) if over <= 0 else cut_item(tokens, starts, shared, over, limit)


def cut_item(tokens: list[np.ndarray], starts: list[int], shared: int, over: int, limit: int) -> Item:
    """Drop `over` tokens after <|bos|>, the same from all candidates; what is then still too long loses more, alone."""
    drop = min(over, shared - 1)
    tokens = [np.concatenate((ids[:1], ids[1 + drop :])) for ids in tokens]
    starts, shared = [start - drop for start in starts], shared - drop
    for i, ids in enumerate(tokens):
        more = max(0, len(ids) - limit)
        tokens[i] = np.concatenate((ids[:1], ids[1 + more :]))
        starts[i] = max(1, starts[i] - more)
    return Item(tokens, starts, min(shared, common_prefix(tokens), *starts), cut=True)


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with."""
    length = min(map(len, rows))
    differ = np.zeros(length, dtype=bool)
    for row in rows[1:]:
        differ |= row[:length] != rows[0][:length]
    return int(differ.argmax()) if differ.any() else length


# ---------------------------------------------------------------------------------------------------------------------
# Candidates -> losses


@dataclass
class PrefixCache:
    """Keys and values of prefixes (the cache that gpt.py asks for); `fork` lets many rows go on from each of them.

    The forked rows copy a prefix for one layer at a time, and what they add is not kept: each goes on only once.
    """

    pos: torch.Tensor
    prev: torch.Tensor
    layers: dict = field(default_factory=dict)
    rows: torch.Tensor | None = None

    @classmethod
    def empty(cls, count: int, device: torch.device) -> "PrefixCache":
        pos = torch.zeros(count, dtype=torch.long, device=device)
        return cls(pos, pos - 1)

    def fork(self, rows: torch.Tensor) -> "PrefixCache":
        return PrefixCache(self.pos[rows], self.prev[rows], self.layers, rows)

    def update(self, layer, k, v):
        if self.rows is None:
            self.layers[layer] = (k, v)
            return k, v
        columns = self.pos[:, None] + torch.arange(k.size(1), device=k.device)
        return tuple(self.extend(old, new, columns) for old, new in zip(self.layers[layer], (k, v)))

    def extend(self, old, new, columns):
        """old (prefixes, P, H, D), new (B, T, H, D), columns (B, T) -> (B, P + T, H, D)."""
        stored = old.size(1)
        whole = new.new_zeros(len(new), stored + new.size(1), *new.shape[2:])
        whole[:, :stored] = old[self.rows]
        whole.scatter_(1, columns[..., None, None].expand_as(new), new)
        return whole

    def advance(self, idx, n):
        n = torch.as_tensor(n, device=idx.device).expand(len(idx))
        self.prev = idx.gather(1, n[:, None] - 1).squeeze(1)
        self.pos = self.pos + n


@torch.inference_mode()
def score_items(model, items: Sequence[Item], budget: int) -> Iterator[tuple[int, list[np.ndarray], list[np.ndarray]]]:
    """Yield (index of the item, losses, hits), longest prefix first, where for each candidate losses[c] are the nats of
    its scored tokens and hits[c] says which of them were the model's first choice."""
    order = sorted(range(len(items)), key=lambda i: -items[i].shared)
    while order:
        count = max(1, budget // items[order[0]].shared)
        chunk, order = order[:count], order[count:]
        for i, (losses, hits) in zip(chunk, score_chunk(model, [items[i] for i in chunk], budget)):
            yield i, losses, hits


def score_chunk(model, items: list[Item], budget: int) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Losses and hits of a few items: their prefixes in one forward, then the candidates' own tokens in others."""
    device = next(model.parameters()).device
    cache = PrefixCache.empty(len(items), device)
    prefixes = pad([item.tokens[0][: item.shared] for item in items], device)
    last = torch.tensor([item.shared - 1 for item in items], device=device)
    first_logits = model(prefixes, cache=cache, at=last)  # (items, V): what follows the prefix

    owner = [i for i, item in enumerate(items) for _ in item.tokens]
    own = [ids[item.shared :] for item in items for ids in item.tokens]
    first = torch.from_numpy(np.array([ids[0] for ids in own])).to(device)
    losses, hits = read_logits(first_logits[torch.tensor(owner, device=device)], first)
    parts = [([loss], [hit]) for loss, hit in zip(losses.tolist(), hits.tolist())]

    # The rest of each candidate: its tokens but the last are read, its tokens but the first are scored.
    order = sorted((c for c, ids in enumerate(own) if len(ids) > 1), key=lambda c: -len(own[c]))
    while order:
        count = max(1, budget // (len(own[order[0]]) + prefixes.size(1)))  # a row also reads its prefix
        chunk, order = order[:count], order[count:]
        read, scored = pad([own[c][:-1] for c in chunk], device), pad([own[c][1:] for c in chunk], device)
        rows = torch.tensor([owner[c] for c in chunk], device=device)
        losses, hits = read_logits(model(read, cache=cache.fork(rows)), scored)
        for c, loss, hit in zip(chunk, losses.tolist(), hits.tolist()):
            parts[c][0].extend(loss[: len(own[c]) - 1])
            parts[c][1].extend(hit[: len(own[c]) - 1])

    ends = iter(parts)
    results = []
    for item in items:
        tails = [(next(ends), start - item.shared) for start in item.starts]
        results.append(tuple([np.array(part[which][skip:]) for part, skip in tails] for which in (0, 1)))
    return results


def read_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (..., V), targets (...) -> the targets' losses in nats, and whether they were the most likely token."""
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return logits.logsumexp(-1) - chosen, logits.argmax(-1) == targets


def pad(rows: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Rows of ids -> (B, T) int64, filled up on the right with zeros."""
    whole = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for i, row in enumerate(rows):
        whole[i, : len(row)] = row
    return torch.from_numpy(whole).to(device)
