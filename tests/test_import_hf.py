"""A published nanochat model, made in transformers' own class, becomes a checkpoint with the same logits and ids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model

from nanochat import bpe_chunks, checkpoint_manager, import_hf
from nanochat.chat_eval import evaluate
from nanochat.common import Dist
from nanochat.engine import Engine, Sampling
from nanochat.gpt import GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS
from scripts import import_hf as script
from tasks.spelling import Spelling

transformers = pytest.importorskip("transformers", reason="pip install transformers")


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_tokenizer):
    """Random weights, two queries to a key, ids that no token has; the tokenizer made by transformers' converter."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    folder = tmp_path_factory.mktemp("published")
    tiny_tokenizer.save_tiktoken(folder / "tiktoken")
    converter = TikTokenConverter(str(folder / "tiktoken"), bpe_chunks.PATTERN, extra_special_tokens=SPECIAL_TOKENS)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=converter.converted(), bos_token="<|bos|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.NanoChatConfig(
        vocab_size=tiny_tokenizer.vocab_size + 7, hidden_size=48, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0},
    )  # fmt: skip
    transformers.NanoChatForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(published):
    return import_hf.load(str(published))


@pytest.fixture(scope="module")
def their_tokenizer(published):
    return transformers.AutoTokenizer.from_pretrained(published)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 128])
def test_logits_are_theirs(published, imported, length):
    theirs = transformers.NanoChatForCausalLM.from_pretrained(published)
    ids = torch.randint(theirs.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert expected.std() > 1, "the weights should make a difference"
    torch.testing.assert_close(imported[0](ids), expected, rtol=0, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_ids_are_theirs(their_tokenizer, imported, tiny_tokenizer, text):
    ours = imported[1]
    assert ours.hash == tiny_tokenizer.hash
    text = text.encode("utf-8", errors="ignore").decode()
    assert their_tokenizer.encode(text, add_special_tokens=False) == ours.encode(text).tolist()


def test_the_script_makes_a_checkpoint_that_talks_and_is_evaluated(published, capsys):
    script.main(script.Config(str(published), model_tag="tiny"))
    assert "-i sft -g tiny" in capsys.readouterr().out
    loaded = checkpoint_manager.load("sft", "tiny")
    prompt = loaded.tokenizer.render_for_completion({"messages": [{"role": "user", "content": "Hi"}]}).tolist()
    (answer,) = Engine(loaded.model, loaded.tokenizer).generate([prompt], Sampling(max_tokens=12, temperature=0))
    theirs = transformers.NanoChatForCausalLM.from_pretrained(published)
    bias = torch.zeros(theirs.config.vocab_size)
    bias[loaded.tokenizer.vocab_size :] = -torch.inf  # ids that are no token
    ids = list(prompt)
    with torch.no_grad():
        for id in answer.ids:
            assert id == (theirs(torch.tensor([ids])).logits[0, -1] + bias).argmax()
            ids.append(id)
    score = evaluate(
        Engine(loaded.model, loaded.tokenizer), loaded.tokenizer, Spelling("test"), max_items=2, dist=Dist()
    )
    assert score.total == 2
    with pytest.raises(SystemExit, match="Choose another --model_tag"):
        script.main(script.Config(str(published), model_tag="tiny"))


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"intermediate_size": 96}, "intermediate_size is 96"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "of type 'linear'"),
    ],
)
def test_what_cannot_be_expressed_is_named(published, change, problem):
    config = transformers.NanoChatConfig.from_pretrained(published)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=problem):
        import_hf.read_config(config)


def test_other_models_and_tokenizers_are_refused(published, tmp_path, tiny_tokenizer):
    with pytest.raises(SystemExit, match="cannot be imported"):
        import_hf.load(str(tmp_path))
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="it is a llama"):
        import_hf.load(str(tmp_path))
    value = tiny_tokenizer.to_json()
    assert import_hf.read_tokenizer(value).hash == tiny_tokenizer.hash
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    with pytest.raises(ValueError, match="does not cut text by the pattern"):
        import_hf.read_tokenizer(value)


def test_compiled_and_plain_forward_agree_without_value_embeddings(tiny_tokenizer):
    """The switches that import uses, in both forwards; greedy answers of an engine tell them apart."""
    config = GPTConfig(tiny_tokenizer.vocab_size, 64, 2, 4, 2, 32, attention_sharpness=2.0, value_embeddings=False)
    model = random_model(config, noise=0.2)
    assert not model.value_embeddings
    prompt = tiny_tokenizer.encode("The sky is blue.").tolist()
    sampling = Sampling(max_tokens=8, temperature=0, logprobs=0)
    (answer,) = Engine(model, tiny_tokenizer).generate([prompt], sampling)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([token.logprob for token in answer.logprobs]), expected, rtol=0, atol=1e-4)
