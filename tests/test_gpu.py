"""What runs on a CUDA GPU only: bf16, compiled, against the same computed on the CPU in fp32."""

import copy

import pytest
import torch

from nanochat import fp8
from nanochat.checkpoint_manager import load, save
from nanochat.common import Dist, compute_dtype
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizers, linear
from nanochat.trainer import Batch, State, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch built for it")
GPU = torch.device("cuda")


@pytest.fixture
def gpu_model(tiny_model):
    model = copy.deepcopy(tiny_model).to(GPU)
    model.compute_dtype = compute_dtype(GPU)
    return model


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
    torch._dynamo.reset()
    expected, actual = losses(cpu, cpu, torch.device("cpu")), losses(gpu_model, torch.compile(gpu_model), GPU)
    assert actual == pytest.approx(expected, rel=0.05) and actual[-1] < 0.8 * actual[0]
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_window_compiled_is_that_of_a_mask():
    config = GPTConfig(400, 512, n_layer=4, n_head=2, n_kv_head=1, n_embd=64, window=128)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0)).to(GPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.compute_dtype = compute_dtype(GPU)
    idx = tokens(config, 2, 513).to(GPU)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for forward in (model, torch.compile(model)):
        loss = forward(idx[:, :-1], targets=idx[:, 1:])
        (loss / idx[:, 1:].numel()).backward()
        results.append([loss.item(), *(p.grad.norm().item() for p in model.parameters())])
        model.zero_grad()
    assert results[1] == pytest.approx(results[0], rel=0.05, abs=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]


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
