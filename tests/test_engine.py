"""The engine against a loop without a cache, and answers alone against answers in company."""

import copy
import dataclasses
import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from models import random_model
from serving import Scripted

from nanochat import engine as engine_module
from nanochat.answer import Answer
from nanochat.cpu_forward import CpuForward
from nanochat.engine import Completion, Delta, Engine, Sampling
from nanochat.gpt import GPT, GPTConfig
from nanochat.kvcache import TorchForward, inference_copy
from nanochat.lookup import Lookup
from nanochat.sampler import choose, uniform
from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(np.zeros((0, 2), np.int32))  # bytes and special tokens


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    """Logits that differ enough to make text vary."""
    config = GPTConfig(tokenizer.vocab_size, sequence_len=256, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)
    return random_model(config, seed=1)


@pytest.fixture(scope="module", params=["numba", "torch"])
def kind(request) -> Iterator[str]:
    """Both ways to run a model; GPUs have the second."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(CpuForward, "fits", lambda model: False)
        yield request.param


FITS = CpuForward.fits


@pytest.fixture
def compiled(monkeypatch):
    """For tests of what only the compiled forward does."""
    monkeypatch.setattr(CpuForward, "fits", FITS)


@pytest.fixture(scope="module")
def engine(model, tokenizer, kind) -> Engine:
    return Engine(model, tokenizer, max_batch=16)


def same(a: Completion, b: Completion) -> None:
    """The same answer, to the last bit of its log probabilities."""
    assert (a.ids, a.finish_reason, a.logprobs) == (b.ids, b.finish_reason, b.logprobs)


@pytest.fixture
def fresh(engine) -> Engine:
    engine.refresh()
    return engine


def prompts(count: int, least: int = 3, most: int = 180, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most, (count,), generator=generator).tolist()
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def letters(tokenizer) -> dict[int, float]:
    """A bias that leaves ASCII letters only: any token shows as a character, and nothing ends the answer."""
    return {id: -math.inf for id in range(tokenizer.vocab_size) if not chr(id).isascii() or not chr(id).isalpha()}


def scripted(tokenizer, answer: list[int], max_batch: int = 2) -> Engine:
    """An engine that answers the prompt [0] with these ids."""
    return Engine(Scripted(tokenizer.vocab_size, answer), tokenizer, max_batch=max_batch)


def say(tokenizer, *pieces: str) -> list[int]:
    """Ids of text and of special tokens."""
    ids = []
    for piece in pieces:
        ids += [tokenizer.special[piece]] if piece in tokenizer.special else list(piece.encode())
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# The same answer as the plain model


def naive_greedy(
    model, prompt: list[int], count: int, bias: dict[int, float], frequency: float = 0, presence: float = 0
) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1].clone()
        for id, value in bias.items():
            logits[id] += value
        for id in set(ids[len(prompt) :]):
            logits[id] -= frequency * ids[len(prompt) :].count(id) + presence
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def test_greedy_is_what_the_model_says_without_a_cache(model, fresh, letters):
    for prompt in [*prompts(4), *prompts(1, 63, 64), *prompts(1, 64, 65), *prompts(1, 65, 66), *prompts(1, 1, 2)]:
        answer = fresh.generate([prompt], Sampling(temperature=0, max_tokens=12, logit_bias=letters))[0]
        with torch.no_grad():
            assert answer.ids == naive_greedy(model, prompt, 12, letters)
        assert (answer.finish_reason, answer.prompt_tokens) == ("length", len(prompt))


@pytest.mark.parametrize("frequency, presence", [(0.7, 0), (0, 2), (2, -1), (-2, 0.5)])
def test_penalties_are_taken_off_the_logits_of_what_was_said(model, fresh, letters, frequency, presence):
    for prompt in prompts(3, seed=2):
        penalised = Sampling(
            temperature=0, max_tokens=30, logit_bias=letters, frequency_penalty=frequency, presence_penalty=presence
        )
        answer = fresh.generate([prompt], penalised)[0]
        with torch.no_grad():
            assert answer.ids == naive_greedy(model, prompt, 30, letters, frequency, presence)
            assert answer.ids != naive_greedy(model, prompt, 30, letters)


def test_logprobs_are_those_of_the_model(model, fresh, letters):
    prompt = prompts(1)[0]
    sampling = Sampling(temperature=0.8, top_k=5, seed=3, max_tokens=8, logprobs=4, logit_bias=letters)
    answer = fresh.generate([prompt], sampling)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert [entry.id for entry in answer.logprobs] == answer.ids
    for row, entry in zip(expected, answer.logprobs):
        assert entry.logprob == pytest.approx(float(row[entry.id]), abs=1e-4)
        values, ids = row.topk(4)
        assert [id for id, _ in entry.top] == ids.tolist()
        assert [p for _, p in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_inference_copy_changes_nothing_but_the_layout(model):
    idx = torch.tensor(prompts(2, 20, 21))
    with torch.no_grad():
        torch.testing.assert_close(inference_copy(model)(idx), model(idx))
    half = copy.deepcopy(model)
    half.compute_dtype = torch.bfloat16
    assert {p.dtype for p in inference_copy(half).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------------------
# Alone and in company


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 20}, {"top_p": 0.9, "min_p": 0.01}, {}])
def test_an_answer_is_the_same_alone_and_in_company_to_the_last_bit(fresh, letters, settings):
    asked = prompts(16)
    sampling = [Sampling(seed=n, max_tokens=30, logprobs=2, logit_bias=letters, **settings) for n in range(16)]
    alone = []
    for n in range(0, 16, 3):
        fresh.refresh()
        alone.append(fresh.generate([asked[n]], sampling[n])[0])
    fresh.refresh()
    together = fresh.generate(asked, sampling)[::3]
    for a, b in zip(alone, together):
        same(a, b)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 20}, {}])
def test_the_penalties_of_one_answer_are_not_those_of_its_company(fresh, letters, settings):
    asked, penalties = prompts(8, seed=3), [{}, {"frequency_penalty": 1.5}, {"presence_penalty": 2}, {}] * 2
    sampling = [
        Sampling(seed=n, max_tokens=30, logprobs=2, logit_bias=letters if n % 2 else {}, **settings, **penalty)
        for n, penalty in enumerate(penalties)
    ]
    together = fresh.generate(asked, sampling)
    for n in range(8):
        fresh.refresh()
        same(fresh.generate([asked[n]], sampling[n])[0], together[n])


def test_company_that_comes_and_goes_changes_nothing(fresh, letters):
    asked = prompts(24, seed=5)
    sampling = [Sampling(seed=n, max_tokens=3 + 7 * n % 40, logprobs=0, logit_bias=letters) for n in range(24)]
    requests, finished = [], {}
    for n in range(24):
        requests.append(fresh.submit(asked[n], sampling[n]))
        for _ in range(n % 3):
            finished.update((r.id, e) for r, e in fresh.step() if isinstance(e, Completion))
    while fresh.has_work:
        finished.update((r.id, e) for r, e in fresh.step() if isinstance(e, Completion))
    assert len(finished) == 24
    for n in range(0, 24, 5):
        fresh.refresh()
        alone = fresh.generate([asked[n]], sampling[n])[0]
        same(alone, finished[requests[n].id])


def test_the_compiled_forward_leaves_torch_its_threads(model, tokenizer, compiled):
    """numba's start had given it two, with which its attention has other bits than with one."""
    Engine(model, tokenizer, max_batch=1)
    assert torch.get_num_threads() == 1  # as conftest.py says


