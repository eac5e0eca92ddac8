"""GPT.forward on a CPU, compiled by numba: tokens of any conversations as rows, against the cache, in one call.

In: an inference model in fp32 and a KVCache; then rows of (slot, position, token, token before). Out: logits.
Every row is computed by the same instructions in the same order, however many there are, so its bits depend on its
own conversation only; a prompt may be cut anywhere, and a token that was guessed is checked exactly. With few rows
the weights are read once and multiplied as they come, which torch's dozens of small calls a layer never reach.
"""

import sys
import threading

import numba
import numpy as np
import torch
from numba import prange

from nanochat.gpt import GATE_CHANNELS, GPT, SOFTCAP, rotary_angles

TILE = 64  # outputs that are computed together: their weights lie side by side for each input
DEPTH = 1024  # inputs of a tile that are multiplied with all rows before the next, so that they stay in the cache
MOST_ROWS = 64  # in one call
LITTLE_WORK = 5e6  # products, which take less time than a second thread to come
EPSILON = np.float32(1e-6)

# "contract" alone keeps the order of a sum; sums over one row may be in any order, if always in the same one.
ordered = {"nogil": True, "cache": True, "fastmath": {"contract"}}
free = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc", "nsz"}}

lock = threading.Lock()  # not every threading layer of numba can be entered by two threads


