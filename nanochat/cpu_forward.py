"""GPT.forward on a CPU, compiled by numba: tokens of any conversations as rows, against the cache, in one call.

In: a GPT; then rows of (slot, position, token, token before). Out: logits.
Every row is computed by the same instructions in the same order, however many there are, so its bits depend on its
own conversation only; a prompt may be cut anywhere, and a token that was guessed is checked exactly. With few rows
the weights are read once and multiplied as they come, which torch's dozens of small calls a layer never reach.
Activations, keys and values are fp32; the weights need not be.
"""

import functools
import threading

import numba
import numpy as np
import torch
from numba import prange

from nanochat.cpu_matmul import TILE, matmul, tiles
from nanochat.gpt import GATE_CHANNELS, GPT, SOFTCAP, rotary_angles
from nanochat.native import compiled, exp, said_if_slow

MOST_ROWS = 64  # in one call
LITTLE_WORK = 5e6  # products, which take less time than a second thread to come
EPSILON = np.float32(1e-6)

# "contract" alone keeps the order of a sum; sums over one row may be in any order, if always in the same one.
ordered = {"fastmath": {"contract"}}
free = {"fastmath": {"contract", "reassoc", "nsz"}}

lock = threading.Lock()  # not every threading layer of numba can be entered by two threads


