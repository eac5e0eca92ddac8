"""The HTTP API: the official client against a real server process with a real (tiny) model, and everything that clients
get wrong or do badly against a scripted engine."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import random_model
from prometheus_client.parser import text_string_to_metric_families
from ranks import free_port
from serving import Scripted, ScriptedEngine, byte_tokenizer, say, serve, words
from starlette.testclient import TestClient

from dev.fuzz_server import Config, fuzz
from dev.storm import storm
from nanochat.answer import Answer
from nanochat.engine import Completion, Delta, Engine, Sampling
from nanochat.protocol import OPENING
from nanochat.server import Settings, create_app
from nanochat.tokenizer import SPECIAL_TOKENS

HELLO = [{"role": "user", "content": "Hello"}]


# ---------------------------------------------------------------------------------------------------------------------
# A real model in a real process, asked by the official client


@pytest.fixture(scope="module")
def checkpoint(tiny_tokenizer, tmp_path_factory):
    """A folder with a tiny sft checkpoint, and the model in it."""
    from nanochat import checkpoint_manager
    from nanochat.gpt import GPTConfig
    from nanochat.trainer import State

    config = GPTConfig(tiny_tokenizer.vocab_size, sequence_len=512, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    model = random_model(config, seed=1)
    base = tmp_path_factory.mktemp("base")
    folder = base / "checkpoints" / "sft" / "tiny"
    checkpoint_manager.save(folder, model, tiny_tokenizer, stage="sft", state=State(), settings={})
    return base, model.eval()


def start_process(base: Path, *flags: str) -> tuple[subprocess.Popen, str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.chat_web", f"--port={port}", "--device=cpu", *flags],
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = f"http://localhost:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return process, url
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"chat_web did not start: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def real(checkpoint):
    process, url = start_process(checkpoint[0], "--max_batch=8", "--max_queue=200")
    with process, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        client.process = process
        yield client
        process.terminate()


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_the_model_is_listed(real):
    (model,) = real.models.list().data
    assert model.id == "nanochat-tiny" and model.object == "model"
    assert real.models.retrieve("nanochat-tiny").id == model.id
    with pytest.raises(openai.NotFoundError, match="nanochat-tiny"):
        real.models.retrieve("gpt-4")


def test_greedy_answers_are_those_of_the_engine(real, checkpoint, tiny_tokenizer):
    prompt = tiny_tokenizer.render_for_completion({"messages": HELLO})
    engine = Engine(checkpoint[1], tiny_tokenizer, max_batch=1, weights="bfloat16")
    (expected,) = engine.generate([prompt.tolist()], Sampling(max_tokens=40, temperature=0))
    whole = real.chat.completions.create(model="nanochat-tiny", messages=HELLO, temperature=0, max_tokens=40)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage.prompt_tokens == len(prompt) and whole.usage.completion_tokens == len(expected.ids)
    assert whole.usage.total_tokens == len(prompt) + len(expected.ids)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.2, "seed": 7, "top_p": 0.9}])
def test_a_stream_says_what_the_whole_answer_says(real, options):
    ask = {"model": "nanochat-tiny", "messages": HELLO, "max_tokens": 60, "n": 3, **options}
    whole = real.chat.completions.create(**ask)
    texts, reasons, usage = {}, {}, None
    for chunk in real.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert (len(set(texts.values())) == 1) == (options["temperature"] == 0)


def test_a_conversation_that_is_too_long(real):
    """By itself it is refused, as clients expect; with truncation the oldest turns make room, and how many is said."""
    messages = [{"role": "assistant" if i % 2 else "user", "content": "word " * 20} for i in range(31)]
    ask = {"model": "nanochat-tiny", "messages": messages, "max_tokens": 2, "temperature": 0}
    with pytest.raises(openai.BadRequestError) as refused:
        real.chat.completions.create(**ask)
    assert refused.value.code == "context_length_exceeded"
    short = real.chat.completions.create(**ask, extra_body={"truncation": "auto"})
    assert 0 < short.left_out < 31 and short.left_out % 2 == 0
    rest = real.chat.completions.create(**{**ask, "messages": messages[short.left_out :]})
    assert rest.choices == short.choices and rest.usage.prompt_tokens == short.usage.prompt_tokens
    stream = real.chat.completions.create(**ask, stream=True, extra_body={"truncation": "auto"})
    assert {chunk.left_out for chunk in stream} == {short.left_out}
    assert "left_out" not in rest.model_dump()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type: this model knows only text",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content: Input should be a valid string"),
        ({"messages": HELLO, "stop": [1]}, "stop.0: Input should be a valid string"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature: Input should be a valid number"),
    ],
)
def test_an_error_names_the_place_and_nothing_of_ours(real, body, message):
    answer = httpx.post(f"{real.base_url}chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["message"].startswith(message)
    assert error["param"] == message.split(":")[0] and "function" not in answer.text


def test_logprobs(real):
    options = {"model": "nanochat-tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0, "logprobs": True}
    whole = real.chat.completions.create(**options, top_logprobs=3)
    entries = whole.choices[0].logprobs.content
    data = b"".join(bytes(entry.bytes) for entry in entries)
    assert data.decode("utf-8", "replace").startswith(whole.choices[0].message.content[:10])
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) <= 3 and values == sorted(values, reverse=True) and entry.logprob <= 0
        if len(values) == 3:
            assert entry.logprob == values[0]  # greedy takes the likeliest
    streamed = real.chat.completions.create(**options, top_logprobs=3, stream=True)
    pieces = [entry for chunk in streamed if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in pieces] == [entry.token for entry in entries]


def test_an_answer_goes_on_from_another_token(real, tiny_tokenizer):
    ask = {"model": "nanochat-tiny", "messages": HELLO, "max_tokens": 20, "seed": 5, "logprobs": True}
    first = real.chat.completions.create(**ask, top_logprobs=3).choices[0]
    entries, ids = first.logprobs.content, first.message.ids
    kept = ids[:8]
    same = real.chat.completions.create(**{**ask, "max_tokens": 12}, extra_body={"begin_with": kept}).choices[0]
    assert (same.message.content, same.message.ids) == (first.message.content, ids)
    place = ids.index(entries[4].id)
    other = next(top for top in entries[4].top_logprobs if top.id != entries[4].id)
    begin = [*ids[:place], other.id]
    stream = real.chat.completions.create(**ask, top_logprobs=3, stream=True, extra_body={"begin_with": begin})
    chunks = [chunk.choices[0] for chunk in stream]
    told = [id for chunk in chunks for id in getattr(chunk.delta, "ids", [])]
    assert told[: len(begin)] == begin and len(told) > len(begin)
    shown = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert [e.logprob for e in shown[:4]] == [e.logprob for e in entries[:4]]
    assert shown[4].logprob == other.logprob
    text = real.chat.completions.create(**ask, extra_body={"begin_with": "Well, <|bos|>"}).choices[0].message
    assert text.content.startswith("Well, <|bos|>") and tiny_tokenizer.bos_id not in text.ids[:8]
    for wrong in ([tiny_tokenizer.bos_id], [10**6], [-1], ["x"], [3] * 600):
        with pytest.raises(openai.BadRequestError):
            real.chat.completions.create(**ask, extra_body={"begin_with": wrong})


def test_answers_follow_a_json_schema(real):
    """The model is random: without the schema it says no JSON."""
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    ask = {"model": "nanochat-tiny", "messages": HELLO, "max_tokens": 200, "response_format": form, "temperature": 1.5}
    for choice in real.chat.completions.create(**ask, n=4, seed=3).choices:
        person = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and list(person) == ["name", "age"]  # in the order of the schema
        assert person["name"] in ("Ann", "Bo") and 1 <= person["age"] <= 99
    streamed = json.loads(text_of(real.chat.completions.create(**ask, seed=3, stream=True)))
    assert set(streamed) == {"name", "age"}
    begun = real.chat.completions.create(**ask, seed=3, extra_body={"begin_with": '{"name":"Bo"'}).choices[0]
    assert json.loads(begun.message.content)["name"] == "Bo"
    with pytest.raises(openai.BadRequestError, match="begins with does not fit the format"):
        real.chat.completions.create(**ask, extra_body={"begin_with": "hello"})


def test_stop_strings_bias_and_length(real, tiny_tokenizer):
    (a,) = tiny_tokenizer.encode("a").tolist()
    ask = {"model": "nanochat-tiny", "messages": HELLO, "temperature": 0, "logit_bias": {str(a): 100}}
    cut = real.chat.completions.create(**ask, max_tokens=7).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("aaaaaaa", "length")
    stopped = real.chat.completions.create(**ask, max_tokens=9, stop=["zz", "aaa"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("", "stop")
    stream = real.chat.completions.create(**ask, max_completion_tokens=5, stream=True)
    assert text_of(stream) == "aaaaa"


def test_penalties_are_those_of_the_engine(real, checkpoint, tiny_tokenizer):
    prompt = tiny_tokenizer.render_for_completion({"messages": HELLO}).tolist()
    engine = Engine(checkpoint[1], tiny_tokenizer, max_batch=1, weights="bfloat16")
    ask = {"model": "nanochat-tiny", "messages": HELLO, "temperature": 0, "max_tokens": 40}
    texts = []
    for penalties in ({}, {"frequency_penalty": 1.5}, {"presence_penalty": 2, "frequency_penalty": 0}):
        (expected,) = engine.generate([prompt], Sampling(max_tokens=40, temperature=0, **penalties))
        texts.append(real.chat.completions.create(**ask, **penalties).choices[0].message.content)
        assert texts[-1] == expected.text
    assert len(set(texts)) > 1


def test_plain_completions(real, tiny_tokenizer):
    ask = {"model": "nanochat-tiny", "max_tokens": 12, "temperature": 0}
    whole = real.completions.create(**ask, prompt=["The sky", "The grass"], n=2, logprobs=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text == whole.choices[1].text
    count = sum(1 + len(tiny_tokenizer.encode(text)) for text in ("The sky", "The grass"))
    assert whole.usage.prompt_tokens == count
    logprobs = whole.choices[0].logprobs
    assert (
        len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    )
    ids = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode("The sky").tolist()]
    stream = real.completions.create(**ask, prompt=ids, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_every_field_of_openais_is_taken(real):
    answer = real.chat.completions.create(
        model="nanochat-tiny",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": "a"},
            {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]},
        ],
        max_completion_tokens=9,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        n=2,
        seed=1,
        stop=["zz"],
        logit_bias={"5": 1},
        logprobs=True,
        top_logprobs=2,
        metadata={"a": "b"},
        modalities=["text"],
        parallel_tool_calls=True,
        prediction={"type": "content", "content": "x"},
        prompt_cache_key="k",
        reasoning_effort="low",
        response_format={"type": "text"},
        safety_identifier="s",
        service_tier="auto",
        store=True,
        tool_choice="auto",
        tools=[],
        user="u",
        verbosity="low",
    )
    assert len(answer.choices) == 2 and answer.usage.completion_tokens <= 18
    messages = [*HELLO, answer.choices[0].message, {"role": "user", "content": "And you?"}]  # an answer as it came
    assert real.chat.completions.create(model="nanochat-tiny", messages=messages, max_tokens=2).choices


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(real):
    with pytest.raises(openai.BadRequestError, match="512") as error:
        real.chat.completions.create(model="nanochat-tiny", messages=[{"role": "user", "content": "blue " * 600}])
    assert error.value.code == "context_length_exceeded"


def test_hanging_up_frees_places_and_changes_no_other_answer(real):
    """The full size, 200 and 200, is `python -m dev.storm`."""
    different, freed = asyncio.run(storm(f"http://127.0.0.1:{real.base_url.port}", 40, seed=1))
    assert different == 0 and freed < 1.5


def test_sigterm_lets_answers_finish(real):
    """The last of the real ones: it ends the process."""
    ask = {"model": "nanochat-tiny", "messages": HELLO, "temperature": 0, "max_tokens": 300}
    alone = real.chat.completions.create(**ask).choices[0].message.content
    stream = real.chat.completions.create(**ask, stream=True)
    first = next(stream).choices[0].delta.content or ""
    real.process.send_signal(signal.SIGTERM)
    assert first + text_of(stream) == alone
    real.process.wait(timeout=30)
    with pytest.raises(openai.APIConnectionError):
        real.models.list()
    assert f"http://localhost:{real.base_url.port}\n" in real.process.stdout.read()  # the address to open


def test_no_model_yet_is_said_clearly(base_dir):
    from scripts.chat_web import Config, main

    with pytest.raises(SystemExit, match="quickstart.sh"):
        main(Config(port=free_port(), device="cpu"))


def test_a_taken_port_is_said_clearly():
    from scripts.chat_web import Config, main

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="--port"):
        main(Config(port=taken.getsockname()[1]))


def test_small_packets_are_sent_at_once():
    """asyncio turns Nagle's algorithm off for sockets of this protocol only; with it a first token waits 40 ms."""
    from scripts.chat_web import listen

    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


