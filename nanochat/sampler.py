"""Choosing the next token of each row of a batch, on the device that the logits are on.

In: logits, and for each row what was asked for and what came so far. Out: token ids and log probabilities.
A row's result depends on its own logits, settings and seed only, whoever else is in the batch.
"""

import math
from collections.abc import Sequence

import torch

from nanochat.answer import TokenLogprob


def uniform(seed: int, n: int) -> float:
    """The n-th number in [0, 1) of a seed: no state, so company cannot matter (splitmix64, 2014)."""

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        return z ^ z >> 31

    return (mix(mix(seed) + n) >> 42) / 2**22  # 22 bits: times a float32 it stays below it


def choose(logits: torch.Tensor, requests: Sequence) -> list[int]:
    """The next token of each row. logits (B, V) float32; -1 for a row that is not all numbers.

    Rows are treated in kinds that depend on their own settings, so that a row is computed alike in any company.
    """
    logits = adjust(logits, requests)
    # numpy's is ten times as fast as torch's on a CPU
    ids = torch.from_numpy(logits.numpy().argmax(1)) if logits.device.type == "cpu" else logits.argmax(dim=1)
    ids = torch.where(logits.gather(1, ids[:, None])[:, 0].isfinite(), ids, -1)
    kinds: dict[str, list[int]] = {}
    for row, request in enumerate(requests):
        s = request.sampling
        if s.temperature > 0:
            cut = s.top_k > 0 or s.top_p < 1
            kinds.setdefault("few" if 0 < s.top_k <= 64 else "sorted" if cut else "all", []).append(row)
    for kind, rows in kinds.items():
        at = torch.tensor(rows, device=logits.device)
        part, candidates = logits if len(rows) == len(requests) else logits.index_select(0, at), None
        if kind != "all":
            part, candidates = part.topk(min(64, part.size(1)) if kind == "few" else part.size(1))
        drawn = draw(part, [requests[row] for row in rows])
        if candidates is not None:
            drawn = candidates.gather(1, drawn[:, None])[:, 0]
        ids.index_copy_(0, at, torch.where(ids.index_select(0, at) < 0, -1, drawn))
    return ids.tolist()


def adjust(logits: torch.Tensor, requests: Sequence) -> torch.Tensor:
    """Penalties, logit_bias and grammar of the rows that have one."""
    one_of = lambda r: (r.bias, r.seen, r.counts, r.grammar)  # noqa: E731
    special = [row for row, r in enumerate(requests) if any(x is not None for x in one_of(r))]
    if not special:
        return logits
    logits = logits.clone()
    for row in special:
        request, values = requests[row], logits[row]
        if request.seen is not None:
            penalty = request.sampling.repetition_penalty
            values.copy_(torch.where(request.seen, torch.where(values > 0, values / penalty, values * penalty), values))
        if request.counts is not None and request.answer.kind == "text":
            s, counts = request.sampling, request.counts
            values -= s.frequency_penalty * counts + s.presence_penalty * (counts > 0)
        if request.bias is not None:
            values += request.bias
        if request.grammar is not None:
            allowed = torch.from_numpy(request.grammar.allowed()).to(values.device)
            values.copy_(values.clamp(min=-1e30).where(allowed, -math.inf))
    return logits


def draw(logits: torch.Tensor, requests: Sequence) -> torch.Tensor:
    """One column of each row by its probability. logits (B, K), sorted downwards if top_k or top_p is used -> (B,)."""
    settings = [(s.temperature, s.top_k or logits.size(1), s.top_p, s.min_p) for s in (r.sampling for r in requests)]
    temperature, top_k, top_p, min_p = torch.tensor(settings, device=logits.device).T[:, :, None]
    p = torch.softmax((logits - logits.amax(1, keepdim=True)) / temperature, dim=1)
    p = p.where(p >= min_p * p.amax(1, keepdim=True), 0)
    if any(r.sampling.top_k or r.sampling.top_p < 1 for r in requests):
        p = p.where(torch.arange(p.size(1), device=p.device) < top_k, 0)
        p = p / p.sum(1, keepdim=True)
        p = p.where(p.cumsum(1) - p < top_p, 0)
    total = p.cumsum(1)
    u = [uniform(r.seed, len(r.answer.ids)) for r in requests]
    target = torch.tensor(u, device=logits.device)[:, None] * total[:, -1:]
    return (total > target).int().argmax(1)


def log_probabilities(logits: torch.Tensor, ids: list[int], requests: Sequence) -> list[TokenLogprob | None]:
    """Of the tokens that were taken, and of the likeliest, for the rows that want them. logits (B, V), as they came."""
    out: list[TokenLogprob | None] = [None] * len(ids)
    rows = [row for row, r in enumerate(requests) if r.sampling.logprobs is not None and ids[row] >= 0]
    if rows:
        logp = torch.log_softmax(logits[rows], dim=1)
        taken = logp.gather(1, torch.tensor([ids[row] for row in rows], device=logp.device)[:, None])[:, 0].tolist()
        most = min(max(requests[row].sampling.logprobs for row in rows), logp.size(1))
        values, tops = (t.tolist() for t in logp.topk(most))
        for i, row in enumerate(rows):
            n = requests[row].sampling.logprobs
            out[row] = TokenLogprob(ids[row], taken[i], list(zip(tops[i][:n], values[i][:n])))
    return out
