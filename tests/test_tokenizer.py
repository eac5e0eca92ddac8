"""The tokenizer: files, dtypes, decoding, and conversations spelled out token by token."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import bpe_chunks
from nanochat.tokenizer import SPECIAL_TOKENS, StreamDecoder, Tokenizer
from scripts import tok_eval

WORDS = "the cat sat on the mat, the dog sat on the log; hello world, hello there! 1 + 2 = 3. Über Köln 한국어 😀😀 "
user_text = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "bos", "the cat", "é😀"]) | st.text(max_size=8), max_size=8
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 20], 310)


def show(tokenizer: Tokenizer, ids) -> list[str]:
    return [tokenizer.decode([id]) for id in ids]


# ---------------------------------------------------------------------------------------------------------------------
# Text


def test_sizes(tokenizer):
    assert tokenizer.vocab_size == 310 == 256 + len(tokenizer.merges) + len(SPECIAL_TOKENS)
    assert tokenizer.bos_id == 310 - len(SPECIAL_TOKENS)
    assert list(tokenizer.special.values()) == list(range(301, 310))
    assert tokenizer.token_bytes().sum() == sum(map(len, tokenizer.vocabulary[:301]))
    assert tokenizer.token_bytes()[301:].sum() == 0
    assert tokenizer.encode("hello").dtype == np.uint16
    assert Tokenizer(np.array([[97, 98]] + [[256 + k, 97] for k in range(65536 - 265)])).encode("ab").dtype == np.uint32


@pytest.mark.parametrize("size", [0, 264, 1 << 21])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"vocab_size is {size}"):
        Tokenizer.train(["text"], size)


def test_a_short_text_gives_a_small_vocabulary():
    assert Tokenizer.train(["ab"], 1000).vocab_size == 256 + 1 + len(SPECIAL_TOKENS)
    assert Tokenizer.train([], 265).encode("hé").tolist() == list("hé".encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=8))
def test_there_and_back(tokenizer, texts):
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_there_and_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_threads_change_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr("nanochat.tokenizer.TASK_BYTES", 500)
    texts = [WORDS[k:] * (k % 5) for k in range(100)]
    one, four = tokenizer.encode_batch(texts, threads=1), tokenizer.encode_batch(texts, threads=4)
    assert (
        [ids.tolist() for ids in one] == [ids.tolist() for ids in four] == [tokenizer.encode(t).tolist() for t in texts]
    )


@pytest.mark.parametrize("ids", [[310], [-1], np.array([0, 9999])])
def test_ids_that_do_not_exist(tokenizer, ids):
    with pytest.raises(ValueError, match="from 0 to 309"):
        tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 309), max_size=40) | st.binary(max_size=40).map(list))
def test_streamed_text_is_the_whole_text(tokenizer, ids):
    stream = StreamDecoder(tokenizer)
    assert "".join([stream.add(id) for id in ids]) + stream.flush() == tokenizer.decode(ids)


def test_stream_holds_back_incomplete_characters(tokenizer):
    stream = StreamDecoder(tokenizer)
    assert [stream.add(byte) for byte in "a😀é".encode()] == ["a", "", "", "", "😀", "", "é"]
    assert [stream.add(0xF0), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.hash, loaded.special, loaded.vocabulary) == (tokenizer.hash, tokenizer.special, tokenizer.vocabulary)
    assert loaded.encode(WORDS).tolist() == tokenizer.encode(WORDS).tolist()
    assert tokenizer.hash != Tokenizer.train([WORDS], 309).hash


def test_hugging_face_reads_the_file(tokenizer, tmp_path):
    peers = pytest.importorskip("tokenizers")  # pip install tokenizers
    tokenizer.save(tmp_path / "tokenizer.json")
    peer = peers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [WORDS, "it'S 12345\n\n  \t x  don'ſ", "naïve\r\n한국어\u3000!!!", "", " ", "\x00\x7f"]:
        ids = peer.encode(text).ids
        assert ids == tokenizer.encode(text).tolist()
        assert peer.decode(ids) == text
    assert {name: peer.token_to_id(name) for name in SPECIAL_TOKENS} == tokenizer.special


def test_tiktoken_reads_the_export(tokenizer, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")  # pip install tiktoken
    from tiktoken.load import load_tiktoken_bpe

    tokenizer.save_tiktoken(tmp_path / "ranks.tiktoken")
    ranks = load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    peer = tiktoken.Encoding("x", pat_str=bpe_chunks.PATTERN, mergeable_ranks=ranks, special_tokens=tokenizer.special)
    assert peer.encode_ordinary(WORDS) == tokenizer.encode(WORDS).tolist()
    assert peer.n_vocab == tokenizer.vocab_size


def test_vocabularies_that_packages_carry(tokenizer, tmp_path, monkeypatch, capsys):
    """tok_eval reads them without importing the package, and says which cannot be used."""
    tokenizer.save(tmp_path / "tokenizer.json")
    ranks = [
        {"rank": id, "token_bytes": base64.b64encode(token).decode()} for id, token in enumerate(tokenizer.vocabulary)
    ]
    config = {"pattern": bpe_chunks.PATTERN, "default_vocab_size": 305, "default_num_special_tokens": 4}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": ranks}))
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "carrier-1.0.dist-info").mkdir()
    (tmp_path / "carrier-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    files = {"hugging": "tokenizer.json", "mistral": "tekken.json", "bad": "broken.json", "": "folder"}
    monkeypatch.setattr(tok_eval, "CARRIED", [("absent", "x", "x"), *(("carrier", k, v) for k, v in files.items())])
    peers = tok_eval.find_peers()
    assert {"hugging", "mistral"} <= peers.keys() and "bad" not in peers
    for name, size in (("hugging", 310), ("mistral", 305)):
        found, count, package = peers[name]
        assert (found, count(WORDS), package) == (size, len(tokenizer.encode(WORDS)), "carrier")
    assert "The vocabulary in carrier cannot be used: " in capsys.readouterr().out


def test_no_file(tmp_path):
    with pytest.raises(SystemExit, match=r"scripts\.tok_train"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def damage(change) -> str:
    value = Tokenizer(np.array([[97, 98], [256, 99]])).to_json()
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Expecting value"),
        ("[]", "not a tokenizer"),
        ("{}", "model"),
        (damage(lambda v: v["model"]["nanochat"].update(version=2)), "version is 2"),
        (damage(lambda v: v["model"].pop("nanochat")), "nanochat"),
        (damage(lambda v: v["model"]["merges"].pop()), "hash"),
        (damage(lambda v: v["model"]["merges"].reverse()), "does not exist yet"),
        (damage(lambda v: v["model"]["merges"].append(["a", "nothing"])), "nothing"),
        (damage(lambda v: v["model"]["vocab"].update(a="x")), "tokenizer that this program"),
        (damage(lambda v: v["added_tokens"].reverse()), "special tokens"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, problem):
    (tmp_path / "broken.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"(?s)broken\.json.*{problem}"):
        Tokenizer.load(tmp_path / "broken.json")


# ---------------------------------------------------------------------------------------------------------------------
# Conversations

WORKED = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+2?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "So"},
                {"type": "python", "text": "1+2"},
                {"type": "python_output", "text": "3"},
                {"type": "text", "text": "3"},
            ],
        },
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "no"},
    ]
}


def test_a_worked_conversation():
    bytes_only = Tokenizer(np.empty((0, 2)))
    ids, mask = bytes_only.render_conversation(WORKED)
    learned = "".join("x" if yes else "." for yes in mask)
    assert bytes_only.decode(ids) == (
        "<|bos|><|user_start|>Be brief.\n\n1+2?<|user_end|><|assistant_start|>So<|python_start|>1+2<|python_end|>"
        "<|output_start|>3<|output_end|>3<|assistant_end|><|user_start|>ok<|user_end|><|assistant_start|>no<|assistant_end|>"
    )
    assert (
        learned == "." * (2 + 15 + 1 + 1) + "xx" + "x" + "xxx" + "x" + "..." + "x" + "x" + "." * (1 + 2 + 1 + 1) + "xxx"
    )
    assert (ids.dtype, mask.dtype, ids.shape) == (np.uint16, np.bool_, mask.shape)


def test_completion_leaves_out_the_reference_answer(tokenizer):
    ids, _ = tokenizer.render_conversation(WORKED)
    prompt = tokenizer.render_for_completion(WORKED)
    assert prompt.tolist() == ids[: len(prompt)].tolist()
    assert show(tokenizer, prompt)[-2:] == ["<|user_end|>", "<|assistant_start|>"]
    assert prompt.tolist() == tokenizer.render_for_completion({"messages": WORKED["messages"][:-1]}).tolist()
    assert prompt.dtype == ids.dtype


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=9), st.booleans(), st.integers(0, 200))
def test_the_oldest_turns_make_room(tokenizer, texts, instructed, context):
    """Beside the obvious way: leave out one turn more until it fits."""
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    turns = turns[: len(turns) - 1 + len(turns) % 2]  # the last one is a question
    head = [{"role": "system", "content": "Be brief."}] if instructed else []
    for left_out in range(0, len(turns), 2):
        expected = tokenizer.render_for_completion({"messages": head + turns[left_out:]})
        if len(expected) <= 3 * context // 4 - 5:
            break
    ids, found = tokenizer.render_recent({"messages": head + turns}, context, begun=5)
    assert (ids.tolist(), found) == (expected.tolist(), left_out)


@settings(max_examples=200, deadline=None)
@given(user_text.map("".join), user_text.map("".join))
def test_special_tokens_are_inert_in_text(tokenizer, question, answer):
    assert all(id < tokenizer.bos_id for id in tokenizer.encode(question))
    conversation = {
        "messages": [{"role": "user", "content": question + "?"}, {"role": "assistant", "content": answer + "!"}]
    }
    ids, mask = tokenizer.render_conversation(conversation)
    special = [name for name in show(tokenizer, [id for id in ids if id >= tokenizer.bos_id])]
    assert special == ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"]
    assert tokenizer.decode(ids[mask]) == answer + "!<|assistant_end|>"


user, assistant, system = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        ([assistant], "Message 0 .*'assistant'.*'user'"),
        ([user, user], "Message 1 .*'user'.*'assistant'"),
        ([user, assistant, assistant], "Message 2"),
        ([user, system], "Message 1 .*'system'"),
        ([system], "Message 0 .*no user message"),
        ([system, assistant], "Message 1"),
        ([user, "hi"], "Message 1 .*role"),
        ([user, {"role": "assistant"}], "Message 1 .*role"),
        ([{"role": "user", "content": ""}], "Message 0 .*is empty"),
        ([user, {"role": "assistant", "content": []}], "Message 1 .*is empty"),
        ([{"role": "user", "content": None}], "Message 0 .*NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "Message 0 .*list"),
        ([{"role": "system", "content": ["x"]}, user], "Message 0 .*string"),
        ([user, {"role": "assistant", "content": ["x"]}], "Message 1 .*part"),
        ([user, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "Message 1 .*'image'"),
        ([user, {"role": "assistant", "content": [{"type": "text", "text": 3}]}], "Message 1 .*string"),
    ],
)
def test_malformed_conversations_name_the_message(tokenizer, messages, problem):
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        tokenizer.render_conversation({"messages": messages})


def test_malformed_prompts(tokenizer):
    for conversation in (None, {}, {"messages": []}, {"messages": [assistant]}, {"messages": [user, user]}):
        with pytest.raises(ValueError, match="conversation"):
            tokenizer.render_for_completion(conversation)
