"""What runs on a CUDA GPU only: bf16, compiled, against the same computed on the CPU in fp32."""

import copy
import math

import pytest
import torch
from models import random_model

from nanochat import attention, fp8
from nanochat.checkpoint_manager import load, save
from nanochat.common import Dist, compute_dtype
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizers, families, linear
from nanochat.trainer import Batch, State, fit, next_token_loss, train_step

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch built for it"),
    pytest.mark.filterwarnings("default"),  # the compiler warns itself
]
GPU = torch.device("cuda")


@pytest.fixture
def gpu_model(tiny_model):
    model = copy.deepcopy(tiny_model).to(GPU)
    model.compute_dtype = compute_dtype(GPU)
    return model


@pytest.fixture(autouse=True)
def fresh_compiler():
    """As set up for training; afterwards nothing may have broken a graph."""
    torch.set_float32_matmul_precision("high")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    assert not torch._dynamo.utils.counters["graph_break"]


def tokens(config, rows=4, length=65):
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def test_logits_and_losses_are_those_of_the_cpu(gpu_model, tiny_model, tiny_config):
    idx = tokens(tiny_config)
    inputs, targets = idx[:, :-1], idx[:, 1:]
    expected = tiny_model(inputs, targets=targets) / targets.numel()
    actual = gpu_model(inputs.to(GPU), targets=targets.to(GPU)) / targets.numel()
    assert actual.item() == pytest.approx(expected.item(), rel=0.02)


def test_compiled_training_follows_the_cpu(gpu_model, tiny_model, tiny_config):
    idx = tokens(tiny_config)

    def losses(model, forward, device):
        seen, batch = [], Batch(idx[:, :-1].to(device), idx[:, 1:].to(device))
        dist = Dist(device=device)
        hooks = [lambda step: seen.append(step.loss)]
        fit(
            forward, build_optimizers(model, dist, 0.2), [[batch]] * 20, linear(1.0, 0.1), State(), num_iterations=20,
            hooks=hooks, dist=dist,
        )  # fmt: skip
        return seen

    cpu = copy.deepcopy(tiny_model).train()
    expected, actual = losses(cpu, cpu, torch.device("cpu")), losses(gpu_model.train(), gpu_model.compiled(), GPU)
    assert actual == pytest.approx(expected, rel=0.05) and actual[-1] < 0.8 * actual[0]
    shapes = {tuple(p.shape[-2:]) for p in families(gpu_model)["matrices"].values()}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 + len(shapes)  # the model, and Muon's updates


def test_a_bad_step_changes_nothing(gpu_model, tiny_config):
    idx, dist = tokens(tiny_config).to(GPU), Dist(device=GPU)
    optimizers, batch = build_optimizers(gpu_model, dist), Batch(idx[:, :-1], idx[:, 1:])
    step = lambda loss_fn: train_step(gpu_model, optimizers, [batch], loss_fn, dist, 1.0, 0.5)  # noqa: E731

    def everything():
        states = [optimizer.state_dict() for optimizer in optimizers]
        return copy.deepcopy([gpu_model.state_dict(), *states])

    assert math.isfinite(step(next_token_loss))
    before = everything()
    assert math.isnan(step(lambda model, batch: next_token_loss(model, batch) * math.nan))
    after = everything()
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, after) for name in a)
    assert math.isfinite(step(next_token_loss)) and not torch.equal(before[0]["head.weight"], gpu_model.head.weight)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("kernels", ["AUTO", "FLASH"])
def test_a_window_compiled_is_that_of_a_mask(n_kv_head, kernels, monkeypatch):
    if kernels == "FLASH" and attention.window_kernels(GPU) != "FLASH":
        pytest.skip("needs a Hopper GPU, and the package flash-attn-4")
    monkeypatch.setattr(attention, "window_kernels", lambda device: kernels)
    config = GPTConfig(400, 512, n_layer=4, n_head=2, n_kv_head=n_kv_head, n_embd=128, window=130)
    model = random_model(config, noise=0.05).to(GPU)
    model.compute_dtype = compute_dtype(GPU)
    idx = tokens(config, 2, 513).to(GPU)
    results = []
    for forward in (model, model.compiled()):
        loss = forward(idx[:, :-1], targets=idx[:, 1:])
        (loss / idx[:, 1:].numel()).backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
        model.zero_grad()
    (loss, grads), (other_loss, other_grads) = results
    assert other_loss == pytest.approx(loss, rel=0.01)
    assert (grads - other_grads).norm() < 0.05 * grads.norm()


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="GPU without fp8")
def test_products_in_8_bits_are_close():
    g = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(64, 128, generator=g, device=GPU, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(256, 128, generator=g, device=GPU).requires_grad_()
    found = []
    for product in (lambda x, w: x @ w.T.bfloat16(), fp8.linear, torch.compile(fp8.linear)):
        y = product(x, weight)
        y.square().sum().backward()
        found.append([y.detach().float(), x.grad.float(), weight.grad])
        x.grad = weight.grad = None
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert (a - b).norm() < 0.1 * a.norm()


def test_answers_are_the_same_alone_and_in_company(gpu_model, tiny_tokenizer):
    engine = Engine(gpu_model, tiny_tokenizer, max_batch=8)
    prompts = [tiny_tokenizer.encode(f"The sky is {n} times").tolist() for n in range(8)]
    together = engine.generate(prompts, Sampling(max_tokens=20, temperature=0.0))
    for prompt, answer in zip(prompts, together):
        assert engine.generate([prompt], Sampling(max_tokens=20, temperature=0.0))[0].ids == answer.ids


def test_a_checkpoint_goes_from_the_gpu_to_the_cpu_and_back(gpu_model, tiny_tokenizer, tmp_path):
    path = save(tmp_path / "d2", gpu_model, tiny_tokenizer, stage="base", state=State(step=1), settings={})
    back = load(path=path, device=GPU).model.state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in gpu_model.state_dict().items())
