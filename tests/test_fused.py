"""The fused loss against the plain formula in float64, at its edges."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.fused import softcap_cross_entropy_

CAP = 15.0


def run(z, targets, scale):
    z = z.clone()
    return softcap_cross_entropy_(z, targets, scale, CAP), z


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 1e6, 1e30])
def test_losses_and_gradients_of_small_and_huge_logits(size):
    g = torch.Generator().manual_seed(0)
    z, scale = size * torch.randn(33, 301, generator=g), torch.rand(33, generator=g)
    targets = torch.randint(301, (33,), generator=g)
    exact = z.double().requires_grad_()
    expected = F.cross_entropy(CAP * torch.tanh(exact / CAP), targets, reduction="none")
    (expected * scale).sum().backward()
    losses, gradient = run(z, targets, scale)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_the_number_of_threads_does_not_matter():
    z, targets, threads = torch.randn(7, 64), torch.arange(-1, 6), torch.get_num_threads()
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(run(z, targets, (targets >= 0).float()))
    torch.set_num_threads(threads)
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0]) and torch.equal(gradient, results[0][1])
    assert not results[0][1][0].any()


def test_a_loss_that_is_no_number_stays_none():
    losses, _ = run(torch.full((2, 8), float("nan")), torch.zeros(2, dtype=torch.long), torch.ones(2))
    assert losses.isnan().all()
