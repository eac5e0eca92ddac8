"""The loss of a CPU's chunk of logits in one pass: in torch it is a dozen passes over memory, half the time of a step.

In: logits before the soft-cap. Out: losses, and in the place of the logits their gradient.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import types

from nanochat.native import exp, f32, kernel


@kernel(
    types.float32[:, ::1],
    types.int64[::1],
    types.float32[::1],
    types.float32[::1],
    types.float32,
    nrt=True,
    vector=True,
)
def _rows(z, targets, scale, losses, cap):
    exps = np.empty(z.shape[1], np.float32)
    for r in range(len(z)):
        row, target = z[r], max(targets[r], 0)
        total = f32(0)
        for i in range(len(row)):
            e = exp(min(max(row[i] * (f32(2) / cap), f32(-40)), f32(40)))
            row[i] = (e - f32(1)) / (e + f32(1))  # tanh(z / cap)
            exps[i] = exp(cap * row[i])  # at most exp(cap): no need to subtract the maximum
            total += exps[i]
        hit = row[target]
        losses[r] = np.log(total) - cap * hit
        factor = scale[r] / total
        for i in range(len(row)):
            row[i] = factor * exps[i] * (f32(1) - row[i] * row[i])
        row[target] -= scale[r] * (f32(1) - hit * hit)


def softcap_cross_entropy_(z: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, cap: float) -> torch.Tensor:
    """Losses (N,) of softcap(z), z (N, V) float32, for targets (N,). z becomes the gradient of sum(losses * scale),
    scale (N,). A target of -1 counts as 0: give it the scale 0. All tensors on the CPU and contiguous."""
    losses, threads = torch.empty(len(z)), torch.get_num_threads()
    arrays = [tensor.numpy() for tensor in (z, targets, scale, losses)]
    cuts = [len(z) * k // threads for k in range(threads + 1)]
    parts = [[array[start:end] for array in arrays] for start, end in zip(cuts, cuts[1:])]
    others = [_pool(threads).submit(_rows, *part, cap) for part in parts[1:]]
    _rows(*parts[0], cap)
    for other in others:
        other.result()
    return losses


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fused")
