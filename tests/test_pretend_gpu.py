"""What a GPU would be asked to do, on one that is pretended (pretend_gpu.py): the right devices and types, one wait of
the host in a step, never the logits of a whole batch, and the numbers of the CPU."""

import copy
import dataclasses
import json
import re
import weakref

import numpy as np
import pytest
import torch
from models import random_model
from pretend_gpu import GPU, gpu
from ranks import run_two_ranks
from test_core_eval import Pairs, make_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dev.bench import attention, speed
from nanochat import checkpoint_manager, dataset, dial, stage
from nanochat.common import Dist
from nanochat.core_eval import CORE_TASKS, evaluate_task
from nanochat.dataloader import Batches, Rows
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.grammar import Grammars
from nanochat.lora import LowRankAdamW, merged
from nanochat.loss_eval import evaluate_bpb, evaluate_loss
from nanochat.optim import build_optimizers, linear
from nanochat.trainer import Batch, State, fit, next_token_loss, train_step
from scripts import base_train, chat_rl
from tasks.arithmetic import Arithmetic

pytestmark = pytest.mark.filterwarnings("default")  # the compiler warns itself
CPU = torch.device("cpu")


class Numbers:
    """A source of rows for the dataloader."""

    shards = 1

    def blocks(self, epoch, shard):
        return 2

    def block(self, epoch, shard, block):
        tokens = np.random.default_rng((epoch, block)).integers(0, 400, (4, 65))
        return Rows(tokens[:, :-1], tokens[:, 1:])


def trained(model, forward, optimizers, device, steps=4):
    dist, losses = Dist(device=device), []
    batches = Batches(Numbers(), rows=4, device_rows=2, dist=dist)
    hooks = [lambda step: losses.append(step.loss)]
    model.train()
    fit(forward, optimizers, batches, linear(1, 0.1), State(), num_iterations=steps, hooks=hooks, dist=dist)
    return losses


@pytest.mark.parametrize("window, dtype", [(0, torch.float32), (16, torch.float32), (16, torch.bfloat16)])
def test_training_is_that_of_the_cpu_with_one_wait_a_step(tiny_config, window, dtype):
    cpu = random_model(dataclasses.replace(tiny_config, window=window, n_layer=3))
    with gpu() as waits:
        model = copy.deepcopy(cpu).to("cuda")
        model.compute_dtype = dtype
        optimizers = build_optimizers(model, Dist(device=GPU), lr_scale=0.2)
        waits.clear()
        losses = trained(model, model.compiled(), optimizers, GPU)
        assert len(waits) == len(losses) == 4 and all(line.startswith("trainer.py: read") for line in waits)
    assert losses == pytest.approx(trained(cpu, cpu, build_optimizers(cpu, lr_scale=0.2), CPU), rel=1e-3)


def test_low_rank_training_in_bf16_and_checkpoints_both_ways(tiny_model, tiny_tokenizer, tmp_path):
    with gpu() as waits:
        model = copy.deepcopy(tiny_model).to("cuda")
        model.compute_dtype = torch.bfloat16
        optimizer = LowRankAdamW(model, 2, torch.bfloat16, Dist(device=GPU))
        waits.clear()
        losses = trained(model, model.compiled(), [optimizer], GPU)
        assert losses[-1] < losses[0] and len(waits) == 4
        tensors = checkpoint_manager.tensors_of([optimizer])
        kept = {"stage": "sft", "state": State(step=1), "settings": {}, "optimizer_tensors": tensors}
        path = checkpoint_manager.save(tmp_path / "d2", merged(model), tiny_tokenizer, **kept)
        back = checkpoint_manager.load(path=path, device=GPU)
        assert all(torch.equal(t, back.model.state_dict()[n]) for n, t in merged(model).state_dict().items())
        checkpoint_manager.load_optimizers(path, [optimizer])
        following = stage.tuning_optimizers(stage.TuneConfig(), back.model, Dist(device=GPU))
        assert trained(back.model, back.model.compiled(), following, GPU, steps=1)[0] < losses[0]
    held = {name: weight.held for name, weight in merged(model).state_dict().items()}
    assert all(torch.equal(t, held[n]) for n, t in checkpoint_manager.load(path=path).model.state_dict().items())