class CpuForward:
    """What the engine asks for: `prefill`, `decode`, and slots that are copied, swapped and cleared."""

    granule = 1  # a prefix can be reused up to any token
    chunk = MOST_ROWS  # tokens of a prompt at once
    checks_guesses = True

    def __init__(self, model: GPT, slots: int, length: int, weights: str | None = None):
        """`weights`: "float32", "bfloat16" or "int8", see cpu_matmul.py; None: the type that the model computes in."""
        c = model.config
        self.vocab_size, self.kind = c.vocab_size, weights or str(model.compute_dtype).removeprefix("torch.")
        head_dim, heads = c.n_embd // c.n_head, c.n_head + 2 * c.n_kv_head
        self.place = list(range(slots))  # of each slot in the cache: a swap exchanges two numbers
        self.keys = np.zeros((c.n_layer, slots, length, c.n_kv_head, head_dim), np.float32)
        self.values = np.zeros_like(self.keys)
        # Queries and keys are multiplied with these, so their products with the square.
        longer = c.attention_sharpness**0.5
        self.angles = tuple(
            (longer * part[0, :, 0]).numpy() for part in rotary_angles(torch.arange(length)[None], c, torch.float32)
        )
        rows = MOST_ROWS
        shapes = {"x": c.n_embd, "x0": c.n_embd, "h": c.n_embd, "heads": heads * head_dim, "y": c.n_embd}
        shapes |= {"hidden": 4 * c.n_embd, "logits": c.vocab_size}
        self.buffers = [np.zeros((rows, -(-width // TILE) * TILE), np.float32) for width in shapes.values()]
        self.scores = np.zeros((rows, c.n_head, length), np.float32)
        self.load(model)
        start_threads()
        with said_if_slow("compiling the model for this CPU, once ..."):
            self.decode([0], [0], [0], [-1])

    @staticmethod
    def fits(model: torch.nn.Module) -> bool:
        """Is it a GPT on a CPU?"""
        return (
            isinstance(model, GPT)
            and next(model.parameters()).device.type == "cpu"
            and model.compute_dtype in (torch.float32, torch.bfloat16)
        )

    def load(self, model: GPT) -> None:
        """Take the weights, laid out in tiles."""
        self.model = model
        array = lambda p: p.detach().float().contiguous().numpy()  # noqa: E731
        attention, mlp = [b.attention for b in model.blocks], [b.mlp for b in model.blocks]
        stacks = (
            [a.qkv.flatten(0, 1) for a in attention],
            [a.proj.weight for a in attention],
            [m.fc.weight for m in mlp],
            [m.proj.weight for m in mlp],
            [model.head.weight],
        )
        self.matrices = tuple(part for stack in stacks for part in tiles([m.detach() for m in stack], self.kind))
        self.weights = sum(matrix.size for matrix in self.matrices[::2])
        self.embedding = array(model.embedding.weight)
        self.tables = {int(layer): array(table.weight) for layer, table in model.value_embeddings.items()}
        gates = [array(a.value_gate.weight) for a in attention if a.value_gate is not None]
        number = np.cumsum([a.value_gate is not None for a in attention]) - 1
        which = np.array([n if a.value_gate is not None else -1 for n, a in zip(number, attention)])
        scales = array(model.residual_scale), array(model.x0_scale)
        smear = array(model.smear_gate.weight)[0], model.smear_scale.item()
        gates = gates or [np.zeros((model.config.n_kv_head, GATE_CHANNELS), np.float32)]  # its type is compiled for
        windows = np.array([a.window or self.keys.shape[2] for a in attention])
        self.small = (which, np.stack(gates), *scales, *smear, windows)

    # -- Slots

    def copy(self, source: int, target: int, n: int) -> None:
        """The first n positions of a slot, into another."""
        for store in (self.keys, self.values):
            store[:, self.place[target], :n] = store[:, self.place[source], :n]

    def swap(self, a: int, b: int, n: int) -> None:
        self.place[a], self.place[b] = self.place[b], self.place[a]

    def clear(self, slot: int) -> None:
        self.keys[:, self.place[slot]] = self.values[:, self.place[slot]] = 0

    # -- Tokens

    def prefill(self, slot: int, start: int, ids: list[int], before: int) -> torch.Tensor:
        """Store the tokens of a prompt from `start` on; logits (1, V) of what comes behind them. `before` is the token
        at start - 1, -1 if there is none."""
        count = len(ids)
        return self.decode([slot] * count, list(range(start, start + count)), ids, [before, *ids[:-1]], last_only=True)

    def decode(self, slots, positions, ids, before, last_only: bool = False) -> torch.Tensor:
        """Store one token for each row, then logits (rows, V) of the next, or of the last row's only. Rows of the same
        slot come in the order of their positions; a row sees those before it."""
        if len(ids) > MOST_ROWS:
            parts = [slice(n, n + MOST_ROWS) for n in range(0, len(ids), MOST_ROWS)]
            return torch.cat([self.decode(slots[p], positions[p], ids[p], before[p]) for p in parts])
        place = np.array([self.place[slot] for slot in slots])
        tables = np.stack([table[ids] for table in self.tables.values()] or [self.embedding[ids]])
        wanted = np.array([len(ids) - 1]) if last_only else np.arange(len(ids))
        x, x0, h, heads, y, hidden, logits = (buffer[: len(ids)] for buffer in self.buffers)
        with lock:
            numba.set_num_threads(1 if len(ids) * self.weights < LITTLE_WORK else most_threads())
            forward(
                (place, np.array(positions), np.array(ids), np.array(before), wanted),
                (self.embedding, tables, *self.angles),
                self.matrices,
                self.small,
                (self.keys, self.values),
                (x, x0, h, heads, y, hidden, logits, self.scores),
            )
        return torch.from_numpy(logits[: len(wanted), : self.vocab_size].copy())


@functools.cache
def start_threads() -> None:
    """Start numba's threads. Doing so, it sets how many there are for all who use OpenMP, so for torch too, whose
    bits depend on the number: it gets its own back."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


def most_threads() -> int:
    return max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


# ---------------------------------------------------------------------------------------------------------------------
# Compiled. R rows; x, x0, h (R, C); heads (R, H * D) of queries, then keys, then values; hidden (R, 4 C).


@compiled(**ordered)
def forward(rows, lookups, matrices, small, cache, buffers):
    """Logits of the rows `wanted` into the first rows of `logits`; the arguments are made in CpuForward.decode."""
    place, positions, ids, before, wanted = rows
    embedding, value_embeddings, cos, sin = lookups
    qkv, qkv_scale, proj, proj_scale, fc, fc_scale, mlp_proj, mlp_scale, head, head_scale = matrices
    which, gates, residual_scale, x0_scale, smear_gate, smear_scale, windows = small
    keys, values = cache
    x, x0, h, heads, y, hidden, logits, scores = buffers
    channels, n_head = embedding.shape[1], scores.shape[1]
    embed(ids, before, embedding, smear_gate, smear_scale, x, x0)
    for layer in range(len(qkv)):
        mix_and_norm(x, x0, residual_scale[layer], x0_scale[layer], channels, h)
        matmul(h, channels, qkv[layer], qkv_scale[layer], False, heads)
        table = which[layer]
        gate, value_embedding = gates[max(table, 0)], value_embeddings[max(table, 0)]
        store(
            heads, n_head, h, place, positions, cos, sin, table >= 0, gate, value_embedding, keys[layer], values[layer]
        )
        attend(heads, n_head, place, positions, windows[layer], keys[layer], values[layer], scores, y)
        matmul(y, channels, proj[layer], proj_scale[layer], True, x)
        mix_and_norm(x, x0, np.float32(1), np.float32(0), channels, h)
        matmul(h, channels, fc[layer], fc_scale[layer], False, hidden)
        relu_squared(hidden)
        matmul(hidden, 4 * channels, mlp_proj[layer], mlp_scale[layer], True, x)
    for n, row in enumerate(wanted):
        norm_row(x[row], channels, h[n])
    some = len(wanted)
    matmul(h[:some], channels, head[0], head_scale[0], False, logits[:some])
    softcap(logits[:some])


@compiled(**free)
def norm_row(x, count, out):
    size = np.float32(0)
    for i in range(count):
        size += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(size / np.float32(count) + EPSILON)
    for i in range(count):
        out[i] = x[i] * scale


@compiled(**free)
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@compiled(**ordered)
def embed(ids, before, embedding, gate_weights, gate_scale, x, x0):
    """x and x0: each token's embedding, mixed with the one before it."""
    channels = embedding.shape[1]
    previous = np.zeros(channels, np.float32)
    for row in range(len(ids)):
        norm_row(embedding[ids[row]], channels, x[row])
        if before[row] >= 0:
            norm_row(embedding[before[row]], channels, previous)
            gate = np.float32(0)
            for i in range(len(gate_weights)):
                gate += gate_weights[i] * x[row, i]
            gate = np.float32(gate_scale) * sigmoid(gate)
            for i in range(channels):
                x[row, i] += gate * previous[i]
        for i in range(channels):
            x0[row, i] = x[row, i]


@compiled(**ordered)
def mix_and_norm(x, x0, scale, scale0, channels, h):
    for row in range(len(x)):
        for i in range(channels):
            x[row, i] = scale * x[row, i] + scale0 * x0[row, i]
        norm_row(x[row], channels, h[row])


@compiled(**ordered)
def store(heads, n_head, h, place, positions, cos, sin, gated, gate_weights, value_embeddings, keys, values):
    """Turn queries and keys by their positions; put keys and values, with their embeddings, into the cache."""
    n_kv, half = keys.shape[2], keys.shape[3] // 2
    size = 2 * half
    for row in range(len(place)):
        angles = positions[row]
        for head in range(n_head + n_kv):
            part = heads[row, head * size : (head + 1) * size]
            norm_row(part, size, part)
            for i in range(half):
                a, b = part[i], part[i + half]
                part[i] = a * cos[angles, i] - b * sin[angles, i]
                part[i + half] = b * cos[angles, i] + a * sin[angles, i]
        for kv in range(n_kv):
            key = heads[row, (n_head + kv) * size : (n_head + kv + 1) * size]
            value = heads[row, (n_head + n_kv + kv) * size : (n_head + n_kv + kv + 1) * size]
            gate = np.float32(0)
            if gated:
                for i in range(GATE_CHANNELS):
                    gate += gate_weights[kv, i] * h[row, i]
                gate = np.float32(3) * sigmoid(gate)
                for i in range(size):
                    value[i] += gate * value_embeddings[row, kv * size + i]
            for i in range(size):
                keys[place[row], angles, kv, i] = key[i]
                values[place[row], angles, kv, i] = value[i]


@compiled(parallel=True, **ordered)
def attend(heads, n_head, place, positions, window, keys, values, scores, y):
    for task in prange(len(place) * n_head):
        row, head = task // n_head, task % n_head
        size, kv = keys.shape[3], head // (n_head // keys.shape[2])
        query, out = heads[row, head * size : (head + 1) * size], y[row, head * size : (head + 1) * size]
        end = positions[row] + 1
        start = max(0, end - window)
        attend_one(query, keys[place[row], start:end, kv], values[place[row], start:end, kv], scores[row, head], out)


@compiled(**free)
def attend_one(query, keys, values, scores, out):
    """One head of one row. query (D,), keys and values (S, D) -> out (D,)."""
    scale, most, total = np.float32(1 / np.sqrt(len(query))), np.float32(-np.inf), np.float32(0)
    for s in range(len(keys)):
        product = np.float32(0)
        for i in range(len(query)):
            product += query[i] * keys[s, i]
        scores[s] = product * scale
        most = max(most, scores[s])
    for s in range(len(keys)):
        scores[s] = exp(max(scores[s] - most, np.float32(-80)))
        total += scores[s]
    for i in range(len(query)):
        out[i] = np.float32(0)
    for s in range(len(keys)):
        for i in range(len(query)):
            out[i] += scores[s] * values[s, i]
    for i in range(len(query)):
        out[i] /= total


@compiled(**ordered)
def relu_squared(hidden):
    for row in range(len(hidden)):
        for i in range(hidden.shape[1]):
            positive = max(hidden[row, i], np.float32(0))
            hidden[row, i] = positive * positive


@compiled(**ordered)
def softcap(logits):
    """SOFTCAP * tanh(z / SOFTCAP)"""
    for row in range(len(logits)):
        for i in range(logits.shape[1]):
            z = min(max(logits[row, i] * np.float32(2 / SOFTCAP), np.float32(-80)), np.float32(80))
            logits[row, i] = np.float32(SOFTCAP) - np.float32(2 * SOFTCAP) / (exp(z) + np.float32(1))
