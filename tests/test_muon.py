"""Muon against the singular value decomposition, and its state."""

import pytest
import torch

from nanochat.muon import Muon, muon_update, orthogonalize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 12, 12), (2, 3, 8, 64)])
def test_orthogonalised_matrix_is_close_to_that_of_the_svd(shape):
    x = random(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalize(x)
    inner = u.mT @ y @ vh.mT  # diagonal, with entries near 1, if y has the same singular vectors
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-3
    large = s > 0.01 * s.amax(dim=-1, keepdim=True)
    assert ((diagonal - 1).abs() < 0.35)[large].all()


def test_wide_matrices_take_the_short_way_to_the_same_result():
    x = random(8, 40)
    torch.testing.assert_close(orthogonalize(x), orthogonalize(x.double()).float(), rtol=1e-3, atol=1e-4)


def test_update_has_the_norm_of_an_orthogonal_matrix_and_even_rows():
    grad = random(6, 20) * torch.tensor([1e-6, 1, 1, 1, 1, 100])[:, None]
    momentum, row_square = torch.zeros(6, 20), torch.zeros(6, 1)
    for seed in range(20):
        update = muon_update(grad + 0.01 * random(6, 20, seed=seed), momentum, row_square, beta1=0.9)
    assert abs(update.norm().item() - 6**0.5) < 1e-3
    rows = update.norm(dim=1)
    assert rows.max() / rows.min() < 1.5


def parameters(shapes):
    return {f"p{i}": torch.nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)}


def train(params, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for i, p in enumerate(params.values()):
            p.grad = random(*p.shape, seed=1000 * step + i)
        optimizer.step(1.0, progress=step / 10)


def test_a_stack_of_heads_is_updated_head_by_head():
    together = parameters([(5, 4, 12)])
    apart = {f"h{i}": torch.nn.Parameter(together["p0"].detach()[i].clone()) for i in range(5)}
    a, b = Muon(together, lr=0.1, weight_decay=0.1), Muon(apart, lr=0.1, weight_decay=0.1)
    grad = random(5, 4, 12, seed=9)
    together["p0"].grad = grad
    for i, p in enumerate(apart.values()):
        p.grad = grad[i]
    a.step(1.0, 0.5), b.step(1.0, 0.5)
    torch.testing.assert_close(together["p0"].detach(), torch.stack([p.detach() for p in apart.values()]))


def test_state_comes_back_exactly():
    shapes = [(4, 8), (8, 4), (3, 4, 8), (4, 8)]
    params = parameters(shapes)
    optimizer = Muon(params, lr=0.02, weight_decay=0.1)
    train(params, optimizer, 3)
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
    resumed = Muon(copies, lr=0.02, weight_decay=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    train(params, optimizer, 3, start=3)
    train(copies, resumed, 3, start=3)
    assert all(torch.equal(params[name], copies[name]) for name in params)


def test_what_a_gpu_compiles_is_one_graph_for_each_shape():
    """Whatever the momentum, which changes from step to step."""
    graphs = []
    compiled = torch.compile(muon_update, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=False)
    torch._dynamo.reset()
    for shape in ((2, 4, 12), (12, 4), (4, 4)):
        a, b = ([random(*shape, seed=1), random(*shape, seed=2), random(*shape[:-1], 1).abs()] for _ in range(2))
        for beta1 in (0.85, 0.9, 0.95):
            found = compiled(*a, torch.full((), beta1))
            torch.testing.assert_close(found, muon_update(*b, beta1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a, b)
    assert len(graphs) == 3
