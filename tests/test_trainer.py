"""The loop: what it computes does not depend on how the batch is cut, where it stops, or on how many ranks it runs."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from models import random_model

from nanochat.checkpoint_manager import tensors_of
from nanochat.common import Dist, describe_machine
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizers, linear
from nanochat.trainer import MAX_BAD_STEPS, WINDOW, BadData, Batch, State, every, fit, jump_limit

CONFIG = GPTConfig(64, 16, n_layer=2, n_head=3, n_kv_head=3, n_embd=48)
ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).parent / "ranks_worker.py"


def new_model():
    return random_model(CONFIG, noise=0.05)


def new_optimizers(model, dist=Dist()):
    return build_optimizers(model, dist, lr_scale=0.2)


class Stream:
    """Steps of 8 rows with uneven numbers of valid targets, cut into micro-batches of the given sizes."""

    progress = None

    def __init__(self, sizes=(8,), start=0):
        self.sizes, self.position = sizes, {"step": start}

    def __iter__(self):
        while True:
            g = torch.Generator().manual_seed(self.position["step"])
            idx = torch.randint(64, (8, 17), generator=g)
            targets = torch.where(torch.rand(8, 16, generator=g) < torch.linspace(0.1, 1, 8)[:, None], idx[:, 1:], -1)
            self.position = {"step": self.position["step"] + 1}
            yield [Batch(i, t) for i, t in zip(idx[:, :-1].split(self.sizes), targets.split(self.sizes))]


def run(batches, steps, model=None, state=None, **options):
    model = model or new_model()
    losses = []
    optimizers = options.pop("optimizers", None) or new_optimizers(model)
    state = fit(
        model, optimizers, batches, linear(1.0, 0.1), state or State(), num_iterations=steps,
        hooks=[lambda step: losses.append(step.loss), *options.pop("hooks", [])], **options,
    )  # fmt: skip
    return model, optimizers, state, losses


def test_training_learns():
    *_, losses = run([next(iter(Stream()))] * 40, 40)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("sizes", [[4, 4], [1] * 8, [5, 1, 2]])
def test_how_the_batch_is_cut_does_not_matter(sizes):
    whole, *_, expected = run(Stream(), 10)
    cut, *_, losses = run(Stream(sizes), 10)
    assert losses == pytest.approx(expected, rel=1e-5)
    for a, b in zip(whole.parameters(), cut.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_is_the_run_that_was_not_stopped():
    whole, _, _, expected = run(Stream(), 12)
    kept = {}

    def keep(step):
        tensors = tensors_of(kept["optimizers"])
        kept.update(model=copy.deepcopy(model.state_dict()), tensors=tensors, state=json.dumps(asdict(step.state)))

    model = new_model()
    kept["optimizers"] = new_optimizers(model)
    run(Stream(), 12, model, optimizers=kept["optimizers"], hooks=[every(7, keep)], should_stop=lambda: "state" in kept)
    second = new_model()
    second.load_state_dict(kept["model"])
    optimizers = new_optimizers(second)
    for optimizer in optimizers:
        optimizer.load_state_dict(kept["tensors"])
    state = State(**json.loads(kept["state"]))
    *_, losses = run(Stream(start=state.data["step"]), 12, second, state, optimizers=optimizers)
    assert state.step == 12 and losses == expected[-len(losses) :] and len(losses) < 12
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))


def everything(model, optimizers):
    """Weights, moments and counts of steps, as they are now."""
    return copy.deepcopy(model.state_dict() | tensors_of(optimizers))


def changed(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_a_bad_batch_changes_nothing_and_is_counted():
    model, optimizers, *_ = run(Stream(), 2)
    before = everything(model, optimizers)

    def loss_fn(model, batch):
        return model(batch.inputs, targets=batch.targets) * math.nan

    _, _, state, _ = run(Stream(), 3, model, optimizers=optimizers, loss_fn=loss_fn)
    assert state.skipped == 3 and not changed(before, everything(model, optimizers))
    with pytest.raises(RuntimeError, match="learning rate"):
        run(Stream(), 2 * MAX_BAD_STEPS, model, loss_fn=loss_fn)


def test_a_gradient_that_is_not_finite_changes_nothing():
    class Root(torch.autograd.Function):
        """Its derivative at 0 is infinite, and the loss is not."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.inf

    model, optimizers, *_ = run(Stream(), 2)
    before = everything(model, optimizers)
    loss_fn = lambda model, batch: Root.apply(model(batch.inputs, targets=batch.targets))  # noqa: E731
    _, _, state, losses = run(Stream(), 2, model, optimizers=optimizers, loss_fn=loss_fn)
    assert state.skipped == 2 and not changed(before, everything(model, optimizers))


