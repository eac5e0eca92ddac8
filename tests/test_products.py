"""Products by oneDNN: the same as torch's, in value and gradient, whatever the strides."""

import pytest
import torch
import torch.nn.functional as F

from nanochat import products


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """On every processor whose torch has it, also where it is not the faster one."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows, n_in, n_out", [(1, 3, 5), (7, 64, 1), (256, 128, 512), (300, 512, 128), (0, 8, 4)])
def test_a_product_is_that_of_float64(rows, n_in, n_out):
    a, b = normal(rows, n_in), normal(n_out, n_in, seed=1)
    expected = (a.double() @ b.double().t()).float()
    torch.testing.assert_close(products.product(a, b), expected, rtol=1e-5, atol=1e-4)
    strided = products.product(a.t().contiguous().t(), b.t().contiguous().t())
    torch.testing.assert_close(strided, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_in, n_out", [(48, 96), (96, 48), (8, 1)])
def test_the_gradients_are_those_of_torch(n_in, n_out):
    x, weight, out = normal(2, 5, n_in), normal(n_out, n_in, seed=1), normal(2, 5, n_out, seed=2)
    results = []
    for linear, type in ((products.linear, torch.float32), (F.linear, torch.float64)):
        tensors = [t.to(type, copy=True).requires_grad_() for t in (x, weight)]
        y = linear(*tensors)
        y.backward(out.to(type))
        results.append([y, *(t.grad for t in tensors)])
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)
    frozen = products.linear(x, weight.clone().requires_grad_())
    frozen.sum().backward()  # what has no gradient gets none
    assert x.grad is None


def test_answers_are_computed_by_torch():
    """With which their bits are tested alone and in company; nor does another type of number go to oneDNN here."""
    x, weight = normal(9, 32), normal(16, 32, seed=1)
    with torch.no_grad():
        assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    half = products.linear(x.bfloat16().requires_grad_(), weight.bfloat16())
    assert half.grad_fn.name() != products.linear(x.requires_grad_(), weight).grad_fn.name()