def test_rows_are_only_batched_in_ways_that_keep_their_bits(model):
    forward = TorchForward(model, 16, 64)
    assert 1 not in forward.row_counts and max(forward.row_counts) >= 4


# ---------------------------------------------------------------------------------------------------------------------
# Reuse of what was read before


def test_a_conversation_is_not_read_again_and_its_answer_is_the_same(fresh, letters, kind):
    sampling = Sampling(temperature=0, max_tokens=20, logprobs=1, logit_bias=letters)
    turn = prompts(1, 150, 151)[0]
    first = fresh.generate([turn], sampling)[0]
    longer = turn + first.ids + prompts(1, 20, 21, seed=9)[0]
    warm = fresh.generate([longer], sampling)[0]
    fresh.refresh()
    cold = fresh.generate([longer], sampling)[0]
    assert (first.cached_tokens, cold.cached_tokens) == (0, 0)
    assert warm.cached_tokens == (128 if kind == "torch" else len(turn) + len(first.ids) - 1)
    same(warm, cold)


def test_a_prefix_is_shared_with_an_answer_that_is_still_running(fresh, letters, kind):
    sampling = Sampling(temperature=0, max_tokens=20, logprobs=1, logit_bias=letters)
    prompt = prompts(1, 140, 141)[0]
    answers = fresh.generate([prompt, prompt[:130] + [1, 2, 3], prompt], sampling)
    assert [answer.cached_tokens for answer in answers] == ([0, 128, 128] if kind == "torch" else [0, 130, 139])
    same(answers[0], answers[2])
    fresh.refresh()
    same(fresh.generate([prompt[:130] + [1, 2, 3]], sampling)[0], answers[1])