def test_a_loss_that_jumps_is_skipped_and_one_that_stays_high_is_not():
    high, before = {WINDOW + 3, *range(WINDOW + 10, WINDOW + 40)}, {}

    def loss_fn(model, batch):
        step = stream.position["step"] - 1
        before[step] = everything(model, optimizers)
        return model(batch.inputs, targets=batch.targets) * (2 if step in high else 1)

    stream, model = Stream(), new_model()
    optimizers = new_optimizers(model)
    _, _, state, losses = run(stream, WINDOW + 30, model, optimizers=optimizers, loss_fn=loss_fn)
    still = [step for step in before if step + 1 in before and not changed(before[step], before[step + 1])]
    assert still == [WINDOW + 3, *range(WINDOW + 10, WINDOW + 20)] and state.skipped == 1 + MAX_BAD_STEPS
    assert losses[WINDOW + 3] > 1.5 * losses[WINDOW + 2] and state.bad == 0


def test_the_limit_of_a_loss():
    assert jump_limit([3.0] * (WINDOW - 1)) == math.inf
    assert jump_limit([3.0] * WINDOW) == pytest.approx(3.1)
    assert jump_limit([2.0, 4.0] * (WINDOW // 2)) == pytest.approx(3 + 6 * (WINDOW / (WINDOW - 1)) ** 0.5)


def test_data_that_cannot_be_read_stops_the_run_after_a_whole_step():
    class Broken(Stream):
        def __iter__(self):
            yield next(super().__iter__())
            raise OSError("shard 7 is damaged")

    state = State()
    with pytest.raises(BadData, match="shard 7"):
        run(Broken(), 5, state=state)
    assert state.step == 1 and state.data == {"step": 1}


@pytest.mark.parametrize("fault", ["kills", "rot", "lost", "damage", "disk"])
def test_faults(fault):
    """A few of what `python dev/faults.py` does many times."""
    command = [sys.executable, ROOT / "dev" / "faults.py", fault, "--kills=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_time_ends_a_run():
    _, _, state, _ = run(Stream(), None, minutes=0.01)
    assert state.progress == 1 and state.step > 1 and state.seconds >= 0.6


def test_hooks_come_when_they_are_due():
    """Also in a run that was left and resumed: no tenth comes twice, none is missed."""
    seen = []
    run(Stream(), 20, hooks=[every(6, lambda step: seen.append(step.state.step))])
    assert seen == [6, 12, 18, 20]
    seen.clear()
    run(Stream(), 20, hooks=[every(None, lambda step: seen.append(step.state.step)), every(0, pytest.fail)])
    whole = seen.copy()
    assert len(whole) == 10 and whole[-1] == 20
    for left in range(1, 20):
        seen.clear()
        state = State(left, progress=torch.tensor(left / 20).item())
        run(
            Stream(start=left),
            20,
            state=state,
            hooks=[every(None, lambda s: seen.append(s.state.step), state.progress)],
        )
        assert seen == [step for step in whole if step > left]


def test_weights_scale_the_gradient():
    """A weight of 2 is the row twice; a weight of 0 is no row at all."""
    batch = next(iter(Stream()))[0]
    model = new_model()
    scale = torch.tensor([2.0, 0, 1, 1, 1, 1, 1, 1])[:, None].expand(8, 16)
    rows = [0, 0, 2, 3, 4, 5, 6, 7]
    a = model(batch.inputs, targets=batch.targets, weights=scale)
    b = model(batch.inputs[rows], targets=batch.targets[rows])
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_matter(ranks, tmp_path):
    """The same global batches on several processes: the same losses and weights as on one, to rounding."""
    steps = 12
    model, optimizers, _, expected = run(Stream(), steps)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", str(WORKER)]
    done = subprocess.run([*command, str(tmp_path), str(steps)], capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr[-3000:]
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["losses"] == pytest.approx(expected, rel=1e-5)
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(result["model"][name], parameter, rtol=1e-3, atol=1e-4)
    for optimizer in optimizers:  # sharded on the ranks, whole in what is saved
        for name, tensor in optimizer.state_dict().items():
            assert result["optimizers"][name].shape == tensor.shape


GOLDEN = ROOT / "dev" / "golden" / "d2_cpu.txt"


def golden_run() -> tuple[str, list[float]]:
    """What the last digits depend on, and the losses."""
    machine = describe_machine(torch.device("cpu"))
    capability = torch.backends.cpu.get_cpu_capability()
    if torch.cpu.get_capabilities().get("avx512_vp2intersect"):  # names do not tell Zen 4 from 5, and oneDNN knows both
        capability += " vp2intersect"
    *_, losses = run(Stream(), 30)
    return f"# torch {machine['torch']}, {capability}, {machine['processor']}", losses


def test_golden_losses():
    """A refactor computes what was computed before: to the last bit with the torch and the processor that the losses
    were written with, to 1e-4 elsewhere. `python tests/test_trainer.py` writes them anew."""
    where, losses = golden_run()
    first, *expected = GOLDEN.read_text().splitlines()
    expected = [float(line) for line in expected]
    assert losses == expected if first == where else losses == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, losses = golden_run()
    GOLDEN.write_text("\n".join([where, *map(repr, losses)]) + "\n")