# ---------------------------------------------------------------------------------------------------------------------
# A scripted engine: what clients get wrong


def script(prompt: str):
    return words("word " * 2000) if "long" in prompt else say("Hello", " there", ", friend 🙂.")


@contextmanager
def asking(engine, options: Settings = Settings()) -> Iterator[httpx.Client]:
    """A client of a server with this engine."""
    with serve(engine, engine.tokenizer, options) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def server():
    with asking(ScriptedEngine(byte_tokenizer(), script, pace=0.001)) as client:
        yield client


def chat(**fields) -> dict:
    return {"messages": HELLO, **fields}


DEEP: dict = {}
for _ in range(200):
    DEEP = {"items": DEEP}

BAD_CHATS = {
    "no messages": ({}, "messages"),
    "empty messages": (chat(messages=[]), "messages"),
    "a role that is none": (chat(messages=[{"role": "wizard", "content": "x"}]), "role"),
    "content that is a number": (chat(messages=[{"role": "user", "content": 5}]), "content"),
    "a picture": (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]), "content"),
    "messages that say nothing": (chat(messages=[{"role": "system", "content": ""}]), "nothing to answer"),
    "an empty question": (chat(messages=[{"role": "user", "content": ""}]), "empty"),
    "a tool part of the user": (
        chat(messages=[{"role": "user", "content": [{"type": "python", "text": "1"}]}]),
        "tool",
    ),
    "half a surrogate pair": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    "temperature": (chat(temperature=3), "temperature"),
    "temperature not a number": ('{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
    "temperature infinite": ('{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature"),
    "top_p": (chat(top_p=0), "top_p"),
    "max_tokens": (chat(max_tokens=0), "max_tokens"),
    "n": (chat(n=10**6), "n"),
    "n beyond the queue": (chat(n=100), "lower n"),
    "top_logprobs alone": (chat(top_logprobs=3), "logprobs"),
    "too many top_logprobs": (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "logit_bias of no token": (chat(logit_bias={"99999": 1}), "0 to 264"),
    "logit_bias of a word": (chat(logit_bias={"hello": 1}), "hello"),
    "logit_bias too strong": (chat(logit_bias={"5": 101}), "100"),
    "an empty stop": (chat(stop=""), "at least 1 character"),
    "too many stops": (chat(stop=["x"] * 17), "stop"),
    "tools": (chat(tools=[{"type": "function"}]), 'tool_choice: "none"'),
    "functions": (chat(functions=[{"name": "f"}], function_call="auto"), "calculator"),
    "a call that must be": (chat(tool_choice="required"), "tool_choice"),
    "a certain call": (chat(tool_choice={"type": "function", "function": {"name": "f"}}), "cannot call"),
    "a format that is none": (chat(response_format={"type": "xml"}), "json_schema"),
    "no schema": (chat(response_format={"type": "json_schema"}), "json_schema"),
    "a wrong schema": (chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": 5}}}), "schema"),
    "a deep schema": (chat(response_format={"type": "json_schema", "json_schema": {"schema": DEEP}}), "recursion"),
    "a huge schema": (
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 99_999]}}}),
        "65,536",
    ),
    "a penalty that is too strong": (chat(frequency_penalty=2.1), "frequency_penalty"),
    "a reward that is too strong": (chat(presence_penalty=-3), "presence_penalty"),
    "no JSON": ("{", "JSON"),
    "a list": ("[]", "JSON object"),
    "a deep nest": ("[" * 100_000, "body"),
    "a number of 5,000 digits": ('{"seed": ' + "9" * 5000 + "}", ""),
    "nothing": ("", "JSON object"),
    "a user's message without content": (chat(messages=[{"role": "user"}]), "only an assistant's"),
    "the answer of a client's function": (
        chat(messages=[*HELLO, {"role": "tool", "tool_call_id": "1", "content": "x"}]),
        "answer of one",
    ),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_bad_requests_are_told_what_is_wrong(server, name):
    body, hint = BAD_CHATS[name]
    content = body if isinstance(body, str) else json.dumps(body)
    response = server.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (
        response.status_code == 400
        and error["type"] == "invalid_request_error"
        and set(error) == {"message", "type", "param", "code"}
    )
    assert hint.lower() in error["message"].lower()


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [999]}, {"prompt": [-1]}, {"prompt": {}}]
    + [{"prompt": "x", **more} for more in ({"echo": True}, {"best_of": 3}, {"suffix": "y"}, {"logprobs": 6})],
)
def test_bad_plain_completions(server, body):
    response = server.post("/v1/completions", json=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_plain_completions_show_every_part():
    tokenizer = byte_tokenizer()
    deltas = [Delta("a"), Delta("1+1", "python"), Delta("2", "python_output"), Delta("b")]
    with asking(ScriptedEngine(tokenizer, lambda prompt: deltas)) as client:
        whole = client.post("/v1/completions", json={"prompt": "x"}).json()["choices"][0]["text"]
        lines = client.post("/v1/completions", json={"prompt": "x", "stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert whole == "a1+12b" == "".join(event["choices"][0]["text"] for event in events)


def test_other_refusals(server):
    assert server.post("/v1/chat/completions", json=chat(model="gpt-4")).json()["error"]["code"] == "model_not_found"
    assert server.post("/v1/chat/completions", content=b"{" + b" " * 2**21 + b"}").status_code == 413
    big = iter([b" " * 2**20] * 3)  # chunked: nobody said how long it would be
    assert (
        server.post("/v1/chat/completions", content=big, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    assert server.get("/v1/chat/completions").status_code == 405
    for path in ("/v1/responses", "/chat/completions", "/api/tags"):  # what other servers have
        nothing = server.post(path, json=chat())
        assert nothing.status_code == 404 and "/v1/chat/completions" in nothing.json()["error"]["message"]
    assert server.get("/ui/../server.py").status_code == 404
    assert server.get("/ui/%2e%2e/server.py").status_code == 404
    plain = server.post("/v1/chat/completions", content=json.dumps(chat()), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400  # what another web site's form could send is not understood
    assert "application/json" in plain.json()["error"]["message"]
    assert server.post("/v1/tokenize", json={}).status_code == 400
    assert server.post("/ui/render", json={"texts": ["x" * 200_001]}).status_code == 400


if sys.version_info >= (3, 11):  # which schemathesis asks for

    def test_schemathesis_finds_nothing(capfd):
        """A sample; the full size is in the head of dev/fuzz_server.py."""
        pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")
        assert fuzz(Config(examples=6)) == 0, capfd.readouterr().out


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["user", "text", "none", "auto"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    """model messages prompt max_tokens max_completion_tokens temperature top_p top_k min_p repetition_penalty
    presence_penalty frequency_penalty n seed stop logit_bias stream_options logprobs top_logprobs tools tool_choice
    response_format echo suffix best_of text texts""".split()
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/ui/render"]),
    st.dictionaries(FIELDS, ODD, max_size=4),
    st.booleans(),
)
def test_nothing_that_a_client_sends_is_a_fault_of_the_server(server, path, fields, valid):
    body = {"messages": HELLO, "prompt": "x", **fields} if valid else fields
    response = server.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 200 or 400 <= response.status_code < 500
    if response.status_code != 200:
        assert response.json()["error"]["message"]


def test_content_in_parts_and_several_messages_of_one_role(server):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "system", "content": "T"},
        {"role": "user", "content": parts},
    ]
    one = server.post("/v1/tokenize", json={"messages": [*messages, {"role": "user", "content": "three"}]}).json()
    plain = [{"role": "system", "content": "S\n\nT"}, {"role": "user", "content": "one two\n\nthree"}]
    assert one == server.post("/v1/tokenize", json={"messages": plain}).json()
    assert one["count"] == len(one["tokens"]) and one["context"] == 4096
    for nothing in ({"content": ""}, {"content": None}, {"content": []}, {}):  # an answer that ended at once, sent back
        silent = [{"role": "user", "content": "one two"}, {"role": "assistant", **nothing}]
        messages = [*messages[:2], *silent, {"role": "user", "content": "three"}]
        assert one == server.post("/v1/tokenize", json={"messages": messages}).json()


def rendered(server, *messages: tuple[str, str]) -> str:
    """What the model reads of messages, each (role, text)."""
    body = {"messages": [{"role": role, "content": text} for role, text in messages]}
    return byte_tokenizer().decode(server.post("/v1/tokenize", json=body).json()["tokens"])


TURNS = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "r")]
SENT = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FRONTENDS = {
    "Open WebUI": {
        "stream_options": {"include_usage": True},
        "stop": ["\n\n"],
        "logit_bias": {},
        "reasoning_effort": "medium",
        "metadata": {"chat_id": "1"},
        "user": {"name": "Ann", "role": "admin"},
    },
    "SillyTavern": {"model": "", "seed": -1, "top_k": 0, "top_p": 1, "n": None, "logprobs": True, "top_logprobs": 10},
    "LibreChat": {"user": "1", "n": 1, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": None, "stop": None},
    "Continue": {"prediction": None, "tools": [], "stop": None, "frequency_penalty": None},
    "LM Studio's examples": {"max_tokens": -1, "temperature": 0.7},
    "vLLM's examples": {
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"thinking": False},
    },
    "LangChain": {"max_completion_tokens": 9, "top_logprobs": 0, "tools": [FUNCTION], "tool_choice": "none"},
    "of old": {"functions": [{"name": "f"}], "function_call": "none", "tool_choice": None},
}


@pytest.mark.parametrize("name", FRONTENDS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_frontends_send_is_answered(server, name, stream):
    response = server.post("/v1/chat/completions", json={**SENT, **FRONTENDS[name], "stream": stream})
    assert response.status_code == 200 and "friend 🙂." in response.text


def test_minus_one_is_no_limit(recorded):
    client, engine = recorded
    for name in ("max_tokens", "max_completion_tokens"):
        client.post("/v1/chat/completions", json=chat(top_k=-1, **{name: -1}))
        assert (engine.asked.sampling.top_k, engine.asked.sampling.max_tokens) == (0, 2**31 - 1)


def test_messages_in_the_order_that_frontends_send(server):
    """The first two are SillyTavern's: a greeting, and instructions after the history."""
    user, assistant, system = "user", "assistant", "system"
    greeted = rendered(server, (system, "S"), (system, "T"), (assistant, "Good day."), (user, "q"))
    assert greeted == rendered(server, (system, "S\n\nT"), (user, OPENING), (assistant, "Good day."), (user, "q"))
    late = rendered(server, (system, "S"), (user, "q"), (assistant, "a"), (user, "r"), (system, "Be brief."))
    assert late == rendered(server, (system, "S"), (user, "q"), (assistant, "a"), (user, "r\n\nBe brief."))
    between = rendered(server, (user, "q"), (assistant, "a"), (system, "Be brief."), (user, "r"), (system, ""))
    assert between == rendered(server, (user, "q"), (assistant, "a"), (user, "Be brief.\n\nr"))
    assert rendered(server, (system, "S"), (system, "T")) == rendered(server, (user, "S\n\nT"))


def test_a_message_of_the_assistants_that_comes_last_is_gone_on_with(server):
    asked = rendered(server, ("system", "S"), ("user", "q"))
    assert rendered(server, ("system", "S"), ("user", "q"), ("assistant", "It is")) == asked + "It is"
    assert rendered(server, ("assistant", "It is")) == rendered(server, ("user", OPENING)) + "It is"


def test_what_is_left_out_is_counted_in_the_clients_messages():
    engine = ScriptedEngine(byte_tokenizer(), script, max_context=200)
    messages = [{"role": "user" if n % 2 else "assistant", "content": "x" * 20} for n in range(9)]
    with asking(engine) as client:
        for sent in (messages, messages[1:]):
            left_out = client.post("/v1/chat/completions", json=chat(messages=sent, truncation="auto")).json()[
                "left_out"
            ]
            read = client.post("/v1/tokenize", json={"messages": sent[left_out:]}).json()["tokens"]
            assert engine.asked.prompt == read and sent[left_out]["role"] == "user"
        short = chat(messages=[messages[0], messages[1]], truncation="auto")
        assert "left_out" not in client.post("/v1/chat/completions", json=short).json()


def half(name: str) -> st.SearchStrategy[str]:
    """One half of a special token's name, cut anywhere."""
    cut = st.integers(1, len(name) - 1)
    return cut.map(lambda place: name[:place]) | cut.map(lambda place: name[place:])


LOOK_ALIKES = [
    alike(name)
    for name in SPECIAL_TOKENS
    for alike in (
        lambda name: name.replace("<", "＜").replace(">", "＞"),
        lambda name: name.replace("|", "｜"),
        lambda name: f"{name[:4]}\u200b{name[4:]}",
        str.upper,
        lambda name: name.replace("|", " | "),
    )
]
names = st.sampled_from(SPECIAL_TOKENS)
pieces = names | names.flatmap(half) | st.sampled_from(LOOK_ALIKES) | st.text(max_size=5)
spelled = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(str.strip)


@pytest.fixture(scope="module")
def recorded():
    engine = ScriptedEngine(byte_tokenizer(), lambda prompt: say("ok"))
    with TestClient(create_app(engine, engine.tokenizer, Settings(host="testserver"))) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client, engine


def every_field(text: str) -> dict:
    """A request that has the text wherever a client can put one."""
    answer = [{"type": kind, "text": text} for kind in ("text", "python", "python_output")]
    messages = [{"role": role, "content": text, "name": text} for role in ("system", "user")]
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    schema = {"name": text, "description": text, "schema": {"enum": [text], "title": text}}
    form = {"type": "json_schema", "json_schema": schema}
    return {"messages": messages, "begin_with": text, "stop": [text[:256]], "response_format": form, "user": text}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spelled)
def test_special_tokens_are_inert_in_every_field(recorded, text):
    client, engine = recorded
    prompts = []
    for one in (text, "x"):
        response = client.post("/v1/chat/completions", json=every_field(one))
        assert response.status_code == 200, response.text
        prompts.append([id for id in engine.asked.prompt if id >= 256])
    assert prompts[0] == prompts[1] and len(prompts[0]) == 12  # the frame's own, and no other
    client.post("/v1/chat/completions", json=every_field(text))
    sampling, end = engine.asked.sampling, engine.tokenizer.special["<|assistant_end|>"]
    assert max(sampling.begin) < 256 and sampling.stop == (text[:256],)
    grammar, said = sampling.grammar.copy(), []
    while (allowed := grammar.allowed().nonzero()[0].tolist()) != [end]:  # what may be said is the text, byte by byte
        assert max(allowed) < 256
        said.append(allowed[0])
        grammar.take(said[-1])
    assert json.loads(bytes(said)) == text
    for prompt in (text, ["x", text]):
        assert client.post("/v1/completions", json={"prompt": prompt, "stop": text[:256]}).status_code == 200
        assert max(engine.asked.prompt[1:]) < 256 and engine.asked.prompt[0] == engine.tokenizer.bos_id
    assert max(client.post("/v1/tokenize", json={"text": text}).json()["tokens"]) < 256
    heard = Answer(engine.tokenizer, Sampling())
    heard.hear(text)
    assert [id for id in heard.forced if id >= 256] == [heard.forced[0], heard.forced[-1]]


# ---------------------------------------------------------------------------------------------------------------------
# Who may ask


def test_only_local_names_are_answered(server):
    for host, status in {
        "localhost:80": 200,
        "127.0.0.1": 200,
        "[::1]:9": 200,
        "evil.example": 403,
        "localhost.evil.example": 403,
        "": 403,
    }.items():
        assert server.get("/health", headers={"Host": host}).status_code == status, host


def test_an_update_is_seen_at_once(server):
    """A browser that is told nothing keeps scripts for days, and then an old one meets a new page."""
    for path in ("/", "/training", "/ui/chat.js", "/ui/theme.css"):
        first = server.get(path)
        assert first.headers["cache-control"] == "no-cache"
    again = server.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.headers["cache-control"] == "no-cache"


def test_head_says_what_get_says_without_the_body(server):
    for path in ("/", "/health", "/training", "/ui/chat.js", "/v1/models", "/metrics", "/nothing"):
        whole, head = server.get(path), server.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"") and whole.content
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert path == "/metrics" or head.headers["content-length"] == whole.headers["content-length"]
    assert server.head("/v1/chat/completions").status_code == 405
    assert server.get("/health").status_code == 200  # the connection is still in step


def test_security_headers(server):
    for path in ("/", "/ui/chat.js", "/v1/models", "/nothing"):
        headers = server.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert (
        "access-control-allow-origin"
        not in server.get("/v1/models", headers={"Origin": "https://evil.example"}).headers
    )


def test_a_key_guards_every_route_but_the_page_and_health():
    tokenizer = byte_tokenizer()
    options = Settings(api_key="sesame", host="0.0.0.0", cors_origin=("https://friend.example",))
    with asking(ScriptedEngine(tokenizer, script), options) as client:
        routes = [
            (method, path)
            for path, methods in client.get("/openapi.json", headers={"Authorization": "Bearer sesame"})
            .json()["paths"]
            .items()
            for method in methods
        ]
        assert len(routes) >= 7
        for method, path in [*routes, ("post", "/ui/render"), ("get", "/openapi.json"), ("get", "/nothing")]:
            wanted = 200 if path == "/health" else 401
            for headers in (
                {},
                {"Authorization": "Bearer sesam"},
                {"Authorization": "sesame"},
                {"Authorization": "Bearer é"},
            ):
                encoded = {name: value.encode("latin-1") for name, value in headers.items()}
                assert client.request(method, path, headers=encoded).status_code == wanted, path
        assert client.get("/").status_code == client.get("/ui/chat.js").status_code == 200
        assert client.get("/health", headers={"Host": "anything.example"}).status_code == 200
        key = {"Authorization": "Bearer sesame"}
        assert client.post("/v1/chat/completions", json=chat(), headers=key).status_code == 200
        browser = {  # what OpenAI's client has a browser ask first
            "Origin": "https://friend.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        }
        assert client.options("/v1/chat/completions", headers=browser).status_code == 200
        allowed = client.get("/v1/models", headers={**key, "Origin": "https://friend.example"}).headers
        assert allowed["access-control-allow-origin"] == "https://friend.example"
        assert "access-control-allow-credentials" not in allowed
        assert (
            "access-control-allow-origin"
            not in client.get("/v1/models", headers={**key, "Origin": "https://evil.example"}).headers
        )


# ---------------------------------------------------------------------------------------------------------------------
# Who leaves, who is slow, who is too many, and what breaks


def metrics(client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def wait_until(condition) -> None:
    """A slow machine takes its time: what must not happen too late is seen by what else has not happened yet."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 60, "it did not happen"
        time.sleep(0.02)


def slow_server(slots: int = 2, max_queue: int = 2, **options):
    engine = ScriptedEngine(byte_tokenizer(), script, slots=slots, pace=0.01)
    return asking(engine, Settings(max_queue=max_queue, **options))


def raw_post(client: httpx.Client, body: dict, receive_buffer: int | None = None) -> socket.socket:
    """A connection that has asked, and from which nobody has read yet."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", client.base_url.port))
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    connection.sendall(f"{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


LONG = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 2000}


def test_a_call_of_which_one_prompt_is_too_long_leaves_nothing_in_the_queue():
    with slow_server() as client:
        answer = client.post("/v1/completions", json={"prompt": ["hello", "x" * 5000]})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        wait_until(lambda: metrics(client)["nanochat_waiting"] == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_also_in_the_queue(stream):
    with slow_server() as client:
        leavers = [raw_post(client, {**LONG, "stream": stream}) for _ in range(4)]  # two in slots, two in the queue
        wait_until(lambda: (now := metrics(client))["nanochat_running"] == 2 and now["nanochat_waiting"] == 2)
        for leaver in leavers[2:]:
            leaver.close()
        wait_until(lambda: metrics(client)["nanochat_waiting"] == 0)
        for leaver in leavers[:2]:
            leaver.close()
        wait_until(lambda: metrics(client)["nanochat_running"] == 0)
        assert metrics(client)["nanochat_generated_tokens_total"] < LONG["max_tokens"]  # none went on to its end
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def engine_that_programs(code: str, output: str) -> Engine:
    """Says HELLO's answer: a program, and "done" behind where the output comes."""
    tokenizer = byte_tokenizer()
    before = len(tokenizer.render_for_completion({"messages": HELLO})) - 1
    start, end = (tokenizer.special[name] for name in ("<|python_start|>", "<|python_end|>"))
    answer = [start, *code.encode(), end, *b"?" * (len(output) + 2), *b"done", tokenizer.special["<|assistant_end|>"]]
    return Engine(Scripted(tokenizer.vocab_size, [0] * before + answer), tokenizer, max_batch=2)


def test_a_program_runs_only_where_it_was_asked_for():
    for python, output in ((True, "3"), (False, "error")):
        engine = engine_that_programs("n = 1\nprint(n + 2)", output)
        with asking(engine, Settings(python=python)) as client:
            message = client.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]
            assert message["content"] == "done" and message["parts"][1] == {"type": "python_output", "text": output}


def test_who_leaves_while_a_program_runs_frees_the_place_and_kills_it():
    engine = engine_that_programs("while True: pass", "")
    with asking(engine, Settings(python=True)) as client:
        leaver = raw_post(client, chat(stream=True))
        wait_until(lambda: engine.paused)
        program = engine.paused[0].program
        whole = client.post("/v1/chat/completions", json=chat(tool_choice="none")).json()
        assert whole["choices"][0]["finish_reason"] == "stop" and program.output is None  # nobody waited for it
        leaver.close()
        wait_until(lambda: metrics(client)["nanochat_running"] == 0)
        wait_until(lambda: program.output is not None)
        assert "SIGKILL" in program.output


def test_over_capacity_is_told_to_come_back():
    with slow_server(slots=1, max_queue=1) as client:
        with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True, "n": 2}) as busy:
            lines = busy.iter_lines()
            next(lines)
            refused = client.post("/v1/chat/completions", json=chat())
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 200)