def test_weights_taken_anew_forget_the_cache(model, tokenizer, letters, kind):
    changed = copy.deepcopy(model)
    engine = Engine(changed, tokenizer, max_batch=1)
    prompt = prompts(1, 100, 101)[0]
    sampling = Sampling(temperature=0, max_tokens=10, logit_bias=letters)
    engine.generate([prompt], sampling)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(-1.5)
    engine.refresh()
    answer = engine.generate([prompt], sampling)[0]
    with torch.no_grad():
        assert answer.ids == naive_greedy(changed, prompt, 10, letters)
    assert answer.cached_tokens == 0


# ---------------------------------------------------------------------------------------------------------------------
# Tokens that are guessed ahead


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 0.3, "seed": 1}, {"temperature": 0, "frequency_penalty": -0.1}]
)
def test_guesses_change_no_bit_and_save_steps(model, tokenizer, letters, settings, compiled):
    sampling = Sampling(max_tokens=60, logprobs=1, logit_bias=letters | {97: 4.0}, **settings)  # it repeats itself
    prompt = list(b"aaaab aaaac aaaaad")
    steps = {}
    for guess in (0, 3):
        engine = Engine(model, tokenizer, max_batch=2, guess=guess)
        request, steps[guess] = engine.submit(prompt, sampling), 0
        while engine.has_work:
            engine.step()
            steps[guess] += 1
        steps[guess], answer = (steps[guess], request.completion), request.completion
    assert steps[0][1] == steps[3][1] and len(answer.ids) == 60
    assert steps[3][0] < 0.8 * steps[0][0]


def test_wrong_guesses_fall_silent():
    lookup = Lookup([1, 2, 3, 4, 1, 2])
    assert lookup.guess([3], 4) == [4, 1, 2, 3]
    lookup.learn([3, 9], 0)
    assert lookup.guess([3, 9], 4) == []
    answer = [3, 9, 1, 2, 3]
    assert lookup.guess(answer, 2) == [9, 1]
    lookup.learn([*answer, 9], 1)
    assert lookup.guess([*answer, 9], 2) == [1, 2]


def test_what_an_answer_is_made_to_say_is_read_at_once(model, tokenizer, letters, compiled):
    engine = Engine(model, tokenizer, max_batch=1)
    sampling = Sampling(temperature=0, max_tokens=8, logprobs=2, logit_bias=letters)
    whole = engine.generate([[1, 2, 3]], sampling)[0]
    begun = engine.submit([1, 2, 3], dataclasses.replace(sampling, begin=whole.ids[:7], max_tokens=1))
    engine.step(), engine.step()
    assert begun.completion.ids == whole.ids and begun.completion.logprobs == whole.logprobs


