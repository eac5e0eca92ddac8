"""AdamW against torch's."""

import pytest
import torch

from nanochat.adamw import CHUNK, AdamW, adamw_update, adamw_update_fused


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7,), (30, 5), (CHUNK // 64 + 3, 130)])
def test_same_weights_as_torch(shape):
    ours, theirs = torch.nn.Parameter(random(*shape)), torch.nn.Parameter(random(*shape))
    optimizer = AdamW({"w": ours}, lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(5):
        ours.grad, theirs.grad = random(*shape, seed=step), random(*shape, seed=step)
        optimizer.step(0.5, progress=0.3)
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_state_comes_back_exactly():
    params = {"a": torch.nn.Parameter(random(5, 3)), "b": torch.nn.Parameter(random(1))}
    optimizer = AdamW(params, lr=0.1)

    def run(params, optimizer, steps):
        for step in steps:
            for name, p in params.items():
                p.grad = random(*p.shape, seed=step + len(name))
            optimizer.step(1.0, 0.0)

    run(params, optimizer, range(3))
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
    resumed = AdamW(copies, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    run(params, optimizer, range(3, 6))
    run(copies, resumed, range(3, 6))
    assert all(torch.equal(params[name], copies[name]) for name in params)


def test_what_a_gpu_runs_is_the_same_update():
    """The kernel that torch has for all tensors at once exists for CPUs, too."""
    shapes = [(7,), (3000,), (1,)]
    one, all_at_once = ([[random(*s, seed=k) for s in shapes] for k in range(4)] for _ in range(2))
    for buffers in (one, all_at_once):
        buffers[3] = [square.abs() for square in buffers[3]]
    for step in range(1, 5):
        settings = step, 0.01 * step, 0.8, 0.95, 1e-8, 0.1
        for tensors in zip(*one):
            adamw_update(*tensors, *settings)
        adamw_update_fused(*all_at_once, *settings)
    for a, b in zip(one, all_at_once):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