def test_a_reader_that_stops_slows_nobody():
    with slow_server(patience=1.0) as client:
        frozen = raw_post(client, {**LONG, "stream": True}, receive_buffer=4096)
        wait_until(lambda: metrics(client)["nanochat_running"] == 1)
        for _ in range(5):
            assert (
                client.post("/v1/chat/completions", json=chat())
                .json()["choices"][0]["message"]["content"]
                .startswith("Hello")
            )
        frozen.close()
        wait_until(lambda: metrics(client)["nanochat_running"] == 0)
        slow = socket.create_connection(("127.0.0.1", client.base_url.port))
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(10)
        slow.recv(65536)  # the server answers or hangs up instead of waiting for ever
        slow.close()


def test_a_reader_that_never_reads_is_hung_up_on(caplog):
    engine = ScriptedEngine(byte_tokenizer(), lambda prompt: say(*["x" * 4000] * 4000))  # 16 MB: more than buffers hold
    with caplog.at_level(logging.INFO, logger="nanochat.server"), asking(engine, Settings(patience=0.5)) as client:
        frozen = raw_post(client, chat(stream=True, max_tokens=4000), receive_buffer=4096)
        wait_until(lambda: "a client stopped reading" in caplog.text)
        received = b""
        while data := frozen.recv(1 << 16):
            received = (received + data)[-100:]
        assert received and b"[DONE]" not in received
        frozen.close()


