"""A Hugging Face model scored by CORE: the losses are those that transformers computes itself."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_core_eval import LM, MC, SCHEMA, make_rows

from nanochat import core_eval, hf_model
from scripts import base_eval

transformers = pytest.importorskip("transformers", reason="pip install transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with random weights and a BPE tokenizer, saved as transformers saves them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("hf")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [json.dumps(row) for kind in ("multiple_choice", "schema", "lm") for row in make_rows(kind)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", [MC, replace(SCHEMA, shots=2), LM], ids=lambda t: t.kind)
def test_losses_are_those_of_transformers(folder, task):
    model, tokenizer = hf_model.load(str(folder), torch.device("cpu"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    rows = make_rows(task.kind)
    items = core_eval.build_items(tokenizer, task, rows, range(len(rows)), model.config.sequence_len)
    seen = 0
    for index, losses, _ in core_eval.score_items(model, items, 600):
        prompts = core_eval.render_prompts(task, rows[index], core_eval.choose_shots(rows, index, task.shots))
        for text, start, ours in zip(prompts[-len(losses) :], items[index].starts, losses):
            ids = torch.tensor([[0, *words.encode(text, add_special_tokens=False)]])
            with torch.no_grad():
                nats = F.cross_entropy(reference(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            np.testing.assert_allclose(ours, nats[start - 1 :].numpy(), atol=1e-4)
            seen += 1
    assert seen == sum(len(item.tokens) for item in items)


def test_the_script_scores_a_folder(folder, base_dir):
    evals = base_dir / "evals"
    evals.mkdir(parents=True)
    rows = make_rows("multiple_choice", 20)
    random.Random(0).shuffle(rows)
    (evals / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (evals / core_eval.BASELINES).write_text("Eval Task,Random baseline\ncopa,50\n")
    base_eval.main(base_eval.Config(hf_path=str(folder), max_items=7, device="cpu"))
    section = json.loads((base_dir / "report" / "base_eval.json").read_text())
    assert section["settings"]["checkpoint"] == str(folder) and section["scores"][0]["total"] == 7
    with pytest.raises(SystemExit, match="no model that transformers can load"):
        hf_model.load(str(evals), torch.device("cpu"))
