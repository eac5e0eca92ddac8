"""Matrix products of training in fp32 on AMD's processors, by oneDNN: twice as fast there as the library torch takes.

In: activations (N, C) and a weight (V, C). Out: their product (N, V), with a gradient. Elsewhere torch's own products.
"""

import functools

import torch
import torch.nn.functional as F


@functools.cache
def prefers_onednn() -> bool:
    """Whether torch's fp32 products leave half of this processor unused: MKL, which torch calls for them, has no code
    of its own for AMD's AVX-512. On 2 cores of Zen 5 it makes 220 GFLOP/s, oneDNN 450 (dev/LOG.md)."""
    cpu = torch.cpu.get_capabilities()
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return bool(there and cpu.get("avx512_f") and "AMD" in cpu.get("cpu_name", ""))


def by_onednn(x: torch.Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return plain and prefers_onednn()


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (M, K) @ b (N, K).T -> (M, N), without a gradient. Strides are taken as they are."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "") if by_onednn(a) else a @ b.t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        flat, dx, dw = grad.flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            dx = product(flat, weight.t()).view_as(x)
        if ctx.needs_input_grad[1]:  # with the smaller of the two in front: 400 GFLOP/s instead of 270
            a, b = flat.t(), x.flatten(0, -2).t()
            dw = product(a, b) if len(a) <= len(b) else product(b, a).t()
        return dx, dw


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., C) @ weight (V, C).T -> (..., V), both of one type. By oneDNN in training only: that an answer has the
    same bits alone and in company is tried and tested with torch's products (kvcache.py)."""
    if torch.is_grad_enabled() and by_onednn(x):
        return _Linear.apply(x, weight)
    return F.linear(x, weight)