# ---------------------------------------------------------------------------------------------------------------------
# Smaller weights


@pytest.mark.parametrize("weights, far", [("bfloat16", 0.1), ("int8", 0.25)])
def test_smaller_weights_say_nearly_the_same(model, tokenizer, letters, compiled, weights, far):
    sampling = Sampling(temperature=0, max_tokens=1, logprobs=3, logit_bias=letters)
    asked = prompts(8)
    exact = Engine(model, tokenizer, max_batch=8).generate(asked, sampling)
    small = Engine(model, tokenizer, max_batch=8, weights=weights).generate(asked, sampling)
    for a, b in zip(exact, small):
        assert a.logprobs[0].logprob == pytest.approx(b.logprobs[0].logprob, abs=far)
    assert any(a.logprobs != b.logprobs for a, b in zip(exact, small))
    alone = Engine(model, tokenizer, max_batch=1, weights=weights).generate(asked[3:4], sampling)[0]
    assert alone.logprobs == small[3].logprobs


def test_a_model_in_bf16_is_read_as_such(model, tokenizer, letters, compiled):
    half = copy.deepcopy(model)
    half.compute_dtype = torch.bfloat16
    sampling = Sampling(temperature=0, max_tokens=3, logprobs=3, logit_bias=letters)
    a = Engine(half, tokenizer, max_batch=2).generate(prompts(2), sampling)
    assert a == Engine(model, tokenizer, max_batch=2, weights="bfloat16").generate(prompts(2), sampling)


# ---------------------------------------------------------------------------------------------------------------------
# Limits, ends, cancel, faults


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(fresh):
    with pytest.raises(ValueError, match="256 tokens .* 256"):
        fresh.submit([1] * 256)
    with pytest.raises(ValueError, match="empty"):
        fresh.submit([])
    with pytest.raises(ValueError, match="prompt has token ids"):
        fresh.submit([100_000])
    assert not fresh.has_work


def test_a_full_context_ends_the_answer(fresh, letters):
    for length in (250, 255):
        answer = fresh.generate([[7] * length], Sampling(logit_bias=letters))[0]
        assert (len(answer.ids), answer.finish_reason) == (256 - length, "length")


@pytest.mark.parametrize("end", ["<|assistant_end|>", "<|bos|>"])
def test_the_answer_ends_at_its_end_token(tokenizer, end):
    answer = scripted(tokenizer, say(tokenizer, "hi", end, "more")).generate([[0]])[0]
    assert (answer.text, answer.finish_reason) == ("hi", "stop")
    assert answer.ids == say(tokenizer, "hi", end)
    assert all(answer.mask)


def test_stop_ids(tokenizer):
    answer = scripted(tokenizer, say(tokenizer, "one. two")).generate([[0]], Sampling(stop_ids=[ord(".")]))[0]
    assert (answer.finish_reason, answer.ids[-1]) == ("stop", ord("."))


def test_cancel_waiting_filling_and_running(fresh, letters):
    sampling = Sampling(max_tokens=200, logit_bias=letters)
    requests = [fresh.submit([n + 1] * 40, sampling) for n in range(20)]
    for _ in range(8):
        fresh.step()
    running = [r for r in requests if r.answer.ids]
    assert 0 < len(running) < 20
    for request in requests[2:]:
        fresh.cancel(request)
    ended = [(r, e) for r, e in fresh.step() if isinstance(e, Completion)]
    assert {r.id for r, _ in ended} == {r.id for r in requests[2:]}
    assert {e.finish_reason for _, e in ended} == {"cancelled"}
    assert fresh.stats()["running"] == 2 and fresh.stats()["waiting"] == 0
    while fresh.has_work:
        fresh.step()
    assert {r.completion.finish_reason for r in requests[:2]} == {"length"}


