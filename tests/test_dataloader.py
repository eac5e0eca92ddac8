"""Packing loses nothing, positions lead back to the same batches, ranks share the rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import Dist
from nanochat.dataloader import SMALL_GAP, Batches, ChatSource, DocumentSource, Rows, pack
from scripts.base_train import tokens_of


def items(lengths):
    """Items of globally distinct ids, the first of each unmasked, as documents are."""
    start, result = 100, []
    for n in lengths:
        result.append((np.arange(start, start + n), np.arange(n) > 0))
        start += n
    return result


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=30), st.integers(9, 40))
def test_with_split_every_token_is_a_target_once_and_follows_its_predecessor(lengths, T):
    packed = pack(items(lengths), T, pad=0, split=True)
    learned = packed.targets[packed.targets >= 0]
    expected = np.concatenate([ids[1:] for ids, _ in items(lengths)] or [np.zeros(0, int)])
    assert sorted(learned) == sorted(expected)
    assert (packed.targets - packed.inputs)[packed.targets >= 0].tolist() == [1] * len(learned)
    assert (packed.targets >= 0).any(axis=1).all() if len(packed.inputs) else True
    # Only the rows at the end may have large gaps.
    gaps = (packed.inputs == 0).sum(axis=1)
    assert (gaps > SMALL_GAP).sum() <= 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=30), st.integers(9, 40))
def test_without_split_items_are_whole_or_left_out_and_counted(lengths, T):
    packed = pack(items(lengths), T, pad=0, split=False)
    usable = [(ids, mask) for ids, mask in items(lengths) if len(ids) > 1]
    kept = [ids for ids, _ in usable if len(ids) <= T + 1]
    assert packed.skipped == len(usable) - len(kept)
    assert sorted(packed.targets[packed.targets >= 0]) == sorted(np.concatenate([i[1:] for i in kept] or [np.zeros(0)]))
    assert (packed.targets >= 0).any(axis=1).all() if len(packed.inputs) else True


def test_packing_is_dense():
    lengths = np.random.default_rng(0).integers(2, 400, 500)
    packed = pack(items(lengths), 256, pad=0, split=True)
    assert (packed.targets >= 0).mean() > 0.95


class Numbers:
    """A source of shards of blocks of rows that name themselves."""

    def __init__(self, rows=((5, 3), (4,)), T=2):
        self.rows, self.T, self.shards = rows, T, len(rows)

    def blocks(self, epoch, shard):
        return len(self.rows[shard])

    def block(self, epoch, shard, block):
        values = 1000 * epoch + 200 * shard + 100 * block + np.arange(self.rows[shard][block])
        return Rows(np.repeat(values[:, None], self.T, axis=1), np.repeat(values[:, None], self.T, axis=1))


def names(step):
    return [int(v) for batch in step for v in batch.inputs[:, 0] if batch.targets.max() >= 0]


def test_an_epoch_ends_exactly_and_the_last_step_is_filled_up():
    steps = list(Batches(Numbers(), rows=5, device_rows=2, epochs=1))
    assert [len(batch.inputs) for batch in steps[0]] == [2, 2, 1]
    seen = [int(i) for step in steps for b in step for i, t in zip(b.inputs[:, 0], b.targets[:, 0]) if t >= 0]
    assert seen == [0, 1, 2, 3, 4, 100, 101, 102, 200, 201, 202, 203]
    assert sum(len(b.inputs) for b in steps[-1]) == 5


def test_no_block_is_made_that_nobody_reads(monkeypatch):
    made, source = [], Numbers()
    monkeypatch.setattr(source, "block", lambda *place: made.append(place) or Numbers.block(source, *place))
    list(Batches(source, rows=5, device_rows=5, epochs=1))
    assert made == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]


def test_progress_ends_at_one_and_never_falls():
    batches = Batches(Numbers(), rows=5, device_rows=5, epochs=2)
    seen = [batches.progress for _ in batches]
    assert seen == sorted(seen) and seen[-1] == 1.0 and 0 < seen[0] < 0.5


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_position_leads_back_to_the_same_batches_on_any_number_of_ranks(stop):
    def take(batches, count):
        iterator = iter(batches)
        return [names(next(iterator)) for _ in range(count)]

    whole = take(Batches(Numbers(), rows=4, device_rows=4), 8)
    first = Batches(Numbers(), rows=4, device_rows=4)
    take(first, stop)
    position = json.loads(json.dumps(first.position))
    ranks = [Batches(Numbers(), 4, 4, Dist(rank, rank, 2), position=position) for rank in range(2)]
    halves = [take(batches, 8 - stop) for batches in ranks]
    assert [a + b for a, b in zip(*halves)] == whole[stop:]


def test_a_source_without_rows_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match="no row"):
        next(iter(Batches(Numbers(rows=((0,), (0,))), rows=2, device_rows=2)))


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 rows"):
        Batches(Numbers(), rows=3, device_rows=3, dist=Dist(0, 0, 2))


def test_documents_are_all_there_in_every_epoch_in_another_order(tiny_tokenizer, tmp_path):
    texts = [f"The grass of meadow {number} is green." for number in range(60)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "shard.parquet", row_group_size=6)
    source = DocumentSource(tiny_tokenizer, [tmp_path / "shard.parquet"], 32, 0)

    assert source.tokens() == 60 + sum(map(len, tiny_tokenizer.encode_batch(texts)))
    assert tokens_of(source, Dist()) == source.tokens()

    def epoch(number):
        rows = [source.block(number, 0, block) for block in range(source.blocks(number, 0))]
        return np.concatenate([r.targets for r in rows])

    first, second = epoch(0), epoch(1)
    blocks = [[sorted(source.block(e, 0, b).targets.ravel()) for b in range(source.blocks(e, 0))] for e in (0, 1)]
    assert blocks[0] == blocks[1], "what comes again should come a whole pass later, so blocks keep their order"
    expected = sorted(int(i) for text in texts for i in tiny_tokenizer.encode(text))
    assert sorted(first[first >= 0]) == expected == sorted(second[second >= 0])
    assert first.tolist() != second.tolist() and first.tolist() == epoch(0).tolist()


def test_only_what_the_assistant_says_is_learned(tiny_tokenizer):
    chat = {"messages": [{"role": "user", "content": "Is grass green?"}, {"role": "assistant", "content": "Yes."}]}
    rows = ChatSource(tiny_tokenizer, [chat] * 5, 64, None).block(0, 0, 0)
    learned = rows.targets[rows.targets >= 0]
    once = [*tiny_tokenizer.encode("Yes.").tolist(), tiny_tokenizer.special["<|assistant_end|>"]]
    assert learned.tolist() == once * 5
    assert isinstance(next(iter(Batches(ChatSource(tiny_tokenizer, [chat], 64, None), 1, 1)))[0].inputs, torch.Tensor)


def chat(*lengths):
    """A conversation of exchanges whose answers have so many words."""
    messages = []
    for number, length in enumerate(lengths):
        messages += [{"role": "user", "content": f"Question {number}?"}]
        messages += [{"role": "assistant", "content": "word " * length + f"end {number}."}]
    return {"messages": messages}


def test_long_conversations_end_after_an_answer_or_are_left_out_and_counted(tiny_tokenizer):
    conversations = [chat(1, 1), chat(2, 1, 60), chat(60, 1), chat(1, 60, 1)]
    batches = Batches(ChatSource(tiny_tokenizer, conversations, 64, None), 1, 1, epochs=1)
    learned = np.concatenate([b.targets[b.targets >= 0].numpy() for step in batches for b in step])
    expected = [answer for c in (chat(1, 1), chat(2, 1), chat(1)) for answer in c["messages"][1::2]]
    end = [tiny_tokenizer.special["<|assistant_end|>"]]
    assert sorted(learned) == sorted(i for a in expected for i in [*tiny_tokenizer.encode(a["content"]), *end])
    assert (batches.position["skipped"], batches.position["cut"], batches.progress) == (1, 2, 1.0)


def test_counts_of_what_was_left_out_survive_a_resume(tiny_tokenizer):
    conversations = [chat(n % 7, 60 * (n % 3)) for n in range(1100)]  # three blocks

    def new(position=None):
        return Batches(ChatSource(tiny_tokenizer, conversations, 64, 0), 4, 4, epochs=1, position=position)

    whole = new()
    positions = [dict(whole.position) for _ in whole]
    assert positions[-1]["cut"] == sum(n % 3 > 0 for n in range(1100)) and positions[-1]["skipped"] == 0
    for place in (0, len(positions) // 2, len(positions) - 2):
        rest = new(json.loads(json.dumps(positions[place])))
        assert [dict(rest.position) for _ in rest] == positions[place + 1 :]
