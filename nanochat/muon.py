"""Muon: the optimizer of the Transformer's matrices. Momentum, orthogonalised, each row kept at an even size.

In: gradients of parameters (..., m, n), leading dimensions being independent matrices. Out: updated parameters.
On N ranks each rank keeps the state of, and updates, its share of the matrices (ZeRO-2).
"""

import functools

import torch

from nanochat.common import Dist, cannot_compile

# Five steps of odd polynomials a x + b x^3 + c x^5, each the best after the one before it on singular values in
# [1e-3, 1]. Polar Express: Amsel, Persson, Musco, Gower, 2025 (arXiv 2505.16932), with their safety factor 1.01.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(x: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with all singular values near 1: x = U S V^T -> about U V^T. x (..., m, n)."""
    if x.size(-2) > x.size(-1):
        return orthogonalize(x.mT).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)
    gram = x @ x.mT
    if x.dtype == torch.float32 and x.size(-1) >= 2 * x.size(-2):
        # All steps are polynomials of the small Gram matrix times x: touch the wide matrix only at the two ends.
        # The squared singular values need the precision of fp32.
        factor = product = None
        for a, b, c in POLAR_EXPRESS:
            if product is not None:
                gram = factor @ gram @ factor
            factor = b * gram + c * (gram @ gram)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
        return product @ x
    for step, (a, b, c) in enumerate(POLAR_EXPRESS):
        gram = x @ x.mT if step else gram
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def muon_update(
    grad: torch.Tensor, momentum: torch.Tensor, row_square: torch.Tensor, beta1: float | torch.Tensor, beta2=0.9
) -> torch.Tensor:
    """The direction of a step, of Frobenius norm sqrt(min(m, n)) for each matrix; changes both buffers in place.

    grad, momentum (..., m, n); row_square (..., m, 1) is the running mean square of the rows of the orthogonalised
    momentum. Muon: Jordan et al., 2024; rows of even size: NorMuon, Li et al., 2025 (arXiv 2510.05491).
    """
    momentum.lerp_(grad, 1 - beta1)
    update = grad.lerp(momentum, beta1)  # Nesterov
    update = orthogonalize(update.bfloat16() if update.is_cuda else update).to(grad.dtype)
    row_square.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - beta2)
    update = update * row_square.clamp(min=1e-10).rsqrt()
    target = min(grad.shape[-2:]) ** 0.5
    return update * (target / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-10))


@functools.cache
def compiled_update():
    """`muon_update` for a GPU: between its products it is one pass over memory where it were a dozen. Compiled once for
    each shape, if `beta1`, which changes, is a tensor."""
    return torch.compile(muon_update, dynamic=False)


class Muon:
    """params: name -> parameter of at least two dimensions. lr is the peak rate; step() scales it."""

    def __init__(
        self, params: dict[str, torch.nn.Parameter], lr: float, weight_decay: float = 0.0, dist: Dist = Dist()
    ):
        self.params, self.lr, self.weight_decay, self.dist = params, lr, weight_decay, dist
        by_shape: dict[tuple, list[str]] = {}
        for name, param in params.items():
            by_shape.setdefault(tuple(param.shape[-2:]), []).append(name)
        self.groups = [_Group(names, [params[name] for name in names], dist) for names in by_shape.values()]

    @torch.no_grad()
    def step(self, multiplier: float, progress: float) -> None:
        """One update at `lr * multiplier`. progress in [0, 1] warms the momentum up and takes the decay to zero."""
        beta1 = 0.85 + 0.10 * min(1.0, progress / 0.15)
        for group in self.groups:
            m, n = group.shape
            lr = self.lr * multiplier * max(1.0, m / n) ** 0.5
            grad = self.dist.reduce_scatter(group.stack([p.grad for p in group.params]))
            param = group.own(group.stack([p.data for p in group.params]))
            if grad.is_cuda and not cannot_compile():
                update = compiled_update()(grad, group.momentum, group.row_square, grad.new_full((), beta1))
            else:
                update = muon_update(grad, group.momentum, group.row_square, beta1)
            decay = self.weight_decay * (1 - progress)
            if decay:  # cautious: only where the step goes the same way. Chen et al., 2025 (arXiv 2510.12402)
                update = update + decay * param * (update * param > 0)
            group.unstack(self.dist.all_gather(param - lr * update))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole buffers by name, the same for any number of ranks. A collective: every rank calls it."""
        tensors = {}
        for group in self.groups:
            for buffer in ("momentum", "row_square"):
                parts = group.split(self.dist.all_gather(getattr(group, buffer)))
                tensors |= {f"muon.{name}.{buffer}": part.clone() for name, part in zip(group.names, parts)}
        return tensors

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        for group in self.groups:
            for buffer in ("momentum", "row_square"):
                whole = group.stack([tensors[f"muon.{name}.{buffer}"] for name in group.names])
                getattr(group, buffer).copy_(group.own(whole))


class _Group:
    """Parameters with the same last two dimensions as one stack of matrices, padded to divide among the ranks."""

    def __init__(self, names: list[str], params: list[torch.nn.Parameter], dist: Dist):
        self.names, self.params, self.dist = names, params, dist
        self.shape = tuple(params[0].shape[-2:])
        self.counts = [p.numel() // (self.shape[0] * self.shape[1]) for p in params]
        self.share = -(-sum(self.counts) // dist.world_size)
        like = params[0]
        self.momentum = torch.zeros(self.share, *self.shape, device=like.device)
        self.row_square = torch.zeros(self.share, self.shape[0], 1, device=like.device)

    def stack(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        flat = [t.reshape(-1, *t.shape[-2:]) for t in tensors]
        padding = self.share * self.dist.world_size - sum(self.counts)
        if padding:
            flat.append(flat[0].new_zeros(padding, *flat[0].shape[-2:]))
        return torch.cat(flat)

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self.dist.rank * self.share : (self.dist.rank + 1) * self.share]

    def split(self, whole: torch.Tensor) -> list[torch.Tensor]:
        parts = whole[: sum(self.counts)].split(self.counts)
        return [part.reshape(*p.shape[:-2], *part.shape[-2:]) for part, p in zip(parts, self.params)]

    def unstack(self, whole: torch.Tensor) -> None:
        for param, part in zip(self.params, self.split(whole)):
            param.copy_(part)
