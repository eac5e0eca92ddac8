"""CORE's log-likelihoods beside those of EleutherAI's lm-eval, for one Hugging Face model with random weights.

In: the folder of the published CORE files. Out: the largest difference of each task, over every candidate compared.
Needs `pip install lm-eval transformers accelerate` (600 MB with what they pull in, so it is no part of the tests).

    python dev/bench/core_agreement.py --evals ~/.cache/nanochat/evals --items 20
"""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat import core_eval, hf_model
from nanochat.configurator import launch
from nanochat.files import read_jsonl


@dataclass(frozen=True)
class Config:
    """CORE's log-likelihoods beside those of EleutherAI's lm-eval."""

    evals: Path
    """folder of the evaluation sets"""
    items: int = 20
    """of each task"""
    sequence_len: int = 2048
    """of the model's context"""


def make_model(folder: Path, texts: list[str], sequence_len: int) -> None:
    """A tiny Llama and a BPE tokenizer, saved to a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=sequence_len, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def split_prompts(task, row, prompts: list[str]) -> list[tuple[str, str]]:
    """(context, continuation) of each candidate, as lm-eval wants them."""
    if task.kind == "language_modeling":
        return [(prompts[0], prompts[1][len(prompts[0]) :])]
    tails = [task.delimiter + tail for tail in row.get("choices", [row.get("continuation")] * len(prompts))]
    contexts = [prompt.removesuffix(tail).rstrip() for prompt, tail in zip(prompts, tails)]  # lm-eval strips it, too
    return [(context, prompt[len(context) :]) for context, prompt in zip(contexts, prompts)]


def compare(ours: list, theirs: list, same_start: bool) -> float:
    """Largest difference of an item's log-likelihoods; of their differences, where CORE leaves out what is shared."""
    ours = [-loss.sum() for loss in ours]
    if not same_start:
        ours, theirs = [x - ours[0] for x in ours], [x - theirs[0] for x in theirs]
    return max(abs(a - b) for a, b in zip(ours, theirs))


def main(cfg: Config) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    rows_of = {}
    for task in core_eval.CORE_TASKS:
        if path := core_eval.find_file(cfg.evals, task.file):
            rows_of[task] = read_jsonl(path)
            random.Random(1337).shuffle(rows_of[task])
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), [str(row) for rows in rows_of.values() for row in rows[:200]], cfg.sequence_len)
        model, tokenizer = hf_model.load(folder, torch.device("cpu"))
        reference = HFLM(model.model, tokenizer=tokenizer.tokenizer, batch_size=4, add_bos_token=True, backend="causal")
    print(f"{'task':<34}{'items':>6}{'candidates':>12}{'too long':>10}{'largest difference':>20}{'greedy agrees':>15}")
    for task, rows in rows_of.items():
        items = core_eval.build_items(tokenizer, task, rows, range(min(cfg.items, len(rows))), cfg.sequence_len)
        found = {index: (losses, hits) for index, losses, hits in core_eval.score_items(model, items, 4096)}
        worst, candidates, agree, cut = 0.0, 0, True, sum(item.cut for item in items)
        for index, item in enumerate(items):
            if item.cut:  # the two shorten a prompt in other ways
                continue
            prompts = core_eval.render_prompts(task, rows[index], core_eval.choose_shots(rows, index, task.shots))
            pairs = split_prompts(task, rows[index], prompts)
            requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
            theirs = reference.loglikelihood(requests, disable_tqdm=True)
            starts = [1 + len(ids) for ids in tokenizer.encode_batch([context for context, _ in pairs])]
            same_start = starts == item.starts
            if task.kind == "schema" and not same_start:  # the options end alike: CORE scores this, too
                continue
            worst = max(worst, compare(found[index][0], [ll for ll, _ in theirs], same_start))
            candidates += len(pairs)
            if task.kind == "language_modeling":
                agree &= theirs[0][1] == bool(found[index][1][0].all())
        greedy = str(agree) if task.kind == "language_modeling" else ""
        print(f"{task.name:<34}{len(items):>6}{candidates:>12}{cut:>10}{worst:>20.2e}{greedy:>15}", flush=True)


if __name__ == "__main__":
    launch(main, Config)