def test_leaving_a_stream_frees_its_slot(fresh, letters):
    stream = fresh.stream([1, 2, 3], Sampling(logit_bias=letters))
    next(stream)
    stream.close()
    assert not fresh.has_work


def test_a_fault_of_one_request_ends_only_that_one(model, tokenizer, letters, monkeypatch, kind):
    engine = Engine(model, tokenizer, max_batch=4)
    sampling = Sampling(temperature=0, max_tokens=10, logit_bias=letters)
    good, bad = prompts(2, 10, 11)
    expected = engine.generate([good], sampling)[0].ids
    requests = [engine.submit(good, sampling), engine.submit(bad, sampling), engine.submit(good, sampling)]
    engine.step()
    monkeypatch.setattr(requests[1].answer, "add", lambda id, logprob: 1 / 0)
    while engine.has_work:
        engine.step()
    assert [r.completion.finish_reason for r in requests] == ["length", "error", "length"]
    assert "ZeroDivisionError" in requests[1].completion.error
    assert requests[0].completion.ids == requests[2].completion.ids == expected


@pytest.mark.parametrize("step", [0, 3])
def test_a_fault_of_the_sampler_ends_who_was_there_and_nobody_else(model, tokenizer, letters, monkeypatch, step):
    engine, real = Engine(model, tokenizer, max_batch=2), engine_module.choose
    monkeypatch.setattr(engine_module, "choose", lambda *_: 1 / 0)
    sampling = Sampling(temperature=0, max_tokens=10, logit_bias=letters)
    requests = [engine.submit([1, 2, 3], sampling), engine.submit([4, 5], sampling)]
    if step:
        monkeypatch.setattr(engine_module, "choose", real)
        for _ in range(step):
            engine.step()
        monkeypatch.setattr(engine_module, "choose", lambda *_: 1 / 0)
    while engine.has_work:
        engine.step()
    assert [request.completion.finish_reason for request in requests] == ["error", "error"]
    monkeypatch.setattr(engine_module, "choose", real)
    assert engine.generate([[1, 2, 3]], sampling)[0].finish_reason == "length"


def test_logits_that_are_no_numbers_are_an_error_and_leave_nothing_behind(model, tokenizer, letters, kind):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.embedding.weight[5] = math.nan
    engine = Engine(broken, tokenizer, max_batch=2)
    answers = engine.generate([[1, 2, 3], [5]], Sampling(temperature=0, max_tokens=4, logit_bias=letters))
    assert [answer.finish_reason for answer in answers] == ["length", "error"]
    store = engine.forward if kind == "numba" else engine.forward.cache
    assert all(np.isfinite(np.asarray(values)).all() for values in (store.keys, store.values))


