"""Chat evaluation: counts, intervals, verdicts against slow or planted references; the scripts on one and two ranks."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import random_model

from nanochat import checkpoint_manager, core_eval, corpus, dataset
from nanochat.chat_eval import chat_core, cut_prompt, evaluate, flatten, last_logits, pass_at_k
from nanochat.common import Dist
from nanochat.configurator import parse
from nanochat.contamination import RUN, WORD, Overlap, find_overlap
from nanochat.engine import Completion, Engine
from nanochat.gpt import GPTConfig
from nanochat.score import Score, wilson
from nanochat.trainer import State
from scripts import base_eval, chat_eval
from tasks.common import Task, exchange, generator, reference_text
from tasks.published import ask


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    """A tiny GPT with every weight drawn, with room for the questions below."""
    return random_model(GPTConfig(tiny_tokenizer.vocab_size, 256, 2, 2, 1, n_embd=32), noise=0.3, seed=1)


class Quiz(Task):
    """Multiple choice of three to five, with questions of uneven lengths."""

    name, kind, chance = "Quiz", "categorical", 0.26

    def __init__(self, size: int = 40):
        super().__init__("test")
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draw = generator("Quiz", index)
        choices = [f"{draw.integers(1000)}{letter}" for letter in "vwxyz"][: 3 + index % 3]
        return ask("Why? " * int(draw.integers(1, 6)) + str(index), choices, int(draw.integers(len(choices))))


class Echo(Task):
    """Say the number, or anything that has one of its digits."""

    name, kind = "Echo", "generative"

    def __init__(self, size: int = 12):
        super().__init__("test")
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"messages": exchange(f"Say {index * 37}.", f"{index * 37}")}

    def grade(self, conversation, completion):
        return bool(set(completion.text) & set(reference_text(conversation)))


class Half(Dist):
    """One of two ranks, alone: what it would add to the sum."""

    def all_reduce(self, tensor, op="sum"):
        return tensor

    def gather_objects(self, value):
        return [value]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("correct, total", [(0, 7), (7, 7), (3, 10), (1, 164), (700, 1319), (14000, 14042)])
def test_wilson_is_where_the_normal_test_would_reject(correct, total):
    low, high = wilson(correct, total)
    share = correct / total
    for edge in (low, high):  # |share - p| = 1.96 standard errors of p
        assert abs(share - edge) == pytest.approx(1.96 * (edge * (1 - edge) / total) ** 0.5, abs=1e-9)
    assert 0 <= low <= share <= high <= 1


def test_scores_centre_on_chance():
    assert Score("a", 25, 100, 0.25).centered == 0 and Score("a", 100, 100, 0.25).centered == 1
    assert Score("a", 0, 100, 0.5).centered == -1
    assert chat_core([Score("a", 25, 100, 0.25), Score("b", 10, 20, 0.0)]) == 0.25
    assert wilson(0, 0) == (0, 1) and Score("a", 0, 0, 0.0).accuracy == 0
    assert set(Score("a", 1, 2, 0.5).summary()) == {"name", "correct", "total", "accuracy", "low", "high", "chance"}


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    for samples, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct <= samples and k <= samples:
            draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


# ---------------------------------------------------------------------------------------------------------------------
# Categorical tasks


def test_letters_are_read_as_if_each_question_stood_alone(model, tiny_tokenizer):
    task, right = Quiz(), []
    with torch.inference_mode():
        for conversation in map(task.__getitem__, range(len(task))):
            ids = tiny_tokenizer.render_for_completion(conversation)
            logits = model(torch.from_numpy(ids.astype(np.int64))[None])[0, -1]
            by_letter = {letter: logits[int(tiny_tokenizer.encode(letter)[0])] for letter in conversation["letters"]}
            right.append(max(by_letter, key=by_letter.get) == reference_text(conversation))
    score = evaluate(Engine(model, tiny_tokenizer), tiny_tokenizer, task)
    assert score.verdicts == right and score.correct == sum(right) and (score.total, score.cut) == (40, 0)
    assert 0 < sum(right) < 40
    assert len(score.items) == 10 and [item["correct"] for item in score.items] == right[:10]
    assert score.items[3]["prompt"] == task[3]["messages"][0]["content"]
    assert score.items[3]["reference"] == reference_text(task[3])

    parts = [evaluate(Engine(model, tiny_tokenizer), tiny_tokenizer, task, dist=Half(rank, 0, 2)) for rank in (0, 1)]
    assert [a or b for a, b in zip(parts[0].verdicts, parts[1].verdicts)] == right
    assert parts[0].correct + parts[1].correct == sum(right)
    assert evaluate(Engine(model, tiny_tokenizer), tiny_tokenizer, task, max_items=7).verdicts == right[:7]


def test_padding_changes_no_logits(model):
    prompts = [np.arange(1, 1 + length) for length in (3, 40, 17)]
    together = last_logits(model, prompts, torch.device("cpu"))
    for prompt, row in zip(prompts, together):
        torch.testing.assert_close(last_logits(model, [prompt], torch.device("cpu"))[0], row, atol=1e-4, rtol=1e-5)


def test_long_questions_are_cut_and_counted(tiny_model, tiny_tokenizer):
    score = evaluate(Engine(tiny_model, tiny_tokenizer), tiny_tokenizer, Quiz())
    lengths = [len(tiny_tokenizer.render_for_completion(Quiz()[i])) for i in range(40)]
    assert score.cut == sum(length > 64 for length in lengths) > 0
    ids, cut = cut_prompt(np.arange(10), 6)
    assert ids.tolist() == [0, 1, 6, 7, 8, 9] and cut
    assert cut_prompt(np.arange(6), 6)[1] is False


def test_letters_of_several_tokens_are_refused(model, tiny_tokenizer):
    class Words(Quiz):
        def __getitem__(self, index):
            return {"messages": exchange("Which?", "maybe not"), "letters": ["maybe not", "perhaps"]}

    with pytest.raises(ValueError, match="'maybe not' must be one token"):
        evaluate(Engine(model, tiny_tokenizer), tiny_tokenizer, Words(1))


class Oracle(torch.nn.Module):
    """Prefers, after each question, the letter that it was told."""

    def __init__(self, tokenizer, task, sign):
        super().__init__()
        self.config, self.anchor, self.sign = (
            GPTConfig(tokenizer.vocab_size, 256, 1, 1, 1, 4),
            torch.nn.Parameter(torch.zeros(1)),
            sign,
        )
        conversations = [task[i] for i in range(len(task))]
        self.known = {
            tuple(tokenizer.render_for_completion(c).tolist()): int(tokenizer.encode(reference_text(c))[0])
            for c in conversations
        }

    def forward(self, idx, at):
        logits = torch.zeros(len(idx), self.config.vocab_size)
        for row, ids, last in zip(logits, idx.tolist(), at.tolist()):
            row[self.known[tuple(ids[: last + 1])]] = self.sign
        return logits


def test_planted_models_get_all_and_nothing(tiny_tokenizer):
    task = Quiz()
    for sign, correct in ((1.0, 40), (-1.0, 0)):
        engine = SimpleNamespace(model=Oracle(tiny_tokenizer, task, sign))
        assert evaluate(engine, tiny_tokenizer, task).correct == correct


# ---------------------------------------------------------------------------------------------------------------------
# Generative tasks


def test_answers_do_not_depend_on_batches_or_ranks(model, tiny_tokenizer):
    runs = []
    for batch, slots in ((1, 1), (64, 5)):
        engine = Engine(model, tiny_tokenizer, max_batch=slots)
        for settings in ({}, {"temperature": 1.0, "num_samples": 3, "seed": 5}):
            score = evaluate(engine, tiny_tokenizer, Echo(), batch=batch, max_tokens=8, **settings)
            parts = [
                evaluate(engine, tiny_tokenizer, Echo(), batch=batch, max_tokens=8, dist=Half(rank, 0, 2), **settings)
                for rank in (0, 1)
            ]
            assert score.verdicts == [a or b for a, b in zip(parts[0].verdicts, parts[1].verdicts)]
            runs.append((score.verdicts, score.items, score.pass_at))
    assert runs[:2] == runs[2:]
    assert list(runs[1][2]) == [1, 2] and 0 <= runs[1][2][1] <= runs[1][2][2] <= sum(runs[1][0]) / 12 <= 1


class Parrot:
    """An engine whose k-th answer to each prompt is right or not, as told."""

    def __init__(self, model, tokenizer, task, right):
        self.model = model
        self.answers = {}
        for i in range(len(task)):
            prompt = tuple(tokenizer.render_for_completion(task[i]).tolist())
            self.answers[prompt] = itertools.cycle([reference_text(task[i]) if r else "-" for r in right(i)])

    def generate(self, prompts, sampling):
        assert len(prompts) == len(sampling) and all(len(p) + s.max_tokens <= 256 for p, s in zip(prompts, sampling))
        texts = [next(self.answers[tuple(prompt)]) for prompt in prompts]
        return [Completion([1], [True], text, [{"type": "text", "text": text}], "stop", None, 1, 0) for text in texts]


def test_one_right_answer_of_several_is_enough(model, tiny_tokenizer):
    right = lambda i: [i >= 3, i >= 6, i >= 9, i >= 12]  # noqa: E731
    task = Echo(12)
    score = evaluate(
        Parrot(model, tiny_tokenizer, task, right), tiny_tokenizer, task, num_samples=4, temperature=1.0, batch=5
    )
    assert score.correct == 9 and score.verdicts == [i >= 3 for i in range(12)]
    assert score.pass_at == {
        1: pytest.approx((3 + 6 + 9) / 48),
        2: pytest.approx((3 * 0.5 + 3 * (1 - 1 / 6) + 3) / 12),
        4: 0.75,
    }
    assert evaluate(Parrot(model, tiny_tokenizer, task, lambda i: [True]), tiny_tokenizer, task).correct == 12
    assert evaluate(Parrot(model, tiny_tokenizer, task, lambda i: [False]), tiny_tokenizer, task).correct == 0
    with pytest.raises(ValueError, match="temperature"):
        evaluate(None, tiny_tokenizer, task, num_samples=2)


def test_long_prompts_leave_room_for_an_answer(tiny_model, tiny_tokenizer):
    class Long(Echo):
        def __getitem__(self, index):
            return {"messages": exchange("word " * 100 * index + "?", "7")}

    score = evaluate(Engine(tiny_model, tiny_tokenizer), tiny_tokenizer, Long(3), max_tokens=512)
    assert (score.total, score.cut) == (3, 2)


def test_a_transcript_shows_tool_calls_between_their_tokens():
    parts = [{"type": "text", "text": "a "}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    assert flatten(parts) == "a <|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"
    assert flatten("a") == "a"


# ---------------------------------------------------------------------------------------------------------------------
# Contamination


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_overlap_equals_a_search_of_all_runs():
    rng = np.random.default_rng(0)
    vocabulary = ["the", "cat", "sat", "on", "a", "mat", "Zürich", "x9"]
    for run in (1, 2, 5):
        items = [" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(40)]
        documents = [" ".join(rng.choice([*vocabulary, "unheard"], rng.integers(0, 40))) for _ in range(6)]
        seen = set().union(*(runs(document, run) for document in documents))
        overlap = Overlap(items, run)
        for document in documents:
            overlap.read(document)
        assert overlap.found.tolist() == [bool(runs(item, run) & seen) for item in items]
        assert overlap.checkable.tolist() == [len(WORD.findall(item)) >= run for item in items]


def test_planted_test_items_are_found_in_a_dataset():
    words = [f"w{i}" for i in range(200)]
    item = " ".join(words[:RUN]) + "?"
    planted = "Before. " + ", ".join(words[:RUN]).upper() + " After."  # other case and marks, the same words
    broken = " ".join([*words[: RUN - 1], "other"])
    texts = [(str(i), " ".join(np.random.default_rng(i).choice(words, 50))) for i in range(60)]
    # Whichever of them are held out for validation: enough copies that some are in the training part.
    texts += [(f"p{i}", f"{planted} {i}") for i in range(30)] + [(f"b{i}", f"{broken} {i}") for i in range(30)]
    dataset.prepare("mine", texts, "test", "fingerprint")
    [(found, checkable), (none, zero)] = find_overlap([[item, " ".join(words[50:80])], ["too short"]], "mine")
    assert found.tolist() == [True, False] and checkable == 2 and none.tolist() == [False] and zero == 0


# ---------------------------------------------------------------------------------------------------------------------
# The scripts


@pytest.fixture
def workshop(base_dir, tiny_tokenizer, model, monkeypatch):
    """A base and an SFT checkpoint, and small evaluation sets."""
    for stage in ("base", "sft"):
        checkpoint_manager.save(
            checkpoint_manager.folder_of(stage, "tiny"),
            model,
            tiny_tokenizer,
            stage=stage,
            state=State(),
            settings={"data": "mine"},
        )
    core = base_dir / "evals" / "core"
    core.mkdir(parents=True)
    write = lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    write(core / "copa.jsonl", [{"query": f"q{i}", "choices": ["yes", "no"], "gold": i % 2} for i in range(9)])
    write(core / "squad.jsonl", [{"context": f"c{i} ", "continuation": str(i)} for i in range(30)])
    (core / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncopa,50\nsquad,0\n")
    mmlu = [{"subject": "s", "question": f"{i}?", "choices": list("wxyz"), "answer": i % 4} for i in range(9)]
    write(base_dir / "evals" / "mmlu_test.jsonl", mmlu)
    gsm8k = [{"question": " ".join(f"word{i}x{j}" for j in range(20)), "answer": f"#### {i}"} for i in range(5)]
    write(base_dir / "evals" / "gsm8k_test.jsonl", gsm8k)
    texts = [(str(i), f"{gsm8k[i % 8]['question'] if i % 8 < 4 else 'Nothing.'} {i}") for i in range(40)]
    monkeypatch.setattr(corpus, "GROUP_DOCUMENTS", 3)  # so that the ranks have something to share
    dataset.prepare("mine", texts, "test", "fingerprint")
    return base_dir


COMMANDS = {
    "base_eval": (base_eval, ["--contamination", "mine"]),
    "chat_eval_sft": (chat_eval, ["-a", "MMLU", "GSM8K", "-m", "8", "--contamination", "mine"]),
}


@pytest.mark.parametrize("section", COMMANDS)
def test_two_ranks_report_what_one_does(workshop, section, capsys):
    script, arguments = COMMANDS[section]
    arguments = [*arguments, "--device=cpu"]
    read = lambda: json.loads((workshop / "report" / f"{section}.json").read_text())  # noqa: E731
    script.main(parse(script.Config, arguments))
    one, printed = read(), capsys.readouterr().out
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        script.__name__,
    ]
    environment = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    root = Path(__file__).parent.parent
    done = subprocess.run([*launch, "--", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = read()
    for key in ("scores", "metrics", "notes", "samples"):
        assert one.get(key) == two.get(key)
    for score in one["scores"]:
        assert f"{score['name']} " in printed and f"{score['name']} " in done.stdout
    if section == "base_eval":
        assert [(score["name"], score["total"]) for score in one["scores"]] == [("copa", 9), ("squad", 30)]
        assert list(one["metrics"]) == ["CORE of 2 tasks"] and "hellaswag" in one["notes"][0]
        assert [(score["seen"], score["checked"]) for score in one["scores"]] == [(0, 0), (0, 0)]
    else:
        shares = [[t for t in dataset.documents("mine", "train", rank, 2) if "x19" in t] for rank in (0, 1)]
        planted = [text for text in dataset.documents("mine", "train") if "x19" in text]
        assert all(shares) and sorted(shares[0] + shares[1]) == sorted(planted)
        assert [(score["name"], score["total"]) for score in one["scores"]] == [("MMLU", 9), ("GSM8K", 5)]
        assert [(score["seen"], score["checked"]) for score in one["scores"]] == [(0, 9), (4, 5)]
        assert one["scores"][1]["unseen_accuracy"] == 0 and "mine" in one["notes"][0]
        assert one["metrics"] == {} and one["samples"][0]["answer"] in list("ABCD")


def test_an_interrupted_evaluation_goes_on_behind_the_tasks_it_finished(workshop, monkeypatch):
    """It dies in the second task; --resume computes only that one, and a look of another size computes all."""
    asked, evaluate_task = [], core_eval.evaluate_task

    def evaluate(model, tokenizer, task, *rest):
        asked.append(task.name)
        if asked == ["copa", "squad"]:
            raise KeyboardInterrupt
        return evaluate_task(model, tokenizer, task, *rest)

    monkeypatch.setattr(core_eval, "evaluate_task", evaluate)
    run = lambda *arguments: base_eval.main(parse(base_eval.Config, ["--device=cpu", *arguments]))  # noqa: E731
    read = lambda: json.loads((workshop / "report" / "base_eval.json").read_text())["scores"]  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run()
    run("--resume")
    assert asked == ["copa", "squad", "squad"]
    resumed = read()
    run("--resume", "--max_items=4")
    assert asked[3:] == ["copa", "squad"] and [score["total"] for score in read()] == [4, 4]
    run()
    assert asked[5:] == ["copa", "squad"] and read() == resumed


def test_several_greedy_answers_are_refused(base_dir):
    with pytest.raises(SystemExit, match="temperature"):
        chat_eval.main(parse(chat_eval.Config, ["-n", "4"]))
