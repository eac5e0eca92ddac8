"""Products in 8 bits beside exact ones. torch computes them on a CPU too, only not fast."""

import pytest
import torch
import torch.nn.functional as F

from nanochat import fp8
from nanochat.gpt import GPT, GPTConfig

TOLERANCE = 0.1  # of the norm: a number of e4m3 has 3 bits behind the point, one of e5m2 has 2


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])  # beyond what 8 bits hold without a scale
def test_product_and_gradients_are_near(size):
    generator = torch.Generator().manual_seed(0)
    x = (size * torch.randn(4, 32, 128, generator=generator)).bfloat16().requires_grad_()
    weight = torch.randn(256, 128, generator=generator).requires_grad_()
    y = fp8.linear(x, weight)
    assert y.shape == (4, 32, 256) and y.dtype == torch.bfloat16
    assert 0 < error(y, F.linear(x.float(), weight)) < TOLERANCE
    grad = torch.randn(y.shape, generator=generator).bfloat16()
    y.backward(grad)
    assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    assert error(x.grad, grad.float() @ weight) < TOLERANCE
    assert error(weight.grad, torch.einsum("btm,btk->mk", grad.float(), x.float())) < TOLERANCE


def test_zeros_have_no_nan():
    assert not fp8.linear(torch.zeros(16, 32, dtype=torch.bfloat16), torch.zeros(16, 32)).any()


def test_a_model_trains_in_8_bits_and_is_used_without():
    idx = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig(64, 32, 2, 2, 2, 128)).init_weights(generator)
    model.compute_dtype = torch.bfloat16
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.proj.weight, std=0.1, generator=generator)
        torch.nn.init.normal_(block.mlp.proj.weight, std=0.1, generator=generator)
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=generator)

    def loss_and_gradient(train: bool) -> tuple[float, torch.Tensor]:
        model.train(train).zero_grad()
        loss = model(idx[:, :-1], targets=idx[:, 1:]) / 128
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    plain = loss_and_gradient(train=True)
    model.use_fp8()
    eight, used = loss_and_gradient(train=True), loss_and_gradient(train=False)
    assert used[0] == plain[0] and torch.equal(used[1], plain[1])
    assert eight[0] != plain[0] and eight[0] == pytest.approx(plain[0], rel=0.02)
    assert 0 < error(eight[1], plain[1]) < 2 * TOLERANCE


def test_elsewhere_it_is_refused():
    with pytest.raises(SystemExit, match="8.9 or later"):
        fp8.require(torch.device("cpu"))
