"""The training loop that all four stages share.

In: a model, optimizers, batches, a schedule. Out: a trained model and the State it ended in. What happens beside the
training (evaluate, sample, save, log) comes in as hooks.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from nanochat.common import Dist

MAX_BAD_STEPS = 10  # in a row; one bad batch is skipped, but a run that has diverged must stop
WINDOW = 64  # steps: a loss is held against so many before it


class BadData(ValueError):
    """The data cannot be read on; the message names the file. The model is as after the last whole step."""


class RunDiverged(RuntimeError):
    """No step was taken for so long that none will be."""


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
    bad: int = 0
    """Steps that were skipped since the last one that was not."""
    recent: list = field(default_factory=list)
    """Losses of the last WINDOW steps that were not skipped."""
    data: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a hook is told of a step that was just done."""

    state: State
    loss: float
    multiplier: float
    tokens_per_second: float
    last: bool
    """The run ends here."""
    stopped: bool = False
    """The run is left here, to be resumed."""


Hook = Callable[[Step], None]


def next_token_loss(model, batch: Batch) -> torch.Tensor:
    """The summed nats of a batch; where it has weights that are advantages, the loss of the policy gradient."""
    return model(batch.inputs, targets=batch.targets, weights=batch.weights)


def train_step(
    model, optimizers, micro_batches, loss_fn, dist: Dist, multiplier: float, progress: float, limit: float = math.inf
) -> float:
    """One optimizer step on the micro-batches of all ranks. Returns the mean loss over their valid tokens.

    The sum of all losses is divided by the number of all valid tokens, so it does not matter how the global batch was
    cut into micro-batches and ranks. A loss above `limit` changes nothing, nor does one that is not finite or whose
    gradient is not: then NaN is returned.
    """
    device = dist.device
    valid = torch.stack([(batch.targets >= 0).sum() for batch in micro_batches]).sum()
    valid = dist.all_reduce(valid.to(device, torch.float32)).clamp(min=1)
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        loss = loss_fn(model, batch)
        (loss / valid).backward()
        total += loss.detach()
    size = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    # The one place in a step where the host waits for a GPU: what it reads decides whether there is an update. While
    # the update runs, the host is already at the next step, so a wait behind the update would cost more than this one.
    loss, size = (dist.all_reduce(torch.stack((total / valid, size)))).tolist()
    if not math.isfinite(loss + size):
        loss = math.nan
    elif loss <= limit:
        for optimizer in optimizers:
            optimizer.step(multiplier, progress)
    for parameter in model.parameters():
        parameter.grad = None
    return loss


def jump_limit(recent: list[float]) -> float:
    """What a loss must not exceed: the mean of those before it and 6 standard deviations, at least 0.1 nats. No limit
    before there are WINDOW of them. The rule of OLMo-core's SkipStepOptimizer (AllenAI, 2024)."""
    if len(recent) < WINDOW:
        return math.inf
    return statistics.fmean(recent) + max(6 * statistics.stdev(recent), 0.1)


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
    A signal that sets `should_stop` on any rank ends the run after the step at hand; its Step has `stopped` set.
    A loss that jumps or is not finite changes no weight, and is counted in the state; one that stays high is trained
    on. RunDiverged if it was not finite MAX_BAD_STEPS times in a row; BadData on every rank if one cannot read its.
    """
    iterator = iter(batches)
    before = time.monotonic()
    while not _finished(state, num_iterations, minutes):
        start = time.monotonic()
        micro_batches, error = None, None
        try:
            micro_batches = next(iterator, None)
        except (ValueError, OSError) as problem:
            error = problem
        progress, broken = _largest(dist, _progress(state, num_iterations, minutes, batches), error is not None)
        if broken:
            raise BadData(str(error or "Another rank could not read its data.")) from error
        if micro_batches is None:
            break
        multiplier = schedule(progress)
        # With weights it is no likelihood, and moves as it likes.
        limit = jump_limit(state.recent) if micro_batches[0].weights is None else math.inf
        loss = train_step(model, optimizers, micro_batches, loss_fn, dist, multiplier, progress, limit)
        tokens = dist.world_size * sum(batch.inputs.numel() for batch in micro_batches)
        _judge(state, loss, limit)
        now = time.monotonic()
        state.step += 1
        state.tokens += tokens
        state.seconds += now - before  # also what the hooks took since the step before
        before = now
        state.data = dict(getattr(batches, "position", {}))
        state.progress, stop = _largest(dist, _progress(state, num_iterations, minutes, batches), should_stop())
        last = _finished(state, num_iterations, minutes) or state.progress >= 1
        for hook in hooks:
            hook(Step(state, loss, multiplier, tokens / (now - start), last, bool(stop)))
        if stop or state.progress >= 1:
            break
    return state


def _judge(state: State, loss: float, limit: float) -> None:
    """Count a step that was skipped; remember the loss of one that was not."""
    if loss <= limit:
        state.bad, state.recent = 0, [*state.recent[1 - WINDOW :], loss]
        return
    state.bad, state.skipped = state.bad + 1, state.skipped + 1
    if state.bad >= MAX_BAD_STEPS and not math.isfinite(loss):
        raise RunDiverged(
            f"The loss or its gradient was not finite {state.bad} times in a row, at step {state.step}. The weights "
            "are as before the first of these steps. Lower the learning rate (--lr_scale=0.5) and resume (--resume)."
        )
    if state.bad >= MAX_BAD_STEPS:
        state.bad, state.recent = 0, []  # that is no jump, the data has changed


def _progress(state: State, num_iterations, minutes, batches) -> float:
    of_steps = state.step / num_iterations if num_iterations else 0.0
    of_time = state.seconds / (60 * minutes) if minutes else 0.0
    return min(1.0, max(of_steps, of_time, getattr(batches, "progress", None) or 0.0))


def _largest(dist: Dist, *values: float) -> list[float]:
    """Of each value the largest on any rank: clocks and files differ between ranks; what they do must not."""
    return dist.all_reduce(torch.tensor(values, dtype=torch.float32), "max").tolist()  # on the host: no GPU waits


def _finished(state: State, num_iterations: int | None, minutes: float | None) -> bool:
    return bool(num_iterations and state.step >= num_iterations) or (state.progress >= 1 and state.step > 0)


def every(steps: int | None, action: Hook, progress: float = 0.0, when_stopped: bool = False) -> Hook:
    """A hook that acts each `steps` steps, or at each tenth of the run if None, and at the last step; never if 0.

    `progress` is that of the state that the run starts from. `when_stopped`: also where the run is left to be resumed.
    """
    tenth = int(10 * progress)

    def hook(step: Step) -> None:
        nonlocal tenth
        before, tenth = tenth, int(10 * step.state.progress)
        due = before != tenth if steps is None else steps > 0 and step.state.step % steps == 0
        if due or (steps != 0 and (step.last or (when_stopped and step.stopped))):
            action(step)

    return hook
