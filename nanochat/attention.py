"""Attention: what each query reads of the values, by the fastest way to it that this device has.

In: queries, keys and values of heads, where the queries stand, the window. Out: what is read. Nothing here has weights.
B batch, T queries, S keys from position 0 on, H heads, D channels of a head.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MOST_SCORES = 512  # tokens of context up to which a CPU keeps all T x T scores of a head


def attend(q, k, v, positions, scale: float, window: int | None = None, blocks: dict | None = None) -> torch.Tensor:
    """q (B, T, H, D), where `positions` (B or 1, T) says; k, v (B, S, n_kv_head, D) -> (B, H, T, D).

    `window`: tokens that a query sees, its own among them; None: all. `blocks`: what `window_blocks` made for this
    window and this T, if all rows start at 0.
    """
    T, S = q.size(1), k.size(1)
    narrow, grouped = window is not None and S > window, q.size(2) != k.size(2)
    mask = None
    # Where every row starts here, plain causal attention is the same and faster.
    if S > T or (narrow and blocks is None):
        ahead = torch.arange(S, device=q.device) - positions[:, None, :, None]
        mask = (ahead <= 0) & (ahead > -window) if narrow else ahead <= 0
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if narrow and blocks is not None:
        return windowed_attention(q, k, v, scale, blocks)
    on_cpu = q.device.type == "cpu"
    if mask is None and not grouped and T <= MOST_SCORES and on_cpu and q.dtype == torch.bfloat16:
        return plain_attention(q, k, v, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def kernels_for(device: torch.device):
    """A context for a forward: uncompiled no kernels of cuDNN, which torch prefers on newer GPUs. They are built for
    every new shape, in tens of milliseconds: nothing in training, but answers and questions have all lengths."""
    if torch.compiler.is_compiling() or device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def by_blocks(device: torch.device) -> bool:
    """Whether windows are computed by blocks here: FlexAttention is fast only inside of torch.compile on a GPU."""
    return device.type == "cuda" and torch.compiler.is_compiling()


def window_kernels(device: torch.device) -> str:
    """Whose kernels FlexAttention is to use: "FLASH", those of the package flash-attn-4, if it is installed and this is
    a Hopper GPU (Blackwell would want larger blocks), else "AUTO", Triton's. Layers that see all need no package: there
    torch takes cuDNN's kernels on both, which are as fast."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "AUTO"
    try:
        import flash_attn.cute.interface  # noqa: F401
    except ImportError:
        return "AUTO"
    return "FLASH"


def windows_by(device: torch.device) -> str:
    """How training computes windows here, for people."""
    if device.type != "cuda":
        return "a mask"
    return {"AUTO": "FlexAttention on Triton", "FLASH": "FlexAttention on FlashAttention 4"}[window_kernels(device)]


def window_blocks(T: int, window: int, device: torch.device, kernels: str = "AUTO") -> dict:
    """What FlexAttention is told of a window, the same for all layers: which blocks of T x T scores have any that is
    seen, and whose kernels to use. FlexAttention: Dong et al., 2024 (arXiv 2412.05496)."""
    from torch.nn.attention.flex_attention import create_block_mask  # takes seconds to import

    def seen(b, h, t, s):
        return (s <= t) & (s > t - window)

    mask = create_block_mask(seen, None, None, T, T, device=device)
    return {"block_mask": mask, "kernel_options": {"BACKEND": kernels}}


def windowed_attention(q, k, v, scale: float, blocks: dict) -> torch.Tensor:
    """Attention to the last tokens of a window, whose cost grows with them and not with the context. q (B, H, T, D);
    k, v (B, n_kv_head, T, D) -> (B, H, T, D)."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, scale=scale, enable_gqa=q.size(1) != k.size(1), **blocks)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention that keeps all scores: q, k, v (B, H, T, D) -> (B, H, T, D). In bf16 a CPU takes half the time
    for it that torch's own takes, which does not use the instructions for bf16; in fp32 it is the other way round."""
    T = q.size(2)
    future = torch.full((T, T), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    return (scores.softmax(-1) @ v.flatten(0, 1)).view(q.shape)
