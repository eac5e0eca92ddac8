"""What /training shows: samples of a model in training, and logs that are read while another process writes them."""

import copy
import json

import torch

from nanochat.common import MetricsLog
from nanochat.watch import QUESTIONS, TEXTS, list_runs, read_run, write_samples


def test_samples_go_on_with_texts_and_answer_questions(tiny_model, tiny_tokenizer):
    for stage, prompts in (("base", TEXTS), ("sft", QUESTIONS)):
        before = torch.get_rng_state()
        samples = write_samples(tiny_model, tiny_tokenizer, stage, max_tokens=9)
        assert [one["prompt"] for one in samples] == list(prompts) and any(one["text"] for one in samples)
        assert samples == write_samples(tiny_model, tiny_tokenizer, stage, max_tokens=9)
        assert torch.equal(before, torch.get_rng_state())  # training goes on as if nobody had asked


def test_a_sample_is_what_the_model_says_alone(tiny_model, tiny_tokenizer):
    """Rows of different lengths stand in one batch; greedily each is what a plain loop over that row alone gives."""
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([[tiny_tokenizer.bos_id, *tiny_tokenizer.encode(text).tolist()]])
        start = ids.size(1)
        for _ in range(8):
            ids = torch.cat((ids, tiny_model(ids)[:, -1:].argmax(-1)), dim=1)
        answer = ids[0, start:].tolist()
        ends = [i for i, id in enumerate(answer) if id in tiny_tokenizer.special.values()]
        expected = tiny_tokenizer.decode(answer[: ends[0]] if ends else answer)
        sample = write_samples(tiny_model, tiny_tokenizer, "base", max_tokens=8, temperature=1e-4)[row]["text"]
        assert sample == expected or ends and sample.startswith(expected)


def test_weights_that_are_not_numbers_stop_no_run(tiny_model, tiny_tokenizer):
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    assert len(write_samples(broken, tiny_tokenizer, "base", max_tokens=3)) == len(TEXTS)


def test_a_log_is_read_while_it_is_written(base_dir):
    assert list_runs() == [] and read_run("base-d4") is None
    path = base_dir / "logs" / "base-d4.jsonl"
    log = MetricsLog(path)
    log.log(1, loss=3.0)
    log.log(2, loss=float("nan"), samples=[{"prompt": "a", "text": "b"}])
    first = read_run("base-d4")
    assert [row["step"] for row in first["rows"]] == [1, 2] and first["fresh"] and first["rows"][1]["loss"] is None
    json.dumps(first, allow_nan=False)
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')  # a line that another process is just writing
    second = read_run("base-d4", first["after"], first["file"])
    assert second["rows"] == [] and not second["fresh"] and not second["more"]
    with open(path, "a") as file:
        file.write('ss": 1.0}\n')
    third = read_run("base-d4", second["after"], second["file"])
    assert third["rows"] == [{"step": 3, "loss": 1.0}] and not third["fresh"]
    MetricsLog(path, step=2).log(3, loss=2.0)  # a run that was resumed forgets what came after its checkpoint
    again = read_run("base-d4", third["after"], third["file"])
    assert again["fresh"] and [row["step"] for row in again["rows"]] == [1, 2, 3]


def test_a_long_log_comes_in_pieces(base_dir, monkeypatch):
    monkeypatch.setattr("nanochat.watch.READ_AT_ONCE", 200)
    log = MetricsLog(base_dir / "logs" / "sft-d4.jsonl")
    for step in range(1, 41):
        log.log(step, loss=1.0)
    steps, answer = [], {"after": 0, "file": 0, "more": True}
    while answer["more"]:
        answer = read_run("sft-d4", answer["after"], answer["file"])
        steps += [row["step"] for row in answer["rows"]]
    assert steps == list(range(1, 41))


def test_a_line_longer_than_what_is_read_at_once_holds_up_nothing(base_dir, monkeypatch):
    monkeypatch.setattr("nanochat.watch.READ_AT_ONCE", 200)
    log = MetricsLog(base_dir / "logs" / "sft-d4.jsonl")
    log.log(1, loss=2.0)
    log.log(2, samples=[{"prompt": "a", "text": "b" * 1000}])
    log.log(3, loss=1.0)
    steps, answer = [], {"after": 0, "file": 0, "more": True}
    while answer["more"]:
        answer = read_run("sft-d4", answer["after"], answer["file"])
        steps += [row["step"] for row in answer["rows"]]
    assert steps == [1, 2, 3]


def test_names_are_names_and_not_paths(base_dir):
    MetricsLog(base_dir / "logs" / "mid-my-model.jsonl").log(1, loss=1.0)
    (base_dir / "secret.jsonl").write_text("{}\n")
    run = list_runs()[0]
    assert (run["name"], run["stage"], run["tag"]) == ("mid-my-model", "mid", "my-model") and run["quiet_for"] < 60
    for name in ("../secret", "secret", "", ".", "/etc/passwd", "mid-my-model.jsonl"):
        assert read_run(name) is None
