"""Rows times a matrix on a CPU, at the speed of its memory or of its vector units, whichever comes first.

In: rows in fp32, and a matrix laid out by `tiles`, in fp32, bf16 or int8. Out: sums in fp32; each is added up in the
order of the inputs, so its bits are the same for any number of rows. numba does not keep sums in registers through a
loop, which is what this is about: so the innermost loop is written in LLVM's vectors.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from nanochat.native import compiled

# Floats in a vector, and rows at once: their 4 x 4 or 2 x 4 sums and what they are made from fit the registers.
LANES, ROWS = (16, 4) if torch.backends.cpu.get_cpu_capability() == "AVX512" else (8, 2)
VECTORS = 4
TILE = VECTORS * LANES  # outputs that are computed together: their weights lie side by side for each input
DEPTH = 1024  # inputs of a tile that are multiplied with all rows before the next, so that they stay in the cache
KINDS = ("float32", "bfloat16", "int8")


def tiles(matrices: list[torch.Tensor], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (n_out, n_in), all alike -> (n, n_out / TILE, n_in, TILE), and what each output is multiplied with.

    bfloat16: the upper halves of floats, rounded. int8: whole numbers up to 127, times a number for each output.
    """
    n_out, n_in = matrices[0].shape
    count = -(-n_out // TILE)
    dtype = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[kind]
    weights = np.zeros((len(matrices), count, n_in, TILE), dtype)
    scales = np.ones((len(matrices), count, TILE), np.float32)
    for layer, matrix in enumerate(matrices):
        padded = torch.zeros(count * TILE, n_in)
        padded[:n_out] = matrix
        if kind == "int8":
            scale = padded.abs().amax(1).clamp(min=1e-30) / 127
            padded = (padded / scale[:, None]).round()
            scales[layer] = scale.view(count, TILE).numpy()
        elif kind == "bfloat16":
            padded = padded.bfloat16().view(torch.int16)
        weights[layer] = padded.view(count, TILE, n_in).transpose(1, 2).numpy()
    return weights, scales


@compiled(parallel=True, fastmath={"contract"})
def matmul(x, n_in, weights, scales, add, out):
    """out (R, n_out) = scales * (x (R, n_in) @ weights), plus what is there already if `add`; a few rows at a time."""
    for tile in prange(len(weights)):
        total = np.empty((ROWS, TILE), np.float32)
        for start in range(0, n_in, DEPTH):
            count, row = min(DEPTH, n_in - start), 0
            while row < len(x):
                here = place(x, row * x.shape[1] + start), place(weights, (tile * n_in + start) * TILE)
                some = ROWS if row + ROWS <= len(x) else 1
                if some == 1:
                    sums_of_one(here[0], x.shape[1], here[1], count, place(total, 0))
                else:
                    sums_of_some(here[0], x.shape[1], here[1], count, place(total, 0))
                for n in range(some):
                    for j in range(TILE):
                        old = out[row + n, tile * TILE + j] if add or start > 0 else np.float32(0)
                        out[row + n, tile * TILE + j] = old + scales[tile, j] * total[n, j]
                row += some


# ---------------------------------------------------------------------------------------------------------------------
# What numba inserts into `matmul`


@intrinsic
def place(typing, array, index):
    """A pointer to the index-th number of a contiguous array."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, index), generate


def sums(rows: int):
    """The function (x, stride, weights, count, total): total (rows, TILE) = x (rows, count) @ weights (count, TILE).
    All are pointers; from one row of x to the next it is `stride` numbers."""

    @intrinsic
    def function(typing, x, stride, weights, count, total):
        def generate(context, builder, signature, arguments):
            loop(builder, weights.dtype, rows, *arguments)
            return context.get_dummy_value()

        return types.void(x, stride, weights, count, total), generate

    return function


sums_of_one, sums_of_some = sums(1), sums(ROWS)

i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
floats, whole = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)


def loop(builder, kind, rows: int, x, stride, weights, count, total) -> None:
    """Write the loop over the inputs, with all sums as its variables."""
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{LANES}f32"
    )
    lines = [builder.gep(x, [builder.mul(stride, i64(row))]) for row in range(rows)]
    before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(body)

    builder.position_at_end(body)
    step = builder.phi(i64)
    old = [[builder.phi(floats) for _ in range(VECTORS)] for _ in range(rows)]
    start = builder.mul(step, i64(TILE))
    w = [load_floats(builder, kind, weights, builder.add(start, i64(v * LANES))) for v in range(VECTORS)]
    splats = [splat(builder, builder.load(builder.gep(line, [step]))) for line in lines]
    new = [[builder.call(multiply_add, [a, w[v], old[row][v]]) for v in range(VECTORS)] for row, a in enumerate(splats)]
    next_step = builder.add(step, i64(1))
    for variable, first, later in [(step, i64(0), next_step)] + [
        (old[row][v], ir.Constant(floats, [0.0] * LANES), new[row][v]) for row in range(rows) for v in range(VECTORS)
    ]:
        variable.add_incoming(first, before)
        variable.add_incoming(later, body)
    builder.cbranch(builder.icmp_signed("<", next_step, count), body, after)

    builder.position_at_end(after)
    for row in range(rows):
        for v in range(VECTORS):
            target = builder.gep(total, [i64(row * TILE + v * LANES)])
            builder.store(new[row][v], builder.bitcast(target, floats.as_pointer()), align=4)


def load_floats(builder, kind, pointer, index):
    """LANES weights from `index` on, as floats."""
    element = {types.float32: f32, types.uint16: ir.IntType(16), types.int8: ir.IntType(8)}[kind]
    source = builder.bitcast(builder.gep(pointer, [index]), ir.VectorType(element, LANES).as_pointer())
    raw = builder.load(source, align=kind.bitwidth // 8)
    if kind == types.float32:
        return raw
    if kind == types.int8:
        return builder.sitofp(builder.sext(raw, whole), floats)
    return builder.bitcast(builder.shl(builder.zext(raw, whole), ir.Constant(whole, [16] * LANES)), floats)


def splat(builder, value):
    """A vector of one number."""
    nothing = ir.Constant(floats, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(nothing, value, i32(0)), nothing, ir.Constant(whole, [0] * LANES)
    )
