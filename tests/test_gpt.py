"""The model against slow, obvious versions of its parts."""

import copy
import math
import sys
import warnings
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from models import random_model

from nanochat import attention, gpt
from nanochat.attention import plain_attention, window_blocks, windowed_attention
from nanochat.cpu_forward import CpuForward
from nanochat.gpt import (
    GPT,
    SOFTCAP,
    Attention,
    GPTConfig,
    linear_cross_entropy,
    norm,
    relu_squared,
    rotary_angles,
    rotate,
    softcap,
    token_losses,
)


class Cache:
    """The least that fulfils the cache's contract: everything in lists, row by row."""

    def __init__(self, config, rows: int, length: int):
        shape = (config.n_layer, rows, length, config.n_kv_head, config.n_embd // config.n_head)
        self.k, self.v = torch.full(shape, 7.0), torch.full(shape, -7.0)
        self.pos, self.prev = torch.zeros(rows, dtype=torch.long), torch.full((rows,), -1)

    def update(self, layer, k, v):
        for row, start in enumerate(self.pos.tolist()):
            self.k[layer, row, start : start + k.size(1)] = k[row]
            self.v[layer, row, start : start + k.size(1)] = v[row]
        return self.k[layer], self.v[layer]

    def advance(self, idx, n):
        n = torch.full_like(self.pos, n) if isinstance(n, int) else n
        self.pos, self.prev = self.pos + n, idx[torch.arange(len(idx)), n - 1]


def tokens(config, rows, length, seed=1):
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "function, plain",
    [(norm, lambda x: F.rms_norm(x, (x.size(-1),), eps=1e-6)), (relu_squared, lambda x: F.relu(x) ** 2)],
)
def test_handwritten_gradients_are_those_of_autograd(function, plain):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn_like(x)
    (function(a) * weight).sum().backward()
    (plain(b) * weight).sum().backward()
    torch.testing.assert_close(function(x), plain(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(2, 7, 3, 8)
    positions = torch.arange(7)[None]
    a, b = x.chunk(2, dim=-1)
    channel = torch.arange(4)
    turn = torch.exp(1j * positions[..., None, None] * 5_000.0 ** (-2 * channel / 8))
    expected = torch.view_as_real(torch.complex(a, b) * turn)
    actual = rotate(x, *rotary_angles(positions, GPTConfig(9, 7, 1, 3, 3, 24, rope_base=5_000.0), torch.float32))
    torch.testing.assert_close(torch.stack(actual.chunk(2, dim=-1), dim=-1), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 1, 2, 5, 6, 100])
@pytest.mark.parametrize("n_kv_head, T", [(1, 6), (2, 6), (4, 6), (2, 1), (2, 11)])
def test_attention_is_a_plain_softmax_loop(n_kv_head, T, window):
    config = GPTConfig(50, 16, n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32, window=window)
    layer = Attention(config, layer=0)
    for weight in (layer.qkv, layer.proj.weight):
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(T)[None]
    cos, sin = rotary_angles(positions, config, torch.float32)
    expected = torch.zeros(2, T, 32)
    for b in range(2):
        for h in range(4):
            group = h * n_kv_head // 4
            q = norm(rotate((x[b] @ layer.qkv[h].T)[None, :, None], cos, sin))[0, :, 0]
            k = norm(rotate((x[b] @ layer.qkv[4 + group].T)[None, :, None], cos, sin))[0, :, 0]
            v = x[b] @ layer.qkv[4 + n_kv_head + group].T
            for t in range(T):
                first = max(0, t + 1 - window) if window else 0
                scores = torch.stack([q[t] @ k[s] for s in range(first, t + 1)]) * 1.44 / math.sqrt(8)
                expected[b, t, 8 * h : 8 * h + 8] = (scores.softmax(0)[:, None] * v[first : t + 1]).sum(0)
    actual = layer(x, None, (cos, sin), None, positions)
    torch.testing.assert_close(actual, layer.proj(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_losses", [gpt._chunk_losses, gpt._chunk_losses_by_torch])
def test_cross_entropy_and_its_gradient_are_those_of_the_plain_formula(chunk_losses, monkeypatch):
    monkeypatch.setattr(gpt, "_chunk_losses", chunk_losses)
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(700, 12, generator=g), torch.randn(40, 12, generator=g) * 3
    targets = torch.randint(-1, 40, (700,), generator=g)
    scale = torch.rand(700, generator=g) * (targets >= 0)
    ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain = [x.double().requires_grad_(), weight.double().requires_grad_()]
    loss = linear_cross_entropy(*ours, targets, scale)
    logits = SOFTCAP * torch.tanh(plain[0] @ plain[1].T / SOFTCAP)
    each = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    (3 * loss).backward()
    (3 * (each * scale).sum()).backward()
    torch.testing.assert_close(loss.double(), (each * scale).sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(token_losses(x, weight, targets).double(), each * (targets >= 0), rtol=1e-5, atol=1e-4)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, to itself
def test_what_a_gpu_compiles_is_one_graph_with_the_same_gradients(tiny_model, tiny_config, monkeypatch):
    """Forward and backward; in bf16; with logits in chunks, by torch. A step after an evaluation is not compiled anew,
    a batch of another size is compiled once."""
    monkeypatch.setattr(gpt, "_chunk_losses", gpt._chunk_losses_by_torch)
    monkeypatch.setattr(gpt, "_chunk_rows", lambda x: 48)
    model = copy.deepcopy(tiny_model).train()
    model.compute_dtype = torch.bfloat16
    idx = tokens(tiny_config, 4, 33)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)

    def gradients(forward, rows):
        model.zero_grad()
        forward(idx[:rows, :-1], targets=idx[:rows, 1:]).backward()
        return [p.grad.clone() for p in model.parameters()]

    for rows, graphs in ((4, 1), (4, 1), (3, 2), (4, 2)):
        for a, b in zip(gradients(compiled, rows), gradients(model, rows)):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
        model.eval()
        model(idx[:, :-1], targets=idx[:, 1:], reduction="none")
        model.train()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_loss_is_the_cross_entropy_of_the_logits(tiny_model, tiny_config):
    idx = tokens(tiny_config, 3, 20)
    targets = tokens(tiny_config, 3, 20, seed=2)
    targets[0, :5] = -1
    logits = tiny_model(idx)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    torch.testing.assert_close(tiny_model(idx, targets=targets), expected, rtol=1e-5, atol=1e-4)
    assert logits.abs().max() <= SOFTCAP and logits.shape == (3, 20, tiny_config.vocab_size)


def test_no_token_sees_the_future(tiny_model, tiny_config):
    idx = tokens(tiny_config, 1, 20)
    changed = idx.clone()
    changed[0, 12] = (changed[0, 12] + 1) % tiny_config.vocab_size
    before, after = tiny_model(idx), tiny_model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("chunks", [(20,), (1,) * 20, (7, 1, 12)])
@torch.no_grad()
def test_a_cache_changes_nothing(tiny_model, tiny_config, chunks):
    idx = tokens(tiny_config, 2, 20)
    cache, outputs, start = Cache(tiny_config, 2, 24), [], 0
    for length in chunks:
        outputs.append(tiny_model(idx[:, start : start + length], cache=cache))
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), tiny_model(idx), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunks", [(20,), (1,) * 20, (7, 1, 12), (2, 18)])
@pytest.mark.parametrize("window", [1, 3, 8, 19, 40])
@torch.no_grad()
def test_a_cache_changes_nothing_with_a_window(tiny_model, tiny_config, window, chunks):
    """Nor does the compiled forward of the engine, at any position."""
    model = random_model(replace(tiny_config, n_layer=5, window=window))
    assert [model.config.window_of(layer) for layer in range(5)] == [window] * 3 + [None] * 2
    idx = tokens(tiny_config, 2, 20)
    whole = model(idx)
    cache, outputs, start = Cache(model.config, 2, 24), [], 0
    forward = CpuForward(model, 2, 24)
    for length in chunks:
        outputs.append(model(idx[:, start : start + length], cache=cache))
        for row, ids in enumerate(idx.tolist()):
            before = ids[start - 1] if start else -1
            compiled = forward.prefill(row, start, ids[start : start + length], before)
            torch.testing.assert_close(compiled[0], whole[row, start + length - 1], rtol=1e-4, atol=1e-3)
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-4, atol=1e-4)
    if window < 20:
        assert not torch.allclose(whole[:, -1], without_window(model)(idx)[:, -1], atol=1e-3)


def without_window(model):
    other = GPT(replace(model.config, window=0))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("window", [1, 48, 128, 200])
@pytest.mark.parametrize("n_kv_head, kernels", [(1, "AUTO"), (2, "FLASH")])
def test_attention_by_blocks_is_that_of_a_mask(window, n_kv_head, kernels):
    """What a GPU runs compiled, here by torch's plain version of it, which refuses kernels that it does not know."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 160, 16, generator=g) for heads in (2, n_kv_head, n_kv_head))
    ahead = torch.arange(160)[None] - torch.arange(160)[:, None]
    mask = (ahead <= 0) & (ahead > -window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is slow so, which is what torch says
        actual = windowed_attention(q, k, v, 0.3, window_blocks(160, window, q.device, kernels))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, to itself
def test_training_by_blocks_is_training_with_a_mask(tiny_config, monkeypatch):
    """As on a GPU, in one graph; its blocks are made once for all layers. Of FlexAttention's backward pass torch has a
    plain version for CPUs, but does not offer it."""
    from torch._dynamo.backends.debugging import aot_eager  # takes seconds to import

    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    monkeypatch.setattr(gpt, "_chunk_losses", gpt._chunk_losses_by_torch)
    monkeypatch.setattr(attention, "by_blocks", lambda device: torch.compiler.is_compiling())
    model = random_model(replace(tiny_config, n_layer=3, sequence_len=200, window=130), noise=0.05)
    idx, graphs = tokens(model.config, 1, 201), []
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=lambda g, x: graphs.append(g) or aot_eager(g, x), fullgraph=True)
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        loss = forward(idx[:, :-1], targets=idx[:, 1:])
        loss.backward()
        results.append([loss, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    (graph,) = graphs
    masks = [node.args[4][:-1] for node in graph.graph.nodes if node.op == "call_function" and "flex" in node.name]
    assert len(masks) == 2 and all(mask == masks[0] for mask in masks)


def test_flops_of_a_window_are_those_of_the_pairs_it_sees():
    config = GPTConfig(50, 4096, n_layer=4, n_head=1, n_kv_head=1, n_embd=32, window=1024)
    model, full = GPT(config), GPT(replace(config, window=0))
    pairs = sum(min(t + 1, 1024) for t in range(4096)) / sum(t + 1 for t in range(4096))
    attention = 12 * 4 * 32 * 4096 / 2
    expected = full.flops_per_token() - attention + attention * (3 * pairs + 1) / 4
    assert model.flops_per_token() == pytest.approx(expected, rel=1e-3)


def test_windows_take_the_kernels_that_are_installed(monkeypatch):
    """Those of FlashAttention only where it is installed and the card has them."""
    cuda, capability = torch.device("cuda"), [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    assert attention.window_kernels(cuda) == "AUTO" and attention.windows_by(torch.device("cpu")) == "a mask"
    for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert attention.window_kernels(cuda) == "FLASH" and "FlashAttention 4" in attention.windows_by(cuda)
    capability[0] = (8, 0)
    assert attention.window_kernels(cuda) == "AUTO" and "Triton" in attention.windows_by(cuda)


def test_only_what_is_compiled_takes_kernels_that_are_built_for_each_shape(monkeypatch):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for device, compiling, allowed in (("cuda", True, before), ("cuda", False, False), ("cpu", False, before)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        with attention.kernels_for(torch.device(device)):
            assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
            assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@torch.no_grad()
def test_rows_of_different_lengths_share_a_cache(tiny_model, tiny_config):
    idx = tokens(tiny_config, 3, 12)
    lengths = torch.tensor([3, 12, 8])
    cache = Cache(tiny_config, 3, 24)
    first = tiny_model(idx, cache=cache, at=lengths - 1)  # what is right of a row's length is padding
    more = tokens(tiny_config, 3, 1, seed=3)
    second = tiny_model(more, cache=cache)
    for row, n in enumerate(lengths.tolist()):
        alone = tiny_model(torch.cat((idx[row : row + 1, :n], more[row : row + 1]), dim=1))
        torch.testing.assert_close(first[row], alone[0, -2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second[row, 0], alone[0, -1], rtol=1e-4, atol=1e-4)


def test_every_parameter_is_initialised_and_gets_a_gradient():
    config = GPTConfig.from_depth(2, 60, 16)
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    model.init_weights(torch.Generator().manual_seed(0))
    assert all(p.isfinite().all() for p in model.parameters())
    again = GPT(config).init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    with torch.no_grad():  # projections start at zero, and hide what lies behind them
        for parameter in model.parameters():
            parameter.add_(0.1)
    idx = tokens(config, 2, 17)
    model(idx[:, :-1], targets=idx[:, 1:]).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_a_new_model_knows_nothing(tiny_config):
    model = GPT(tiny_config).init_weights(torch.Generator().manual_seed(0))
    idx = tokens(tiny_config, 4, 33)
    mean = model(idx[:, :-1], targets=idx[:, 1:]) / idx[:, 1:].numel()
    assert abs(mean.item() - math.log(tiny_config.vocab_size)) < 0.05


def test_half_precision_model_is_close(tiny_model, tiny_config):
    model = copy.deepcopy(tiny_model)
    model.compute_dtype = torch.bfloat16
    idx = tokens(tiny_config, 2, 16)
    assert model(idx).dtype == torch.float32
    assert (softcap(model(idx)) - softcap(tiny_model(idx))).abs().mean() < 0.3


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="n_head"):
        GPTConfig(50, 16, n_layer=1, n_head=3, n_kv_head=3, n_embd=32)


@pytest.mark.parametrize("T", [1, 7, 64])
def test_plain_attention_is_attention(T):
    g = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(2, 3, T, 8, generator=g).requires_grad_() for _ in range(3))
    weight = torch.randn(2, 3, T, 8, generator=g)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    found = plain_attention(q, k, v, 0.3)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), (q, k, v)), wanted)


def test_a_model_trained_in_bf16_has_nearly_the_same_gradients(tiny_model, tiny_config):
    idx, grads = tokens(tiny_config, 2, 17), []
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(tiny_model)
        model.compute_dtype = dtype
        model(idx[:, :-1], targets=idx[:, 1:]).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.blocks.parameters()]))
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert F.cosine_similarity(*grads, dim=0) > 0.99