def test_answers_and_evaluations_are_those_of_the_cpu(tiny_model, tiny_tokenizer):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar, other = Grammars(tiny_tokenizer).of_schema(schema), {"max_tokens": 12, "seed": 1}
    settings = [
        Sampling(max_tokens=12, temperature=0.0, logprobs=2),
        Sampling(temperature=0.8, top_k=5, min_p=0.01, logit_bias={3: 1.0}, **other),
        Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, **other),
        Sampling(temperature=1.0, grammar=grammar, **other),
    ]
    prompts = [tiny_tokenizer.encode(text).tolist() for text in ("The sky", "The sky is", "One and two", "A b")]
    wide = random_model(GPTConfig(300, 256, n_layer=2, n_head=2, n_kv_head=1, n_embd=32), noise=0.3)
    tasks = [
        next(task for task in CORE_TASKS if task.kind == kind) for kind in ("multiple_choice", "language_modeling")
    ]

    def everything(device):
        model, other = copy.deepcopy(tiny_model).to(device), copy.deepcopy(wide).to(device)
        engine, dist = Engine(model, tiny_tokenizer, max_batch=4), Dist(device=device)
        answers = engine.generate(prompts, settings)
        logprobs = [token.logprob for token in answers[0].logprobs]
        answers = [(a.ids, a.finish_reason) for a in answers]
        held_out = lambda: Batches(Numbers(), 4, 4, dist, epochs=1)  # noqa: E731
        lengths = torch.ones(400, dtype=torch.int64, device=device)
        losses = [evaluate_bpb(model, held_out(), lengths, dist), evaluate_loss(model, held_out(), dist), *logprobs]
        core = [evaluate_task(other, Pairs(), task, make_rows(task.kind), 0.25, 8, dist).verdicts for task in tasks]
        return answers, core, losses

    with gpu():
        answers, core, losses = everything(GPU)
    expected = everything(CPU)
    assert (answers, core) == expected[:2] and losses == pytest.approx(expected[2], rel=1e-4)


def test_rewards_are_learned_from_on_a_gpu(tiny_model, tiny_tokenizer):
    cfg = chat_rl.Config(examples_per_step=4, num_samples=3, max_tokens=8, device_batch_size=12)
    with gpu():
        dist, model = Dist(device=GPU), copy.deepcopy(tiny_model).to("cuda")
        engine = Engine(model, tiny_tokenizer, max_batch=4)
        rollouts = chat_rl.Rollouts(cfg, Arithmetic("train"), engine, dist, None)
        rollouts.task.grade = lambda conversation, answer: len(answer.ids) % 2
        optimizers = build_optimizers(model, dist, 0.1)
        loss = train_step(model, optimizers, next(iter(rollouts)), next_token_loss, dist, 1.0, 0.0)
        rows = []
        model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        assert np.isfinite(loss) and rollouts.compare(model, model)["KL to the start"] == pytest.approx(0, abs=1e-6)
        assert max(rows) == 8  # each with all its logits


