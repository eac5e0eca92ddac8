"""Exported folders: the same logits, ids, masks, stops and answers, in transformers and in plain PyTorch."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model

from nanochat import checkpoint_manager, report
from nanochat.engine import Engine, Sampling
from nanochat.export import SOURCES
from nanochat.exported import nanochat_model
from nanochat.tokenizer import SPECIAL_TOKENS
from nanochat.trainer import State
from scripts import export

transformers = pytest.importorskip("transformers", reason="pip install transformers")
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def save(model, tokenizer, stage="sft"):
    folder = checkpoint_manager.folder_of(stage, "tiny")
    return checkpoint_manager.save(folder, model, tokenizer, stage=stage, state=State(step=7, tokens=1234), settings={})


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model, tiny_tokenizer):
    """The tiny model as a folder for transformers."""
    root = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(root / "base"))
        save(tiny_model, tiny_tokenizer)
        export.main(export.Config(to="hf", out=root / "hf"))
    return root / "hf"


@pytest.fixture(scope="module")
def hf_model(exported):
    return transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def hf_tokenizer(exported):
    return transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)


def tokens(model, rows, length, seed=1):
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 64])
@torch.no_grad()
def test_logits_are_ours(exported, hf_model, tiny_model, length):
    ids = tokens(tiny_model, 3, length)
    expected = tiny_model(ids)
    torch.testing.assert_close(nanochat_model.load(exported)(ids), expected, **TOLERANCE)
    for implementation in ("eager", "sdpa"):
        hf_model.set_attn_implementation(implementation)
        torch.testing.assert_close(hf_model(ids).logits, expected, **TOLERANCE)


@torch.no_grad()
def test_logits_are_ours_before_training(tiny_config, tiny_tokenizer, tmp_path):
    """Rows that the tokenizer has no id for are left out; windows are kept to."""
    config = replace(tiny_config, vocab_size=tiny_config.vocab_size + 24, n_layer=3, n_kv_head=4, window=7)
    model = random_model(config, seed=3)
    save(model, tiny_tokenizer, "base")
    export.main(export.Config(source="base", out=tmp_path / "hf"))
    ids = tokens(model, 2, 30) % tiny_config.vocab_size
    expected = model(ids)[..., : tiny_config.vocab_size]
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    torch.testing.assert_close(hf(ids).logits, expected, **TOLERANCE)
    torch.testing.assert_close(nanochat_model.load(tmp_path / "hf")(ids), expected, **TOLERANCE)
    assert not (tmp_path / "hf" / "chat_template.jinja").exists()


@torch.no_grad()
def test_a_cache_changes_nothing(exported, hf_model, tiny_model):
    ids = tokens(tiny_model, 2, 40)
    expected = tiny_model(ids)
    plain, cache, past = nanochat_model.load(exported), {}, None
    for part in ids.split((20, 1, 1, 18), dim=1):
        seen = cache["ids"].size(1) if cache else 0
        wanted = expected[:, seen : seen + part.size(1)]
        torch.testing.assert_close(plain(part, cache), wanted, **TOLERANCE)
        output = hf_model(part, past_key_values=past, use_cache=True)
        past = output.past_key_values
        torch.testing.assert_close(output.logits, wanted, **TOLERANCE)


@torch.no_grad()
def test_windows_are_kept_to(exported, tiny_model, tmp_path):
    """Layers that see a part of what was, in both forms: a token that nothing sees any more changes nothing."""
    folder = shutil.copytree(exported, tmp_path / "narrow")
    config = json.loads((folder / "config.json").read_text()) | {"windows": [6, 5]}
    (folder / "config.json").write_text(json.dumps(config))
    plain = nanochat_model.load(folder)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = tokens(tiny_model, 2, 40)
    logits = plain(ids)
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 1) % tiny_model.config.vocab_size
    same = (plain(other) == logits).all(dim=-1)
    assert not same[:, 5:15].any() and same[:, 16:].all()  # 6 - 1 and 5 - 1 tokens further, and smear's one
    for implementation in ("eager", "sdpa"):
        hf.set_attn_implementation(implementation)
        torch.testing.assert_close(hf(ids).logits, logits, **TOLERANCE)
    first = hf(ids[:, :20], use_cache=True)
    torch.testing.assert_close(
        hf(ids[:, 20:], past_key_values=first.past_key_values).logits, logits[:, 20:], **TOLERANCE
    )
    inputs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5}
    static = hf.generate(ids, cache_implementation="static", disable_compile=True, **inputs)
    assert torch.equal(static, hf.generate(ids, use_cache=False, **inputs))


@torch.no_grad()
def test_padding_changes_nothing(hf_model, tiny_model):
    """A short row beside a long one, filled up on the left as for generate(), or on the right as for training."""
    long, short = tokens(tiny_model, 1, 30), tokens(tiny_model, 1, 11, seed=2)
    padding = torch.full((1, 19), 5)
    for side, row in (("left", (padding, short)), ("right", (short, padding))):
        mask = torch.ones(2, 30, dtype=torch.long)
        mask[1, slice(0, 19) if side == "left" else slice(11, 30)] = 0
        logits = hf_model(torch.cat((long, torch.cat(row, dim=1))), attention_mask=mask).logits
        torch.testing.assert_close(logits[:1], tiny_model(long), **TOLERANCE)
        torch.testing.assert_close(logits[1:][mask[1:] > 0], tiny_model(short)[0], **TOLERANCE)


def test_greedy_answers_and_their_end_are_ours(exported, hf_model, hf_tokenizer, tiny_model, tiny_tokenizer):
    """Prompts of several lengths in one batch; some answers stop, some are as long as they may be."""
    texts = ["Hi", "Why is the sky blue?", "x" * 25, "¿Qué?", "1 + 1", "a b c", "你好", "Go on."]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    prompts = [tiny_tokenizer.render_for_completion({"messages": messages}).tolist() for messages in conversations]
    model = copy.deepcopy(tiny_model)
    answers = Engine(model, tiny_tokenizer).generate(prompts, Sampling(max_tokens=24, temperature=0, tools=False))
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}, "choose other texts"

    inputs = hf_tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    plain = nanochat_model.load(exported)
    stop = hf_model.generation_config.eos_token_id
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
        output = hf_model.generate(**inputs, max_new_tokens=24, **options)
        for row, answer in zip(output[:, inputs["input_ids"].size(1) :].tolist(), answers):
            assert row[: len(answer.ids)] == answer.ids
            assert set(row[len(answer.ids) :]) <= {hf_tokenizer.pad_token_id}
    for prompt, answer in zip(prompts, answers):
        told = list(nanochat_model.generate(plain, prompt, 24, temperature=0, stop=stop))
        assert told == answer.ids[: len(told)] and (len(told) == 24 or answer.ids[len(told)] in stop)


def test_beams_take_their_last_token_along(hf_model, tiny_model):
    ids = tokens(tiny_model, 2, 9)
    options = {"num_beams": 4, "max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(hf_model.generate(ids, **options), hf_model.generate(ids, use_cache=False, **options))


def test_loss_and_gradient_are_ours(hf_model, tiny_model):
    hf, ours = copy.deepcopy(hf_model), copy.deepcopy(tiny_model)
    ids = tokens(ours, 2, 20)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    targets = torch.full_like(ids, -1)
    targets[:, :-1] = labels[:, 1:].clamp(min=-1)
    loss = hf(ids, labels=labels).loss
    mean = ours(ids, targets=targets) / (targets >= 0).sum()
    loss.backward(), mean.backward()
    torch.testing.assert_close(loss, mean, **TOLERANCE)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(hf.model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5)


PIECES = st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<|bo", "s|>", " ", "\n", "é", "你好", "🙂", "don't", "12345"])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_ids_of_a_text_are_ours(hf_tokenizer, tiny_tokenizer, text):
    text = text.encode("utf-8", errors="ignore").decode()  # halves of surrogate pairs are no text for transformers
    expected = tiny_tokenizer.encode(text).tolist()
    assert hf_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
    if not any(name in text for name in SPECIAL_TOKENS):
        assert hf_tokenizer(text)["input_ids"] == [tiny_tokenizer.bos_id, *expected]
    assert hf_tokenizer.decode(expected) == tiny_tokenizer.decode(expected)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_chats_are_rendered_as_ours(hf_tokenizer, tiny_tokenizer, texts):
    texts = [text.encode("utf-8", errors="ignore").decode() or "?" for text in texts]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if len(texts) > 1 and len(texts[0]) % 2:
        messages = [{"role": "system", "content": texts[0]}] + [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[1:])
        ]
    ids = hf_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    expected, _ = tiny_tokenizer.render_conversation({"messages": messages})
    special = set(tiny_tokenizer.special.values())
    assert [id for id in ids if id in special] == [id for id in expected if id in special], "text became special"
    if not any(name in str(message["content"]) for message in messages for name in SPECIAL_TOKENS):
        assert ids == expected.tolist()
    else:
        assert hf_tokenizer.decode(ids).replace("\u2060", "") == tiny_tokenizer.decode(expected).replace("\u2060", "")


def test_tool_parts_and_the_mask_are_ours(hf_tokenizer, tiny_tokenizer):
    parts = [("text", "It is "), ("python", "2*3"), ("python_output", "6"), ("text", "6.")]
    answer = [{"type": kind, "text": text} for kind, text in parts]
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 times 3?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Gladly."},
    ]
    ids, mask = tiny_tokenizer.render_conversation({"messages": messages})
    theirs = hf_tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert theirs["input_ids"] == ids.tolist()
    np.testing.assert_array_equal(np.array(theirs["assistant_masks"], bool), mask)
    prompt = hf_tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == tiny_tokenizer.render_for_completion({"messages": messages}).tolist()


@pytest.mark.parametrize(
    "messages, problem",
    [
        ([{"role": "assistant", "content": "Hi"}], "must be user"),
        ([{"role": "user", "content": "Hi"}, {"role": "user", "content": "there"}], "must be assistant"),
        ([{"role": "system", "content": "Hi"}], "must be a user message"),
    ],
)
def test_malformed_chats_are_refused(hf_tokenizer, messages, problem):
    with pytest.raises(Exception, match=problem):
        hf_tokenizer.apply_chat_template(messages)


def test_the_plain_file_talks_by_itself(tiny_model, tiny_tokenizer, tmp_path):
    save(tiny_model, tiny_tokenizer)
    export.main(export.Config(to="torch", out=tmp_path / "torch"))
    assert {path.name for path in (tmp_path / "torch").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "nanochat_model.py", "tokenizer.json"
    }  # fmt: skip
    prompt = tiny_tokenizer.render_for_completion({"messages": [{"role": "user", "content": "<|bos|>?"}]}).tolist()
    engine = Engine(copy.deepcopy(tiny_model), tiny_tokenizer)
    (answer,) = engine.generate([prompt], Sampling(max_tokens=20, temperature=0, tools=False))
    command = [sys.executable, "-I", "nanochat_model.py", "<|bos|>?", "--max_tokens=20"]  # -I: nothing of ours in reach
    told = subprocess.run(command, cwd=tmp_path / "torch", capture_output=True, text=True, check=True).stdout
    ids = [id for id in answer.ids if id not in (tiny_tokenizer.special["<|assistant_end|>"], tiny_tokenizer.bos_id)]
    assert told == tiny_tokenizer.decode(ids) + "\n"


def test_the_files_are_short_enough_to_be_read_and_ported():
    assert len((SOURCES / "nanochat_model.py").read_text().splitlines()) < 200
    assert len((SOURCES / "modeling_nanochat.py").read_text().splitlines()) < 300
    for path in SOURCES.glob("*.py"):
        assert "import nanochat" not in path.read_text() and "from nanochat" not in path.read_text()


def test_the_card_tells_what_was_measured_of_this_checkpoint(tiny_model, tiny_tokenizer, tmp_path):
    path = save(tiny_model, tiny_tokenizer)
    score = {"name": "Spelling", "correct": 3, "total": 4, "accuracy": 0.75, "low": 0.3, "high": 0.95, "chance": 0.0}
    for name, checkpoint, task in (("chat_eval_sft", path, "Spelling"), ("chat_eval_rl", "elsewhere", "Topic")):
        section = {"settings": {"checkpoint": str(checkpoint)}, "metrics": {"ChatCORE": 0.5}}
        report.write_section(name, section | {"scores": [score | {"name": task}]})
    export.main(export.Config(out=tmp_path / "hf"))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| Spelling | 4 | 75.0% | 30.0 to 95.0 | 0.0% |" in card and "Topic" not in card
    assert "- ChatCORE: 0.5000" in card and "1,234 tokens" in card
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == [
        tiny_tokenizer.special["<|assistant_end|>"], tiny_tokenizer.bos_id
    ]  # fmt: skip


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    save(tiny_model, tiny_tokenizer)
    with pytest.raises(SystemExit, match="llama.cpp has no architecture"):
        export.main(export.Config(to="gguf", out=tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        export.main(export.Config(out=tmp_path / "mine"))
    monkeypatch.setattr("nanochat.export.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export.main(export.Config(out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "nanochat"] == ["mine"]
