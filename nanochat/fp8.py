"""Matrix products of training in 8 bits, for GPUs that multiply them twice as fast as 16 (--fp8).

In: bf16 activations and fp32 weights. Out: their product in bf16, with gradients. Each tensor is scaled by its own
largest value whenever it is used. Micikevicius et al., 2022 (arXiv 2209.05433): e4m3 forward, e5m2 for gradients.
"""

import torch


def require(device: torch.device) -> None:
    """SystemExit if this device does not multiply in 8 bits."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise SystemExit("--fp8 needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper). Leave it out.")


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x in 8 bits, and the float32 scalar that it is to be multiplied with."""
    most = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / most).clamp(min=1e-12)
    return (x.float() / scale).clamp(-most, most).to(dtype), scale


def _column_major(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()  # what the second factor must be


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        x8, x_scale = quantize(x, torch.float8_e4m3fn)
        w8, w_scale = quantize(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        return torch._scaled_mm(x8, w8.t(), x_scale, w_scale, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx, grad):
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = quantize(grad, torch.float8_e5m2)
        dx = torch._scaled_mm(g8, _column_major(w8), g_scale, w_scale, out_dtype=grad.dtype)
        dw = torch._scaled_mm(g8.t().contiguous(), _column_major(x8), g_scale, x_scale, out_dtype=torch.float32)
        return dx, dw


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., K) @ weight.T, weight (M, K) -> (..., M)."""
    return _Linear.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