def test_a_pretraining_run_with_everything_in_it(base_dir, tiny_tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(dial.MATMUL, "cuda", 64)
    tiny_tokenizer.save(base_dir / "tokenizer" / "tokenizer.json")
    dataset.prepare("mine", [(str(n), f"The grass of meadow {n} is green. " * 4) for n in range(200)], "a test", "1")
    run = {"data": "mine", "depth": 1, "max_seq_len": 64, "total_batch_size": 512, "eval_tokens": 512}
    with gpu() as waits:
        base_train.main(base_train.Config(num_iterations=3, save_every=2, **run))
        lines = [line for line in waits if line.startswith("trainer.py")]
        base_train.main(base_train.Config(num_iterations=3, dry_run=True, fp8=True, **run))
    assert len(lines) == 3 and "8 rows at once on each GPU" in capsys.readouterr().out
    metrics = json.loads((base_dir / "report" / "base_train.json").read_text())["metrics"]
    assert {"mfu", "peak_memory", "val_bpb"} <= set(metrics)


def test_the_benchmarks_print_their_tables(monkeypatch, capsys):
    monkeypatch.setitem(dial.MATMUL, "cuda", 64)
    monkeypatch.setattr(speed, "copy_bandwidth", lambda device: 1e9)
    sizes = {"vocab_size": 512, "max_seq_len": 64, "device_batch_size": 2, "micro_batches": 1, "steps": 1}
    with gpu():
        speed.main(speed.Config((1,), window=32, batches=(1, 2), answer_tokens=8, **sizes))
        attention.main(attention.Config(1, (2,), (16,), 64, 32, repeats=1))
    out = capsys.readouterr().out
    numbers = re.compile(r"(\s+[\d.,]+%?){4,}")
    assert sum(map(bool, map(numbers.fullmatch, out.splitlines()))) == 3, out  # of training, and of answers
    assert len(re.findall(r"^\S.*\d\.\d{4}$", out, re.M)) == 4, out  # ways to attention that are there
    assert len(re.findall(r"^FlexAttention on Triton +\w*Error", out, re.M)) == 1, out  # one that is not ends nothing


class Memory(TorchDispatchMode):
    """Bytes of the storages that are alive, their peak, and how many numbers the largest tensor has."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.seen:
                storage = x.untyped_storage()
                self.seen[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata)
                self.now += storage.nbytes()
                self.peak, self.largest = max(self.peak, self.now), max(self.largest, x.numel())
        return out

    def gone(self, key):
        self.now -= self.seen.pop(key)


def test_memory_is_as_reckoned_and_never_the_logits_of_a_whole_batch(monkeypatch):
    """Depth 12, 16 rows of 2,048 tokens, bf16, without numbers. Counted uncompiled, which compiled is 1% less."""
    B, T, V = 16, 2048, 32768

    def flash(q, k, v, attn_mask, is_causal, scale, enable_gqa):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[0]

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", flash)
    with torch.device("meta"), Memory() as memory:
        model = GPT(GPTConfig.from_depth(12, V, T)).train()
        model.compute_dtype = torch.bfloat16
        optimizers = build_optimizers(model)
        idx = torch.zeros(B, T, dtype=torch.int64)
        for _ in range(2):
            model(idx, targets=idx).backward()
    assert memory.peak == pytest.approx(dial.training_bytes(model, optimizers, B, 1, "cuda", number=2), rel=0.1)
    assert memory.largest <= B * T * V / 8


RANK = """
import sys, torch
from pretend_gpu import GPU, gpu
from unittest import mock
from nanochat.common import setup
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizers
from nanochat.trainer import Batch, next_token_loss, train_step
from models import random_model

def alone(*arguments, **_):
    started("gloo")

started = torch.distributed.init_process_group
ids = torch.randint(400, (4, 17), generator=torch.Generator().manual_seed(0))

def losses(model, dist):
    model.train()
    mine = ids.chunk(dist.world_size)[dist.rank].to(dist.device)
    optimizers, batch = build_optimizers(model, dist, 0.2), Batch(mine[:, :-1], mine[:, 1:])
    step = lambda: train_step(model, optimizers, [batch], next_token_loss, dist, 1.0, 0.5)
    return [step() for _ in range(3)] + [sum(len(o.state_dict()) for o in optimizers)]

model = random_model(GPTConfig(400, 64, n_layer=3, n_head=2, n_kv_head=2, n_embd=32))
with gpu(), mock.patch.object(torch.distributed, "init_process_group", alone), setup("cuda") as dist:
    assert dist.device.type == "cuda"
    print(*losses(model.to(GPU), dist))
"""


def test_two_ranks_share_the_work_as_on_gpus():
    ranks = run_two_ranks("import sys; sys.path.insert(0, 'tests')" + RANK)
    assert all(code == 0 for code, _, _ in ranks), ranks[0][2][-2000:]
    model = random_model(GPTConfig(400, 64, n_layer=3, n_head=2, n_kv_head=2, n_embd=32)).train()
    ids, optimizers = torch.randint(400, (4, 17), generator=torch.Generator().manual_seed(0)), None
    optimizers, batch = build_optimizers(model, lr_scale=0.2), Batch(ids[:, :-1], ids[:, 1:])
    expected = [train_step(model, optimizers, [batch], next_token_loss, Dist(), 1.0, 0.5) for _ in range(3)]
    for _, out, _ in ranks:
        assert [float(x) for x in out.split()[:3]] == pytest.approx(expected, rel=1e-3)