def test_ids_beyond_the_tokenizer_are_never_chosen(tokenizer):
    model = Scripted(tokenizer.vocab_size + 7, [tokenizer.vocab_size + 3])
    answer = Engine(model, tokenizer, max_batch=1).generate([[0]], Sampling(max_tokens=20))[0]
    assert max(answer.ids) < tokenizer.vocab_size
    with pytest.raises(ValueError, match="not belong together"):
        Engine(Scripted(tokenizer.vocab_size - 1, [0]), tokenizer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": math.nan},
        {"max_tokens": 0},
        {"stop": "text"},
        {"stop": [""]},
        {"logprobs": -1},
        {"logit_bias": {1: math.nan}},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        Sampling(**wrong)


def test_submit_and_cancel_from_other_threads(fresh, letters):
    sampling = Sampling(max_tokens=5, logit_bias=letters)
    requests, lock = [], threading.Lock()

    def client(number):
        for n in range(10):
            request = fresh.submit([number, n, 1], sampling)
            with lock:
                requests.append(request)
            if n % 3 == 0:
                fresh.cancel(request)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or fresh.has_work:
        fresh.step()
    assert len(requests) == 40 and all(request.finished for request in requests)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def collect(engine, sampling=Sampling()) -> tuple[list[Delta], Completion]:
    *deltas, completion = engine.stream([0], sampling)
    return deltas, completion


def test_a_character_is_never_split_and_special_tokens_never_show(tokenizer):
    text = "añ你🙂é"
    script = say(tokenizer, text[:3], "<|user_start|>", text[3:], "<|assistant_end|>")
    deltas, answer = collect(scripted(tokenizer, script))
    assert [delta.text for delta in deltas] == list(text)
    assert answer.text == text
    assert answer.parts == [{"type": "text", "text": text}]


def test_an_answer_cut_within_a_character_shows_a_replacement(tokenizer):
    _, answer = collect(scripted(tokenizer, say(tokenizer, "ab🙂")), Sampling(max_tokens=4))
    assert answer.text == "ab\ufffd"


@pytest.mark.parametrize(
    "stop, text",
    [
        (["END"], "one EN two "),
        (["N two"], "one E"),
        (["two END", "wo"], "one EN t"),
        (["nowhere"], "one EN two ENDing"),
    ],
)
def test_stop_strings_across_tokens(tokenizer, stop, text):
    script = say(tokenizer, "one EN two ENDing", "<|assistant_end|>")
    deltas, answer = collect(scripted(tokenizer, script), Sampling(stop=stop))
    assert answer.text == text == "".join(delta.text for delta in deltas)
    assert answer.finish_reason == "stop"


def test_what_may_begin_a_stop_string_waits(tokenizer):
    script = say(tokenizer, "a STx", "<|assistant_end|>")
    deltas, _ = collect(scripted(tokenizer, script), Sampling(stop=["STOP"]))
    assert [delta.text for delta in deltas] == ["a", " ", "STx"]
    assert [len(delta.ids) for delta in deltas] == [1, 1, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Tools


def ask_tool(tokenizer, expression: str, output: str, **settings) -> Completion:
    before = say(tokenizer, "so ", "<|python_start|>", expression, "<|python_end|>")
    forced = say(tokenizer, "<|output_start|>", output, "<|output_end|>")
    # The script must not say what the engine forces: where those tokens stand, it says something else.
    script = [*before, *say(tokenizer, "?") * len(forced), *say(tokenizer, "done", "<|assistant_end|>")]
    _, answer = collect(scripted(tokenizer, script), Sampling(**settings))
    return answer


@pytest.mark.parametrize(
    "expression, output",
    [("12*34", "408"), ("__import__('os')", "error"), ("look up the flumbrick", "nothing found")],
)
def test_a_tool_answers_inside_the_loop(tokenizer, expression, output):
    answer = ask_tool(tokenizer, expression, output, logprobs=0)
    assert answer.parts == [
        {"type": "text", "text": "so "},
        {"type": "python", "text": expression},
        {"type": "python_output", "text": output},
        {"type": "text", "text": "done"},
    ]
    assert answer.text == "so done"
    forced = say(tokenizer, "<|output_start|>", output, "<|output_end|>")
    assert [id for id, chosen in zip(answer.ids, answer.mask) if not chosen] == forced
    assert [entry.id for entry in answer.logprobs] == answer.ids
    ids, mask = tokenizer.render_conversation(
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer.parts}]}
    )
    assert ids[-len(answer.ids) :].tolist() == answer.ids
    assert mask[-len(answer.ids) :].tolist() == answer.mask


