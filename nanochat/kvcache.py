"""A model with slots of keys and values, run by torch: what the engine has on a GPU (cpu_forward.py is for CPUs).

In: a model; then tokens of prompts and answers. Out: logits, whose bits do not depend on the company: a prompt is
computed in chunks that start at multiples of the chunk, an answer in batches of a number of rows that was seen to
give the same bits, against a number of stored positions rounded up from its own.
"""

import copy

import torch
import torch.nn as nn

from nanochat.lora import merged

ROW_COUNTS = (4, 8, 16, 32, 64)  # the batches that decode is tried in
ROUND = 64  # positions: what a row attends to is rounded up to a multiple of this


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class KVCache:
    """Keys and values of all slots; the memory is taken once, here."""

    def __init__(self, config, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layer, slots, length, config.n_kv_head, config.n_embd // config.n_head)
        # Zeros, not empty: what lies beyond a row's position is weighted by 0, and 0 times NaN is NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def copy(self, source: int, target: int, n: int) -> None:
        """The first n positions of a slot, into another."""
        for store in (self.keys, self.values):
            store[:, target, :n] = store[:, source, :n]

    def swap(self, a: int, b: int, n: int) -> None:
        """Exchange the first n positions of two slots."""
        for store in (self.keys, self.values):
            kept = store[:, a, :n].clone()
            store[:, a, :n] = store[:, b, :n]
            store[:, b, :n] = kept

    def clear(self, slot: int) -> None:
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()


class Rows:
    """Neighbouring slots of a cache as one batch, which is what GPT.forward sees (see dev/ARCHITECTURE.md).

    The slots from `first` on are live, one for each of `pos`; rows that hold nothing make up the `count`. They are
    computed and thrown away: the number of rows decides the bits of the result.
    """

    def __init__(self, cache: KVCache, first: int, pos: list[int], prev: list[int], count: int, stored: int):
        device, live = cache.keys.device, len(pos)
        padding = count - live
        self.pos, self.prev = torch.tensor([pos + [0] * padding, prev + [-1] * padding], device=device)
        self.live, self.row = live, torch.arange(live, device=device)[:, None]
        self.columns: torch.Tensor | None = None
        self.stores = [store[:, first : first + live] for store in (cache.keys, cache.values)]
        if live == 1:  # the padding reads what the live row reads, so it costs no memory traffic
            self.views = [store[:, :, :stored].expand(-1, count, -1, -1, -1) for store in self.stores]
        else:
            self.views = [store[:, first : first + count, :stored] for store in (cache.keys, cache.values)]

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.columns is None:  # the same for all layers
            self.columns = self.pos[: self.live, None] + torch.arange(k.size(1), device=k.device)
        for store, new in zip(self.stores, (k, v)):
            store[layer].index_put_((self.row, self.columns), new[: self.live])
        return self.views[0][layer], self.views[1][layer]

    def advance(self, idx: torch.Tensor, n: int | torch.Tensor) -> None:
        n = torch.full_like(self.pos, n) if isinstance(n, int) else n
        self.pos = self.pos + n
        self.prev = idx.gather(1, n[:, None] - 1)[:, 0]
        self.columns = None


def inference_copy(model: nn.Module) -> nn.Module:
    """The model with its weights in its compute type; those that need no change are shared with the original.

    On a CPU matrices are laid out by input channel: a product then reads them in order and, unlike with torch's own
    layout, has the same bits for 4 rows as for 16, and takes less time for few rows.
    """
    model = merged(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    copies = {}
    for p in model.parameters():
        weight = p.detach().to(model.compute_dtype)
        if p.device.type == "cpu" and p.dim() > 1 and id(p) not in tables:
            weight = weight.flatten(0, -2).t().contiguous().t().view(weight.shape)
        copies[id(p)] = nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(model, copies).eval()


class TorchForward:
    """What the engine asks for: `prefill`, `decode`, and slots that are copied, swapped and cleared."""

    checks_guesses = False  # several tokens of one answer at once would have other bits

    def __init__(self, model: nn.Module, slots: int, length: int):
        self.device = next(model.parameters()).device
        self.chunk = 64 if self.device.type == "cpu" else 256  # tokens of a prompt at once
        self.granule = self.chunk  # a prefix is reused in multiples of this
        self.load(model)
        self.row_counts = self._try_row_counts(slots)
        self.slots = round_up(slots, self.row_counts[0])
        length = round_up(length, self.chunk)
        self.cache = KVCache(model.config, self.slots, length, self.device, model.compute_dtype)
        self.copy, self.swap, self.clear = self.cache.copy, self.cache.swap, self.cache.clear

    def load(self, model: nn.Module) -> None:
        self.model = inference_copy(model)

    def prefill(self, slot: int, start: int, ids: list[int], before: int) -> torch.Tensor:
        """Store the tokens of a prompt from `start` on; logits (1, V) of what comes behind them. `before` is the token
        at start - 1, -1 if there is none."""
        rows = Rows(self.cache, slot, [start], [before], 1, start + self.chunk)
        idx = torch.tensor([ids + [0] * (self.chunk - len(ids))], device=self.device)
        return self.model(idx, cache=rows, at=torch.tensor([len(ids) - 1], device=self.device))

    def decode(self, slots: list[int], positions: list[int], ids: list[int], before: list[int]) -> torch.Tensor:
        """Store the last token of each answer; logits (rows, V) of the next. The slots are 0, 1, 2, ..., in as few
        batches as give the same bits in any company."""
        logits, first = [], 0
        while first < len(ids):
            fitting = [count for count in self.row_counts if first + count <= self.slots]
            count = next((count for count in fitting if first + count >= len(ids)), fitting[-1])
            part = slice(first, first + count)
            live = len(ids[part])
            rows = Rows(
                self.cache, first, positions[part], before[part], count, round_up(max(positions[part]) + 1, ROUND)
            )
            idx = torch.tensor(ids[part] + [0] * (count - live), device=self.device)[:, None]
            logits.append(self.model(idx, cache=rows, at=idx.new_zeros(count))[:live])
            first += count
        return torch.cat(logits)

    @torch.inference_mode()
    def _try_row_counts(self, slots: int) -> list[int]:
        """Batches in which a row has the same bits, wherever it stands in them: tried with this model, here and now."""
        if slots == 1:
            return [1]
        counts = [n for n in ROW_COUNTS if n < 2 * slots] or [ROW_COUNTS[0]]
        most = counts[-1]
        generator = torch.Generator(self.device).manual_seed(0)
        random = {"generator": generator, "device": self.device}
        cache = KVCache(self.model.config, most, ROUND, self.device, self.model.compute_dtype)
        cache.keys.normal_(generator=generator), cache.values.normal_(generator=generator)
        ids, prev = torch.randint(self.model.config.vocab_size, (2, most, 1), **random)
        at = torch.zeros(most, dtype=torch.int64, device=self.device)

        def try_count(count):
            pos = list(range(ROUND - most, ROUND))
            parts = [slice(first, first + count) for first in range(0, most, count)]
            rows = [Rows(cache, p.start, pos[p], prev[p, 0].tolist(), count, ROUND) for p in parts]
            return torch.cat([self.model(ids[p], cache=r, at=at[p]) for p, r in zip(parts, rows)])

        logits = {count: try_count(count) for count in counts}
        reference = logits[min(16, most)]
        return [count for count in counts if torch.equal(logits[count], reference)]
