"""The training loop that all four stages share.

In: a model, optimizers, batches, a schedule. Out: a trained model and the State it ended in. What happens beside the
training (evaluate, sample, save, log) comes in as hooks.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch

from nanochat.common import Dist

MAX_BAD_STEPS = 10  # in a row; one bad batch is skipped, but a run that has diverged must stop


@dataclass(frozen=True)
class Batch:
    """inputs and targets (B, T) int64; a target of -1 has no loss. weights (B, T), if there, scale the losses (RL)."""

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass
class State:
    """What a run remembers besides its weights. JSON values only."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    skipped: int = 0
    data: dict = field(default_factory=dict)

    as_dict = asdict


@dataclass(frozen=True)
class Step:
    """What a hook is told of a step that was just done."""

    state: State
    loss: float
    multiplier: float
    tokens_per_second: float
    last: bool


Hook = Callable[[Step], None]


def next_token_loss(model, batch: Batch) -> torch.Tensor:
    """The summed nats of a batch; where it has weights that are advantages, the loss of the policy gradient."""
    return model(batch.inputs, targets=batch.targets, weights=batch.weights)


def train_step(model, optimizers, micro_batches, loss_fn, dist: Dist, multiplier: float, progress: float) -> float:
    """One optimizer step on the micro-batches of all ranks. Returns the mean loss over their valid tokens.

    The sum of all losses is divided by the number of all valid tokens, so it does not matter how the global batch was
    cut into micro-batches and ranks. A loss that is not finite changes nothing, and is returned.
    """
    device = dist.device
    valid = torch.stack([(batch.targets >= 0).sum() for batch in micro_batches]).sum().to(torch.float64)
    valid = dist.all_reduce(valid.to(device, torch.float32)).clamp(min=1)
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        loss = loss_fn(model, batch)
        (loss / valid).backward()
        total += loss.detach()
    mean = (dist.all_reduce(total) / valid).item()
    if math.isfinite(mean):
        for optimizer in optimizers:
            optimizer.step(multiplier, progress)
    for parameter in model.parameters():
        parameter.grad = None
    return mean


def fit(
    model,
    optimizers: list,
    batches: Iterable[list[Batch]],
    schedule: Callable[[float], float],
    state: State,
    *,
    loss_fn: Callable[[torch.nn.Module, Batch], torch.Tensor] = next_token_loss,
    hooks: Iterable[Hook] = (),
    dist: Dist = Dist(),
    num_iterations: int | None = None,
    minutes: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> State:
    """Train until `batches` end, `num_iterations` steps are done, or `minutes` have passed, hooks included.

    `batches` yields the micro-batches of one step, and has `.position` (JSON values, kept in the state) and
    `.progress` in [0, 1] or None. The progress that the schedule sees is the largest of steps, time and data.
    A signal that sets `should_stop` ends the run after the step at hand; its last Step still has `last` set.
    RuntimeError if the loss was not finite MAX_BAD_STEPS times in a row.
    """
    bad = 0
    iterator = iter(batches)
    before = time.monotonic()
    while not _finished(state, num_iterations, minutes):
        start = time.monotonic()
        micro_batches = next(iterator, None)
        if micro_batches is None:
            break
        progress = _progress(state, num_iterations, minutes, getattr(batches, "progress", None), dist)
        multiplier = schedule(progress)
        loss = train_step(model, optimizers, micro_batches, loss_fn, dist, multiplier, progress)
        tokens = dist.world_size * sum(batch.inputs.numel() for batch in micro_batches)
        bad = 0 if math.isfinite(loss) else bad + 1
        state.skipped += bad > 0
        if bad >= MAX_BAD_STEPS:
            raise RuntimeError(
                f"The loss was not finite {bad} times in a row, at step {state.step}. The weights are as before "
                "the first of these steps. Lower the learning rate (--lr_scale=0.5) and resume (--resume)."
            )
        now = time.monotonic()
        state.step += 1
        state.tokens += tokens
        state.seconds += now - before  # also what the hooks took since the step before
        before = now
        state.data = dict(getattr(batches, "position", {}))
        state.progress = _progress(state, num_iterations, minutes, getattr(batches, "progress", None), dist)
        stop = bool(dist.all_reduce(torch.tensor(float(should_stop()), device=dist.device), "max"))
        last = stop or _finished(state, num_iterations, minutes) or state.progress >= 1
        for hook in hooks:
            hook(Step(state, loss, multiplier, tokens / (now - start), last))
        if stop or state.progress >= 1:
            break
    return state


def _progress(state: State, num_iterations, minutes, of_data: float | None, dist: Dist) -> float:
    parts = [
        state.step / num_iterations if num_iterations else 0.0,
        state.seconds / (60 * minutes) if minutes else 0.0,
        of_data or 0.0,
    ]
    # Clocks differ between ranks; the schedule must not.
    return min(1.0, float(dist.all_reduce(torch.tensor(max(parts), device=dist.device, dtype=torch.float32), "max")))


def _finished(state: State, num_iterations: int | None, minutes: float | None) -> bool:
    return bool(num_iterations and state.step >= num_iterations) or (state.progress >= 1 and state.step > 0)


def every(steps: int | None, action: Hook) -> Hook:
    """A hook that acts each `steps` steps, or at each tenth of the run if None, and at the last step; never if 0."""
    tenth = None

    def hook(step: Step) -> None:
        nonlocal tenth
        before, tenth = tenth, int(10 * step.state.progress)
        due = before not in (None, tenth) if steps is None else steps > 0 and step.state.step % steps == 0
        if due or (step.last and steps != 0):
            action(step)

    return hook