def test_penalties_leave_tool_calls_alone(tokenizer):
    """What the script says is 20 above all else, so the text can have nine ones and not a tenth: the call can. Its own
    twos do not count."""
    said, expression, output = "111111111 ", "1*222222222222", "222222222222"
    call = say(tokenizer, said, "<|python_start|>", expression, "<|python_end|>")
    script = [*call, *say(tokenizer, "?" * (len(output) + 2), "2 done", "<|assistant_end|>")]
    sampling = Sampling(temperature=0, max_tokens=60, frequency_penalty=2, presence_penalty=2)
    _, answer = collect(scripted(tokenizer, script), sampling)
    assert [part["text"] for part in answer.parts] == [said, expression, output, "2 done"]
    assert not collect(scripted(tokenizer, say(tokenizer, "1" * 10)), sampling)[1].text.startswith("1" * 10)


def test_penalties_go_on_in_a_begun_answer(fresh, letters):
    sampling = Sampling(temperature=0, max_tokens=30, logprobs=1, logit_bias=letters, frequency_penalty=1)
    whole = fresh.generate([[1, 2, 3]], sampling)[0]
    begun = dataclasses.replace(sampling, begin=whole.ids[:20], max_tokens=10)
    same(fresh.generate([[1, 2, 3]], begun)[0], whole)


def test_a_begun_answer_goes_on_as_it_went_and_runs_no_tool_twice(tokenizer):
    whole = ask_tool(tokenizer, "12*34", "408")
    end = whole.ids.index(tokenizer.special["<|output_end|>"]) + 1
    for kept in (3, 5, end - 1, end, end + 2):
        again = ask_tool(tokenizer, "12*34", "408", begin=whole.ids[:kept])
        assert (again.ids, again.parts) == (whole.ids, whole.parts)
    changed = [*whole.ids[: end - 2], *say(tokenizer, "9")]  # another output than the calculator's stays
    assert ask_tool(tokenizer, "12*34", "408", begin=changed).ids[: len(changed)] == changed


def test_without_tools_nothing_is_forced(tokenizer):
    answer = ask_tool(tokenizer, "1+1", "2", tools=False)
    assert all(answer.mask)
    assert answer.parts[-1]["text"] == "???done"


# ---------------------------------------------------------------------------------------------------------------------
# Programs


def program_script(tokenizer, code: str, output: str) -> list[int]:
    before = say(tokenizer, "so ", "<|python_start|>", code, "<|python_end|>")
    forced = say(tokenizer, "<|output_start|>", output, "<|output_end|>")
    return [*before, *say(tokenizer, "?") * len(forced), *say(tokenizer, "done", "<|assistant_end|>")]


@pytest.mark.parametrize(
    "code, output",
    [("print(6 * 7)\n[n**2 for n in range(3)]", "42\n[0, 1, 4]"), ("1/0", "ZeroDivisionError: division by zero")],
)
def test_a_program_says_what_comes_next(tokenizer, code, output):
    engine = scripted(tokenizer, program_script(tokenizer, code, output))
    _, answer = collect(engine, Sampling(python=True, logprobs=0))
    kinds = [(part["type"], part["text"]) for part in answer.parts]
    assert kinds == [("text", "so "), ("python", code), ("python_output", output), ("text", "done")]
    forced = say(tokenizer, "<|output_start|>", output, "<|output_end|>")
    assert [id for id, chosen in zip(answer.ids, answer.mask) if not chosen] == forced
    assert [entry.id for entry in answer.logprobs] == answer.ids
    end = answer.ids.index(tokenizer.special["<|output_end|>"]) + 1
    for kept in (3, end - 2, end, end + 2):
        again = collect(engine, Sampling(python=True, begin=answer.ids[:kept]))[1]
        assert (again.ids, again.parts) == (answer.ids, answer.parts)
    other = [
        *answer.ids[: end - 2],
        *say(tokenizer, "?!"),
        answer.ids[end - 1],
    ]  # it is not run again: this output stays
    assert collect(engine, Sampling(python=True, begin=other))[1].ids[: len(other)] == other


def test_without_being_asked_for_no_program_runs(tokenizer):
    script = program_script(tokenizer, "print(1)", "error")
    assert collect(scripted(tokenizer, script))[1].parts[2] == {"type": "python_output", "text": "error"}