def test_several_engines_share_the_work_and_one_that_dies_leaves_the_others():
    tokenizer = byte_tokenizer()
    engines = [BrokenEngine(tokenizer, script, slots=2, pace=0.01) for _ in range(2)]
    with serve(engines, tokenizer, Settings(max_queue=1)) as url, httpx.Client(base_url=url, timeout=60) as client:
        busy = []
        for count in range(1, 5):  # one to each in turn, although one could take two
            busy.append(raw_post(client, {**LONG, "stream": True}))
            wait_until(lambda: metrics(client)["nanochat_running"] == count)  # noqa: B023
            assert sorted(len(engine.running) for engine in engines) == [count // 2, count - count // 2]
        assert metrics(client)["nanochat_slots"] == 4
        busy += [raw_post(client, {**LONG, "stream": True}) for _ in range(2)]
        wait_until(lambda: metrics(client)["nanochat_waiting"] == 2)
        assert client.post("/v1/chat/completions", json=chat()).status_code == 429
        for connection in busy:
            connection.close()
        wait_until(lambda: metrics(client)["nanochat_running"] == 0)
        die = {"messages": [{"role": "user", "content": "die"}]}
        assert client.post("/v1/chat/completions", json=die).status_code == 503
        assert client.get("/health").status_code == 200
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        assert client.post("/v1/chat/completions", json=die).status_code == 503
        assert client.get("/health").status_code == 503


class BrokenEngine(ScriptedEngine):
    """Dies whole on "die", fails one answer on "fail"."""

    def step(self):
        events = super().step()
        if any("die" in request.text for request in self.running):
            raise RuntimeError("the graphics card fell out")
        for place, (request, event) in enumerate(events):
            if "fail" in request.text and not isinstance(event, Completion):
                self.running.remove(request)
                events[place] = (
                    request,
                    Completion([], [], "", [], "error", None, len(request.prompt), 0, "a secret path"),
                )
        return events


def test_a_fault_of_one_answer_is_its_own_and_a_dead_engine_says_so(caplog):
    tokenizer = byte_tokenizer()
    ask = lambda text, **more: {"messages": [{"role": "user", "content": text}], **more}  # noqa: E731
    with asking(BrokenEngine(tokenizer, script, pace=0.005)) as client:
        with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as other:
            lines = other.iter_lines()
            next(lines)
            failed = client.post("/v1/chat/completions", json=ask("fail"))
            assert failed.status_code == 500 and "secret" not in failed.text
            streamed = client.post("/v1/chat/completions", json=ask("fail", stream=True))
            assert streamed.status_code == 200 and '"error"' in streamed.text and "[DONE]" not in streamed.text
            assert client.get("/health").status_code == 200
            died = client.post("/v1/chat/completions", json=ask("die"))
            assert died.status_code == 503 and died.json()["error"]["code"] == "engine_down"
            last = [line for line in lines if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert client.get("/health").status_code == 503
        assert client.get("/health").json() == {"status": "dead"}
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503
        assert metrics(client)["nanochat_up"] == 0
    assert "graphics card" in caplog.text


def test_health_is_503_until_the_engine_is_warm():
    class Slow(ScriptedEngine):
        def generate(self, prompts, sampling):
            warm.wait(10)

    warm, tokenizer = threading.Event(), byte_tokenizer()
    app = create_app(Slow(tokenizer, script), tokenizer, Settings(host="testserver"))
    with TestClient(app) as client:
        assert client.get("/health").status_code == 503
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503
        warm.set()
        wait_until(lambda: client.get("/health").status_code == 200)


def test_metrics_count_and_the_log_keeps_prompts_to_itself(caplog):
    engine = ScriptedEngine(byte_tokenizer(), script)
    with caplog.at_level(logging.DEBUG, logger="nanochat"), asking(engine) as client:
        for text in ("my secret diary", "forged\r\nline \x1b[31m"):
            assert (
                client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": text}])).status_code
                == 200
            )
        assert client.post("/v1/chat/completions", json=chat(seed="my secret diary")).status_code == 400
        now = metrics(client)
        assert (
            now["nanochat_up"] == 1
            and now["nanochat_answer_seconds_count"] == 2
            and now["nanochat_first_token_seconds_count"] == 2
        )
        assert now["nanochat_running"] == now["nanochat_waiting"] == 0 and now["nanochat_slots"] == 4
        assert now["nanochat_generated_tokens_total"] == 6
        assert 'nanochat_responses_total{status="400"} 1.0' in client.get("/metrics").text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("nanochat"))
    assert "secret diary" not in ours and "forged" not in ours


def test_many_streams_at_once_all_say_the_same(server):
    texts = []

    def read():
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            with client.stream(
                "POST", "/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 50}
            ) as response:
                events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        texts.append("".join(event["choices"][0]["delta"].get("content", "") for event in events))

    threads = [threading.Thread(target=read) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["word " * 50] * 24
