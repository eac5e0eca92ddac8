"""What the engine lays around a model: slots of keys and values, and weights in the form that decodes fastest.

In: a model and its config. Out: KVCache, the Rows of it that a forward works on, a copy of the model for inference.
"""

import copy

import torch
import torch.nn as nn


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
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    copies = {}
    for p in model.parameters():
        weight = p.detach().to(model.compute_dtype)
        if p.device.type == "cpu" and p.dim() > 1 and id(p) not in tables:
            weight = weight.flatten(0, -2).t().contiguous().t().view(weight.shape)
        copies[id(p)] = nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(model, copies).eval()