def test_while_a_program_runs_the_others_go_on_and_to_cancel_kills_it(tokenizer):
    code = "while True: pass"
    engine = scripted(tokenizer, program_script(tokenizer, code, "x"), max_batch=3)
    waits = [engine.submit([0], Sampling(python=True)) for _ in range(2)]
    while len(engine.paused) < 2:
        engine.step()
    runs = {slot.request: slot.program for slot in engine.paused}
    first, second = (runs[request] for request in waits)
    others = engine.generate([[0], [0, 0, 0], [0]], Sampling(tools=False))
    assert all(other.finish_reason == "stop" for other in others)
    assert engine.stats()["running"] == 2 and not any(request.finished for request in waits)
    engine.cancel(waits[0])
    engine.step()
    assert waits[0].completion.finish_reason == "cancelled" and engine.stats()["running"] == 1
    while first.output is None:
        time.sleep(0.01)
    assert "SIGKILL" in first.output and second.output is None
    engine.cancel(waits[1])
    engine.step()
    assert not engine.has_work


# ---------------------------------------------------------------------------------------------------------------------
# The sampler


class Asked:
    """What the sampler sees of a request."""

    def __init__(self, seed: int = 0, **settings):
        self.sampling, self.seed = Sampling(**settings), seed
        self.bias = self.seen = self.counts = self.grammar = None
        self.answer = type("Answer", (), {"ids": []})


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 100, "top_p": 0.99}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_tokens_are_drawn_with_their_probability(settings, expected):
    """Counts of 5,000 draws within five standard deviations, and nothing that was cut."""
    order = [2, 0, 3, 1]  # so that columns are not sorted
    logits = torch.full((5_000, 4), 0.0)
    logits[:, order] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    drawn = torch.tensor(choose(logits, [Asked(seed, **settings) for seed in range(5_000)]))
    counts = torch.bincount(drawn, minlength=4)[order].tolist()
    for count, p in zip(counts, expected):
        assert abs(count - 5_000 * p) <= 5 * math.sqrt(5_000 * p * (1 - p))


def test_numbers_of_a_seed_are_uniform():
    values = np.array([uniform(seed, n) for seed in range(200) for n in range(200)])
    assert 0 <= values.min() and values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # chi-square with 19 degrees of freedom: p < 0.0002


def test_bias_and_penalty(model, fresh, letters):
    answer = fresh.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=5, logit_bias={65: 1000.0}))[0]
    assert answer.text == "AAAAA"
    penalised = fresh.generate(
        [[1, 2, 3]], Sampling(temperature=0, max_tokens=30, logit_bias=letters, repetition_penalty=1e6)
    )[0]
    # Positive logits fall to nothing and negative ones far below: a letter comes again only when all have come.
    assert len(set(penalised.ids)) == 30


def test_without_a_seed_answers_differ_and_with_one_they_do_not(fresh, letters):
    free, fixed = (Sampling(max_tokens=20, logit_bias=letters, seed=seed) for seed in (None, 0))
    assert len({tuple(answer.ids) for answer in fresh.generate([[1, 2]] * 8, free)}) > 1
    assert len({tuple(answer.ids) for answer in fresh.generate([[1, 2]] * 8, fixed)}) == 1


def test_the_end_is_none_of_the_tokens_of_half_a_character(tiny_tokenizer):
    """What is shown can be said again by its tokens, and nothing can be begun with an end."""
    answer = Answer(tiny_tokenizer, Sampling())
    assert answer.add(0xEF, None) == ([], False)  # the first byte of three
    (delta,), ended = answer.add(tiny_tokenizer.special["<|assistant_end|>"], None)
    assert ended and delta.text == "\ufffd" and delta.ids == (0xEF,)
    assert answer.ids == [0xEF, tiny_tokenizer.special["<|assistant_end|>"]]