class CpuForward:
    """What the engine asks for: `prefill`, `decode`, and slots that are copied, swapped and cleared."""

    granule = 1  # a prefix can be reused up to any token
    chunk = MOST_ROWS  # tokens of a prompt at once
    checks_guesses = True

    def __init__(self, model: GPT, slots: int, length: int, int8: bool = False):
        """`int8`: weights as whole numbers up to 127, times a number for each output; a quarter of the memory."""
        c = model.config
        self.vocab_size, self.int8 = c.vocab_size, int8
        head_dim, heads = c.n_embd // c.n_head, c.n_head + 2 * c.n_kv_head
        self.place = list(range(slots))  # of each slot in the cache: a swap exchanges two numbers
        self.keys = np.zeros((c.n_layer, slots, length, c.n_kv_head, head_dim), np.float32)
        self.values = np.zeros_like(self.keys)
        # Queries and keys are multiplied with these, so their products with the square.
        longer = c.attention_sharpness**0.5
        self.angles = tuple(
            (longer * part[0, :, 0]).numpy()
            for part in rotary_angles(torch.arange(length)[None], head_dim, torch.float32)
        )
        rows = MOST_ROWS
        shapes = {"x": c.n_embd, "x0": c.n_embd, "h": c.n_embd, "heads": heads * head_dim, "y": c.n_embd}
        shapes |= {"hidden": 4 * c.n_embd, "logits": c.vocab_size}
        self.buffers = [np.zeros((rows, -(-width // TILE) * TILE), np.float32) for width in shapes.values()]
        self.scores = np.zeros((rows, c.n_head, length), np.float32)
        self.load(model)
        with said("compiling the model for this CPU, once ..."):
            self.decode([0], [0], [0], [-1])

    @staticmethod
    def fits(model: torch.nn.Module) -> bool:
        """Is it a GPT on a CPU in fp32?"""
        return (
            isinstance(model, GPT)
            and next(model.parameters()).device.type == "cpu"
            and model.compute_dtype == torch.float32
            and model.config.n_embd % 4 == 0
        )

    def load(self, model: GPT) -> None:
        """Take the weights, laid out in tiles."""
        self.model = model
        array = lambda p: p.detach().float().contiguous().numpy()  # noqa: E731
        attention, mlp = [b.attention for b in model.blocks], [b.mlp for b in model.blocks]
        stacks = (
            [array(a.qkv).reshape(-1, model.config.n_embd) for a in attention],
            [array(a.proj.weight) for a in attention],
            [array(m.fc.weight) for m in mlp],
            [array(m.proj.weight) for m in mlp],
            [array(model.head.weight)],
        )
        self.matrices = tuple(part for stack in stacks for part in tiles(stack, self.int8))
        self.weights = sum(matrix.size for matrix in self.matrices[::2])
        self.embedding = array(model.embedding.weight)
        self.tables = {int(layer): array(table.weight) for layer, table in model.value_embeddings.items()}
        gates = [array(a.value_gate.weight) for a in attention if a.value_gate is not None]
        number = np.cumsum([a.value_gate is not None for a in attention]) - 1
        which = np.array([n if a.value_gate is not None else -1 for n, a in zip(number, attention)])
        scales = array(model.residual_scale), array(model.x0_scale)
        smear = array(model.smear_gate.weight)[0], model.smear_scale.item()
        gates = gates or [np.zeros((model.config.n_kv_head, GATE_CHANNELS), np.float32)]  # its type is compiled for
        self.small = (which, np.stack(gates), *scales, *smear)

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


def most_threads() -> int:
    return max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def tiles(matrices: list[np.ndarray], int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (n_out, n_in), all alike -> (n, n_out / TILE, n_in, TILE), and what each output is multiplied with."""
    n_out, n_in = matrices[0].shape
    count = -(-n_out // TILE)
    weights = np.zeros((len(matrices), count, n_in, TILE), np.int8 if int8 else np.float32)
    scales = np.ones((len(matrices), count, TILE), np.float32)
    for layer, matrix in enumerate(matrices):
        padded = np.zeros((count * TILE, n_in), np.float32)
        padded[:n_out] = matrix
        if int8:
            scale = np.maximum(np.abs(padded).max(1), 1e-30) / np.float32(127)
            padded = np.rint(padded / scale[:, None])
            scales[layer] = scale.reshape(count, TILE)
        weights[layer] = padded.reshape(count, TILE, n_in).transpose(0, 2, 1)
    return weights, scales


class said:
    """Prints a message if what it surrounds takes more than two seconds."""

    def __init__(self, message: str):
        self.timer = threading.Timer(2, print, [message], {"file": sys.stderr, "flush": True})
        self.timer.daemon = True

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *error):
        self.timer.cancel()


# ---------------------------------------------------------------------------------------------------------------------
# Compiled. R rows; x, x0, h (R, C); heads (R, H * D) of queries, then keys, then values; hidden (R, 4 C).


@numba.njit(**ordered)
def forward(rows, lookups, matrices, small, cache, buffers):
    """Logits of the rows `wanted` into the first rows of `logits`; the arguments are made in CpuForward.decode."""
    place, positions, ids, before, wanted = rows
    embedding, value_embeddings, cos, sin = lookups
    qkv, qkv_scale, proj, proj_scale, fc, fc_scale, mlp_proj, mlp_scale, head, head_scale = matrices
    which, gates, residual_scale, x0_scale, smear_gate, smear_scale = small
    keys, values = cache
    x, x0, h, heads, y, hidden, logits, scores = buffers
    channels, n_head = embedding.shape[1], scores.shape[1]
    embed(ids, before, embedding, smear_gate, smear_scale, x, x0)
    for layer in range(len(qkv)):
        mix_and_norm(x, x0, residual_scale[layer], x0_scale[layer], channels, h)
        heads[:] = 0
        matmul(h, channels, qkv[layer], qkv_scale[layer], heads)
        table = which[layer]
        gate, value_embedding = gates[max(table, 0)], value_embeddings[max(table, 0)]
        store(
            heads, n_head, h, place, positions, cos, sin, table >= 0, gate, value_embedding, keys[layer], values[layer]
        )
        attend(heads, n_head, place, positions, keys[layer], values[layer], scores, y)
        matmul(y, channels, proj[layer], proj_scale[layer], x)
        mix_and_norm(x, x0, np.float32(1), np.float32(0), channels, h)
        hidden[:] = 0
        matmul(h, channels, fc[layer], fc_scale[layer], hidden)
        relu_squared(hidden)
        matmul(hidden, 4 * channels, mlp_proj[layer], mlp_scale[layer], x)
    for n, row in enumerate(wanted):
        norm_row(x[row], channels, h[n])
    some = len(wanted)
    logits[:some] = 0
    matmul(h[:some], channels, head[0], head_scale[0], logits[:some])
    softcap(logits[:some])


@numba.njit(parallel=True, **ordered)
def matmul(x, n_in, weights, scales, out):
    """out (R, n_out) += scales * (x (R, n_in) @ weights), four rows at a time."""
    rows = len(x)
    for tile in prange(len(weights)):
        total = np.empty((4, TILE), np.float32)
        for start in range(0, n_in, DEPTH):
            end, row = min(start + DEPTH, n_in), 0
            while row + 4 <= rows:
                four_rows(x, row, weights, tile, start, end, total)
                add(total, 4, scales, tile, out, row)
                row += 4
            while row < rows:
                one_row(x, row, weights, tile, start, end, total)
                add(total, 1, scales, tile, out, row)
                row += 1


@numba.njit(**ordered)
def four_rows(x, row, weights, tile, start, end, total):
    """total (4, TILE) = x (4 rows, start to end) @ weights. The additions to one number are those of `one_row`."""
    total[:] = 0
    for i in range(start, end, 4):
        a0, a1, a2, a3 = x[row, i], x[row, i + 1], x[row, i + 2], x[row, i + 3]
        b0, b1, b2, b3 = x[row + 1, i], x[row + 1, i + 1], x[row + 1, i + 2], x[row + 1, i + 3]
        c0, c1, c2, c3 = x[row + 2, i], x[row + 2, i + 1], x[row + 2, i + 2], x[row + 2, i + 3]
        d0, d1, d2, d3 = x[row + 3, i], x[row + 3, i + 1], x[row + 3, i + 2], x[row + 3, i + 3]
        for j in range(TILE):
            w0, w1 = np.float32(weights[tile, i, j]), np.float32(weights[tile, i + 1, j])
            w2, w3 = np.float32(weights[tile, i + 2, j]), np.float32(weights[tile, i + 3, j])
            total[0, j] = total[0, j] + a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            total[1, j] = total[1, j] + b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
            total[2, j] = total[2, j] + c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
            total[3, j] = total[3, j] + d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


@numba.njit(**ordered)
def one_row(x, row, weights, tile, start, end, total):
    total[0] = 0
    for i in range(start, end, 4):
        a0, a1, a2, a3 = x[row, i], x[row, i + 1], x[row, i + 2], x[row, i + 3]
        for j in range(TILE):
            w0, w1 = np.float32(weights[tile, i, j]), np.float32(weights[tile, i + 1, j])
            w2, w3 = np.float32(weights[tile, i + 2, j]), np.float32(weights[tile, i + 3, j])
            total[0, j] = total[0, j] + a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3


@numba.njit(**ordered)
def add(total, count, scales, tile, out, row):
    for n in range(count):
        for j in range(TILE):
            out[row + n, tile * TILE + j] += scales[tile, j] * total[n, j]


@numba.njit(**free)
def norm_row(x, count, out):
    size = np.float32(0)
    for i in range(count):
        size += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(size / np.float32(count) + EPSILON)
    for i in range(count):
        out[i] = x[i] * scale


@numba.njit(**free)
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@numba.njit(**ordered)
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
        x0[row, :channels] = x[row, :channels]


@numba.njit(**ordered)
def mix_and_norm(x, x0, scale, scale0, channels, h):
    for row in range(len(x)):
        for i in range(channels):
            x[row, i] = scale * x[row, i] + scale0 * x0[row, i]
        norm_row(x[row], channels, h[row])


@numba.njit(**ordered)
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


@numba.njit(parallel=True, **ordered)
def attend(heads, n_head, place, positions, keys, values, scores, y):
    for task in prange(len(place) * n_head):
        row, head = task // n_head, task % n_head
        size, kv = keys.shape[3], head // (n_head // keys.shape[2])
        query, out = heads[row, head * size : (head + 1) * size], y[row, head * size : (head + 1) * size]
        stored = positions[row] + 1
        attend_one(query, keys[place[row], :stored, kv], values[place[row], :stored, kv], scores[row, head], out)


@numba.njit(**free)
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
        scores[s] = exp(scores[s] - most)
        total += scores[s]
    out[:] = 0
    for s in range(len(keys)):
        for i in range(len(query)):
            out[i] += scores[s] * values[s, i]
    for i in range(len(query)):
        out[i] /= total


@numba.njit(**ordered)
def exp(x):
    """e**x for -87 < x < 88, to 2e-7; smaller x as -87. Plain arithmetic, so that a loop of it becomes vectors: 2**n by
    writing n into the exponent's bits, the rest by its series."""
    x = max(x, np.float32(-87))
    shifted = x * np.float32(1.4426950408889634) + np.float32(12582912)  # 1.5 * 2**23: n in the lowest bits
    n = shifted - np.float32(12582912)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    series = np.float32(1 / 5040) * r + np.float32(1 / 720)
    series = (series * r + np.float32(1 / 120)) * r + np.float32(1 / 24)
    series = (series * r + np.float32(1 / 6)) * r + np.float32(1 / 2)
    series = (series * r + np.float32(1)) * r + np.float32(1)
    power = np.int32((np.float32(shifted).view(np.int32) << 23) + 0x3F800000)
    return series * power.view(np.float32)


@numba.njit(**ordered)
def relu_squared(hidden):
    for row in range(len(hidden)):
        for i in range(hidden.shape[1]):
            positive = max(hidden[row, i], np.float32(0))
            hidden[row, i] = positive * positive


@numba.njit(parallel=True, **ordered)
def softcap(logits):
    """SOFTCAP * tanh(z / SOFTCAP)"""
    for row in prange(len(logits)):
        for i in range(logits.shape[1]):
            z = min(max(logits[row, i] * np.float32(2 / SOFTCAP), np.float32(-80)), np.float32(80))
            logits[row, i] = np.float32(SOFTCAP) - np.float32(2 * SOFTCAP) / (exp(z) + np.float32(1))
