"""AdamW: the optimizer of embeddings, the head and scalars.

In: gradients. Out: updated parameters. On N ranks each rank keeps the state of, and updates, its share of every
parameter (ZeRO-2).
"""

import torch
from torch.optim.adamw import adamw

from nanochat.common import Dist

CHUNK = 1 << 16  # elements; the buffers of one chunk stay in a CPU's cache from the first operation to the last


def adamw_update(
    param, grad, mean, square, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
):
    """One step in place on flat tensors of one shape. Loshchilov and Hutter, 2019 (arXiv 1711.05101)."""
    param.mul_(1 - lr * weight_decay)
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (square / (1 - beta2**step)).sqrt_().add_(eps)
    param.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))


def adamw_update_fused(
    params, grads, means, squares, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
):
    """The same for lists of tensors, by torch's kernel for all of them: on a GPU a third of the passes over memory, and
    a launch where there were seven for each."""
    steps = means[0].new_full((len(means),), step - 1.0).unbind()  # counted on by the kernel
    adamw(
        params, grads, means, squares, [], list(steps), fused=True, amsgrad=False, maximize=False,
        beta1=beta1, beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps,
    )  # fmt: skip


class AdamW:
    """params: name -> parameter, all with the same rates. lr is the peak rate; step() scales it."""

    def __init__(
        self,
        params: dict[str, torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        dist: Dist = Dist(),
    ):
        self.params, self.lr, self.betas, self.dist = params, lr, betas, dist
        self.eps, self.weight_decay = eps, weight_decay
        self.steps = 0
        self.mean = {name: torch.zeros(self._share(p), device=p.device) for name, p in params.items()}
        self.square = {name: torch.zeros_like(mean) for name, mean in self.mean.items()}

    def _share(self, tensor: torch.Tensor) -> int:
        return -(-tensor.numel() // self.dist.world_size)

    def _flat(self, tensor: torch.Tensor) -> torch.Tensor:
        padding = self._share(tensor) * self.dist.world_size - tensor.numel()
        return torch.nn.functional.pad(tensor.reshape(-1), (0, padding)) if padding else tensor.reshape(-1)

    def _own(self, flat: torch.Tensor) -> torch.Tensor:
        share = len(flat) // self.dist.world_size
        return flat[self.dist.rank * share : (self.dist.rank + 1) * share]

    @torch.no_grad()
    def step(self, multiplier: float, progress: float) -> None:
        """One update at `lr * multiplier`; progress is not used, it is there for Muon."""
        self.steps += 1
        if not self.params:
            return
        params = list(self.params.values())
        owned = [self._own(self._flat(p.data)) for p in params]
        grads = [self.dist.reduce_scatter(self._flat(p.grad)) for p in params]
        buffers = owned, grads, *([kept[name] for name in self.params] for kept in (self.mean, self.square))
        settings = self.steps, self.lr * multiplier, *self.betas, self.eps, self.weight_decay
        if params[0].device.type == "cpu":
            for tensors in zip(*buffers):
                for parts in zip(*(tensor.split(CHUNK) for tensor in tensors)):
                    adamw_update(*parts, *settings)
        else:
            adamw_update_fused(*buffers, *settings)
        if self.dist.world_size > 1:
            for param, own in zip(params, owned):
                param.copy_(self.dist.all_gather(own)[: param.numel()].view_as(param))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole buffers by name, the same for any number of ranks. A collective: every rank calls it."""
        tensors = {}
        for name, param in self.params.items():
            for buffer in ("mean", "square"):
                whole = self.dist.all_gather(getattr(self, buffer)[name])
                tensors[f"adamw.{name}.{buffer}"] = whole[: param.numel()].view_as(param).clone()
            tensors[f"adamw.{name}.steps"] = torch.tensor(self.steps)
        return tensors

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        for name in self.params:
            for buffer in ("mean", "square"):
                getattr(self, buffer)[name].copy_(self._own(self._flat(tensors[f"adamw.{name}.{buffer}"])))
            self.steps = int(tensors[f"adamw.{name}.steps"])
