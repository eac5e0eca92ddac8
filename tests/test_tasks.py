"""The chat data: what is held out stays out, every item can be rendered, and right answers are told from wrong ones."""

import copy
import itertools
import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
from corpus import require_corpus

from nanochat import dataset
from nanochat.encyclopedia import NOTHING, look_up
from nanochat.execution import calculate
from tasks import mixtures
from tasks.arithmetic import FOUR, FURTHER, PHRASINGS, Arithmetic, last_number
from tasks.common import Task, TaskMixture, exchange, generator, render_multiple_choice, split_of, visible_text
from tasks.customjson import CustomJSON
from tasks.identity import SUBJECTS, Identity
from tasks.mental import APART, MentalArithmetic
from tasks.spelling import LetterCount, Spelling
from tasks.wiki import TOPICS, Topic, WhatIs, read_subject

require_corpus()

KINDS = (Arithmetic, MentalArithmetic, LetterCount, Spelling, Topic, Identity, WhatIs)
WRONG = {
    "Arithmetic": "12 * 34 = 407.",
    "MentalArithmetic": "99",
    "LetterCount": 'The letter "r" appears 77 times.',
    "Spelling": "s t r a w b e r y",
    "Topic": "E",
    "Identity": "Yes, of course.",
    "WhatIs": "The Moon is a town.",
}


@dataclass
class Reply:
    text: str
    parts: list[dict]

    @classmethod
    def of(cls, content) -> "Reply":
        return cls(visible_text(content), [{"type": "text", "text": content}] if isinstance(content, str) else content)


@pytest.fixture(scope="module")
def tasks() -> dict[tuple[str, str], Task]:
    return {(kind.name, split): kind(split) for kind in KINDS for split in kind.splits}


def sample(task: Task, count: int = 300) -> list[dict]:
    return [task[i] for i in range(count if task.endless else min(count, len(task)))]


# ---------------------------------------------------------------------------------------------------------------------
# All tasks


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_item_is_a_question_and_its_answer(tasks, tiny_tokenizer, kind, split):
    task = tasks[kind.name, split]
    assert len(task) > 100 and task.kind in ("categorical", "generative")
    for conversation in sample(task):
        assert [m["role"] for m in conversation["messages"]] == ["user", "assistant"]
        ids, mask = tiny_tokenizer.render_conversation(conversation)
        assert len(ids) == len(mask) and mask.any()
        for message in conversation["messages"]:
            text = visible_text(message["content"])
            assert text == text.strip() and text.isprintable() or "\n" in text
            assert not re.search(r"[{}]|<\|", text)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_grade_takes_the_reference_and_no_wrong_answer(tasks, kind):
    task = tasks[kind.name, "test"]
    for conversation in sample(task, 500):
        reference = conversation["messages"][-1]["content"]
        assert task.grade(conversation, Reply.of(reference)), (conversation, "its own reference is refused")
        assert not task.grade(conversation, Reply.of(WRONG[kind.name])), conversation
        assert not task.grade(conversation, Reply.of("")), conversation


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_items_are_the_same_whenever_they_are_asked_for(tasks, kind):
    for split in ("train", "test"):
        again = kind(split)
        indices = range(50) if split == "test" else [0, 7, 99, 10**6 + 3 if again.endless else 5]
        assert [again[i] for i in indices] == [tasks[kind.name, split][i] for i in indices]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_split_has_a_name(kind):
    with pytest.raises(ValueError, match="auxiliary"):
        kind("auxiliary")


def test_random_numbers_depend_on_the_keys_alone():
    assert generator("a", 1).integers(10**9) == generator("a", 1).integers(10**9) == 75417522
    assert generator("a", 11).integers(10**9) != generator("a1", 1).integers(10**9)


# ---------------------------------------------------------------------------------------------------------------------
# Held out


def test_no_article_of_the_test_is_trained_on(tasks):
    for name in ("WhatIs", "Topic"):
        train, test = tasks[name, "train"], tasks[name, "test"]
        seen = {train[i]["title"] for i in range(0, len(train), 10)}
        asked = {test[i]["title"] for i in range(len(test))}
        assert len(seen) == -(-len(train) // 10) and len(asked) == len(test), "a pass takes every article once"
        assert all(dataset.is_held_out(title) for title in asked)
        assert not any(dataset.is_held_out(title) for title in seen)


def test_no_word_of_the_test_is_trained_on(tasks):
    train = {word for n in ("Spelling", "LetterCount") for i in range(800) for word in tasks[n, "train"][i]["words"]}
    test = {word for n in ("Spelling", "LetterCount") for i in range(300) for word in tasks[n, "test"][i]["words"]}
    assert len(train) > 1000 and len(test) > 200 and not train & test
    assert all(dataset.is_held_out(word, 0.1) for word in test) and not any(dataset.is_held_out(w, 0.1) for w in train)
    assert all(re.fullmatch("[a-z]{3,9}", word) for word in train | test)


def test_no_pair_of_operands_of_the_test_is_trained_on(tasks):
    for kind in (Arithmetic, MentalArithmetic):
        pairs = [{frozenset(tasks[kind.name, s][i]["operands"]) for i in range(600)} for s in kind.splits]
        assert all(pairs) and not any(a & b for a, b in itertools.combinations(pairs, 2))


@pytest.mark.parametrize("split", Arithmetic.splits)
def test_operands_of_every_operation_are_held_out(tasks, split):
    """Whatever the operation: 17 squared, 17 to the power of 2 and 2 + 17 are in the same split."""
    task, met = tasks["Arithmetic", split], set()
    for operation in (*FOUR, *FURTHER):
        rng = generator(operation.answer, split)
        for _ in range(50):
            operands = task.draw_operands(rng, operation)
            met.add((operation.answer, operands))
            assert split_of(" ".join(map(str, sorted(operands)))) == split
            assert split == "train" or operation in FURTHER or all(10 <= number <= 9999 for number in operands)
    assert len(met) > {"train": 350, "validation": 250, "test": 300}[split]
    asked = [task[i] for i in range(300)]
    assert all(split_of(" ".join(map(str, sorted(item["operands"])))) == split for item in asked)


def test_nothing_is_divided_by_zero(tasks):
    """The calculator refuses; that, too, is learned, and no number is a right answer to it."""
    task = tasks["Arithmetic", "train"]
    found = [task[i] for i in range(1500) if 0 in task[i]["operands"]]
    assert 5 < len(found) < 50
    for conversation in found:
        _, output, said = conversation["messages"][1]["content"]
        assert output["text"] == "error" and said["text"] == "Nothing can be divided by zero."
        assert task.grade(conversation, Reply.of(said["text"])) and not task.grade(conversation, Reply.of("5 / 0 = 0."))


def test_a_fifth_of_what_is_held_out_is_for_validation():
    splits = [split_of(f"word {n}") for n in range(20_000)]
    assert abs(splits.count("validation") / 20_000 - 0.02) < 0.005 and abs(splits.count("test") / 20_000 - 0.08) < 0.01
    assert all((split == "train") != dataset.is_held_out(f"word {n}", 0.1) for n, split in enumerate(splits))


def test_sums_in_the_head_offer_the_right_result_and_one_far_from_it(tasks):
    task, places = tasks["MentalArithmetic", "test"], []
    for conversation in sample(task, 500):
        question, answer = (message["content"] for message in conversation["messages"])
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        a, b, *offered = numbers
        assert (a, b) == conversation["operands"] and int(answer) in offered
        assert int(answer) == (a + b if "+" in question or "plus" in question else a - b)
        assert abs(offered[0] - offered[1]) >= APART
        places.append(offered.index(int(answer)))
        assert not task.grade(conversation, Reply(answer, [{"type": "python", "text": f"{a}+{b}"}]))
    assert 0.42 < sum(places) / 500 < 0.58


def test_phrasings_of_the_test_differ_in_their_words():
    """No test phrasing is one of training with a greeting, with other punctuation or in another case."""

    def bare(phrase: str) -> str:
        words = re.sub(r"[^a-z0-9 ]", "", phrase.lower()).split()
        return " ".join(words)

    openings = ("hi ", "hello ", "hey ", "okay ", "tell me ", "please ", "so ", "i wonder ", "and ")
    small_talk = ("hello", "thanks", "bye", "how")
    for key, subject in SUBJECTS.items():
        train = [bare(phrase) for phrase in subject.train.split("|")]
        test = [bare(phrase) for phrase in subject.test.split("|")]
        assert len(set(train)) == len(train) >= 25 and len(set(test)) == len(test) >= 8, key
        assert not set(train) & set(test), key
        if key not in small_talk:
            cut = lambda p: next((p.removeprefix(o) for o in openings if p.startswith(o)), p)  # noqa: E731
            assert not {cut(p) for p in train} & {cut(p) for p in test}, key


# ---------------------------------------------------------------------------------------------------------------------
# Each task


SUMS = {  # what a call looks like, the words that ask for it, Python's own result, how the answer begins
    r"(\d+)\+(\d+)": (r"\+|plus|sum|add", lambda a, b: a + b, "{0} + {1} ="),
    r"(\d+)-(\d+)": (r"-|minus|subtract", lambda a, b: a - b, "{0} - {1} ="),
    r"(\d+)\*(\d+)": (r"(?<!\*)\*(?!\*)|x|×|times|multipl|product", lambda a, b: a * b, "{0} * {1} ="),
    r"round\((\d+)/(\d+), 4\)": (r"/|÷|divide|quotient", lambda a, b: round(a / b, 4), "{0} / {1} ="),
    r"(\d+)\*\*(\d+)": (r"\^|\*\*|power|raised|square(?! root)|²", lambda a, b: a**b, "{0} "),
    r"(\d+)\*(\d+)/100": (r"%|percent", lambda a, b: a * b / 100, "{0}% of {1} is"),
    r"round\(sqrt\((\d+)\), 4\)": (
        r"sqrt|√|square root",
        lambda a: round(math.sqrt(a), 4),
        "The square root of {0} is",
    ),
}


@pytest.mark.parametrize("split", Arithmetic.splits)
def test_sums_are_right(tasks, split):
    """The call is what the question asks for, with its numbers in their order, and the answer names both."""
    met = dict.fromkeys(SUMS, 0)
    for conversation in sample(tasks["Arithmetic", split], 800):
        question, answer = (message["content"] for message in conversation["messages"])
        code, output, text = (part["text"] for part in answer)
        (form,) = (form for form in SUMS if re.fullmatch(form, code))
        _, work, beginning = SUMS[form]
        operands = tuple(map(int, re.fullmatch(form, code).groups()))
        assert operands == conversation["operands"]
        asked = list(map(int, re.findall("[0-9]+", question)))
        if "subtract" in question.lower():
            asked.reverse()
        assert operands == (*asked, *[2] * ("squared" in text))
        for other, (their, _, _) in SUMS.items():
            assert bool(re.search(their, question.lower())) == (other == form), question
        met[form] += 1
        if operands[-1] == 0:
            continue
        assert "**" not in code or int(output) < 10**7
        assert float(output) == work(*operands) and calculate(code) == output, code
        assert text.startswith(beginning.format(*operands)) and text.endswith(f" {output}.")
        assert last_number(text) == float(output)
    assert min(met.values()) > 20 and 0.17 < sum(list(met.values())[4:]) / 800 < 0.23


def test_half_of_the_divisions_and_roots_come_out_even(tasks):
    answers = [c["messages"][1]["content"] for c in sample(tasks["Arithmetic", "test"], 2000)]
    for call in ("/", "sqrt"):
        outputs = [output["text"] for code, output, _ in answers if re.match(rf"round.*{call}", code["text"])]
        assert 0.4 < sum("." not in output for output in outputs) / len(outputs) < 0.65


def test_sums_are_asked_for_in_every_phrasing(tasks):
    """Whatever the operation, in each of its own words."""
    blank = lambda text: re.sub(r"[0-9]+|{[ab]}", "7", text)  # noqa: E731
    asked = {blank(c["messages"][0]["content"]) for c in sample(tasks["Arithmetic", "train"], 5000)}
    for operation in (*FOUR, *FURTHER):
        words = {"{spoken}": operation.spoken, "{written}": operation.written, "{command}": (operation.command,)}
        for slot, ways in words.items():
            phrasings = [phrasing for phrasing in PHRASINGS if slot in phrasing]
            met = [(p, way) for p in phrasings for way in ways if blank(p.replace(slot, way)) in asked]
            assert {p for p, _ in met} == {*phrasings} and {way for _, way in met} == {*ways}
    assert {"What's 7+7?", "what is 7% of 7?", "sqrt(7)", "what's 7 plus 7"} <= asked


@pytest.mark.parametrize(
    "text, number",
    [("12 * 34 = 408.", 408.0), ("5 - 7 = -2.", -2.0), ("about 0.3333", 0.3333), ("1,234", 1234.0), ("none", None)],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_letters_are_counted_and_spelled(tasks):
    counts, asked = [], set()
    for i in range(400):
        conversation = tasks["LetterCount", "test"][i]
        code, output, _ = (part["text"] for part in conversation["messages"][-1]["content"])
        word, letter = re.fullmatch(r'("[ ]?[a-z]+)"\.count\("([a-z])"\)', code).groups()
        question = conversation["messages"][0]["content"]
        assert re.search(rf"\b{letter}\b", question) and [word.strip('" ')] == conversation["words"]
        assert (word if word[1] != " " else word[1:]) in question, "the call repeats the word as it stands there"
        asked.add((word[1] != " ", f'"{letter}"' in question, f"{letter}'s" in question))
        assert int(output) == sum(c == letter for c in word)
        counts.append(int(output))
        spelled = tasks["Spelling", "test"][i]
        answer, by_tool = spelled["messages"][-1]["content"], '"' not in spelled["messages"][0]["content"]
        assert isinstance(answer, list) == by_tool
        assert visible_text(answer).replace(" ", "").split(";") == spelled["words"]
        assert not by_tool or calculate(answer[0]["text"]) == answer[1]["text"] == visible_text(answer)
        assert re.search(rf"\b{spelled['words'][0]}\b", spelled["messages"][0]["content"])
    ways = {(True, True, False), (True, False, False), (True, False, True), (False, False, False), (False, False, True)}
    assert asked == ways, "with quotes and without"
    assert abs(np.bincount(counts).max() / len(counts) - LetterCount.chance) < 0.05, "always saying 1 must not pay more"


def test_topics_cannot_be_guessed(tasks):
    task = tasks["Topic", "test"]
    places, topics = [], {a["title"]: a["topic"] for a in dataset.wiki_articles()}
    offered, right = {}, {}
    for i in range(len(task)):
        conversation = task[i]
        question, answer = (m["content"] for m in conversation["messages"])
        choices = [line[2:] for line in question.splitlines() if line.startswith("- ")]
        answer = answer.removeprefix("- ")
        assert answer == TOPICS[topics[conversation["title"]]]
        assert len(set(choices)) == 4
        places.append(choices.index(answer))
        for topic in choices:
            offered[topic] = offered.get(topic, 0) + 1
        right[answer] = right.get(answer, 0) + 1
    assert max(np.bincount(places)) < 0.35 * len(places)
    assert all(right[topic] < 0.5 * offered[topic] for topic in right), "no topic is right whenever it is offered"
    train = tasks["Topic", "train"]
    first, again = train[3], train[3 + len(train)]
    assert first["title"] == again["title"] and first["messages"] != again["messages"], "other choices in each pass"


def test_multiple_choice_has_one_form():
    assert (
        render_multiple_choice("Which?", "AB", ["this", "that"])
        == "Which?\n- this=A\n- that=B\nAnswer with one letter."
    )
    with pytest.raises(ValueError):
        render_multiple_choice("Which?", "AB", ["this"])


def test_subjects_are_read_from_first_sentences():
    article = lambda title, extract, topic="Arts": dict(title=title, extract=extract, description="", topic=topic)  # noqa: E731
    tower = read_subject(article("Lighthouse", "A lighthouse is a tower on a coast. It shines."))
    assert (tower.name, tower.verb, tower.person) == ("a lighthouse", "is", False)
    ada = read_subject(article("Ada Lovelace", "Augusta Ada King was an English mathematician.", "People"))
    assert (ada.name, ada.verb, ada.person) == ("Ada Lovelace", "was", True)
    folding = read_subject(article("Origami", "Origami is the art of folding paper. In origami one sheet is folded."))
    assert folding.name == "origami"
    sets = read_subject(article("Set (mathematics)", "In mathematics, a set is a collection of different things."))
    assert sets.name == "a set"
    assert read_subject(article("Greece", "Located in Europe, it has many islands.")) is None
    assert read_subject(article("Euler", "Euler's number, , is a constant approximately equal to 2.")) is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_looks_up_what_is_asked_for(tasks, split):
    """The call repeats the question's own words, the answer those of the encyclopedia; some subjects do not exist."""
    task, missing = tasks["WhatIs", split], 0
    for index in range(500):
        question, answer = (message["content"] for message in task[index]["messages"])
        call, output, said = (part["text"] for part in answer)
        name = call.removeprefix("look up ")
        assert name in question and look_up(call) == output, question
        assert said == (f"I have found nothing about {name}." if output == NOTHING else output)
        missing += output == NOTHING
    assert 25 < missing < 100
    assert (split == "train") == any(task[i]["messages"][0]["content"].islower() for i in range(100))


def test_what_is_wants_the_very_words(tasks):
    task = tasks["WhatIs", "test"]
    conversation = {"messages": exchange("What is a lighthouse?", "A lighthouse is a tower.")}
    assert task.grade(conversation, Reply.of("A lighthouse is a tower."))
    assert not task.grade(conversation, Reply.of("A lighthouse is a tower"))
    assert not task.grade(conversation, Reply.of("A lighthouse is a town."))
    tool = [{"type": "python", "text": "look up a lighthouse"}, {"type": "text", "text": "A lighthouse is a tower."}]
    assert task.grade(conversation, Reply.of(tool))


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


class Numbers(Task):
    def __init__(self, name: str, size: int, endless: bool = False, short: bool = False):
        super().__init__("train")
        self.name, self.size, self.endless, self.short = name, size, endless, short

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return {"messages": exchange(self.name, str(index))}


def contents(mixture: TaskMixture) -> list[tuple[str, int]]:
    return [
        (c["messages"][0]["content"], int(c["messages"][1]["content"]))
        for c in (mixture[i] for i in range(len(mixture)))
    ]


def test_a_mixture_takes_what_it_is_told_in_a_shuffled_order():
    entries = [(Numbers("a", 5), 3), (Numbers("b", 4), 2.0), (Numbers("c", 10, endless=True), 25)]
    mixed = contents(TaskMixture(entries, seed=1))
    assert mixed == contents(TaskMixture(entries, seed=1)) != contents(TaskMixture(entries, seed=2))
    assert len(mixed) == 3 + 8 + 25 and mixed != sorted(mixed)
    of = lambda name: sorted(index for key, index in mixed if key == name)  # noqa: E731
    assert len(set(of("a"))) == 3 and set(of("a")) <= set(range(5))
    assert of("b") == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(of("c"))) == 25, "an endless task never repeats"


def test_a_mixture_has_an_end_and_refuses_nonsense():
    mixture = TaskMixture([(Numbers("a", 5), 3)])
    with pytest.raises(IndexError, match="3 conversations"):
        mixture[3]
    for amount in (-1, 0.5):
        with pytest.raises(ValueError):
            TaskMixture([(Numbers("empty", 0), amount)] if amount > 0 else [(Numbers("a", 5), amount)])


def test_short_exchanges_share_conversations_and_none_is_lost():
    entries = [(Numbers("s", 50, short=True), 50), (Numbers("l", 20), 20)]
    mixture = TaskMixture(entries, seed=4, exchanges=4)
    conversations = [mixture[i]["messages"] for i in range(len(mixture))]
    assert {len(messages) for messages in conversations} == {2, 4, 6, 8}
    pairs = [(c[i]["content"], c[i + 1]["content"]) for c in conversations for i in range(0, len(c), 2)]
    assert len(pairs) == len(set(pairs)) == 70
    assert all(len(c) == 2 for c in conversations if c[0]["content"] == "l")


@pytest.mark.parametrize("make", [mixtures.mid_mixture, mixtures.sft_mixture])
def test_the_quickstart_mixtures_are_whole(make, tiny_tokenizer):
    mixture = make(size=600)
    items = [task for conversation in mixture.conversations for task, _ in conversation]
    assert 590 <= len(items) <= 610 and {task.name for task in items} >= {kind.name for kind in KINDS}
    assert all(task.split == "train" for task in items)
    for i in range(len(mixture)):
        ids, mask = tiny_tokenizer.render_conversation(mixture[i])
        assert mask.any()


def test_what_is_measured_is_held_out():
    assert all(task.split == "test" for task in mixtures.built_in_tasks())
    assert {task.name for task in mixtures.built_in_tasks()} == {kind.name for kind in KINDS}
    watched = mixtures.validation(10)
    assert set(watched) == {kind.name for kind in KINDS} and all(len(items) == 10 for items in watched.values())


# ---------------------------------------------------------------------------------------------------------------------
# Your own conversations


GOOD = {"messages": exchange("Hi", [{"type": "python", "text": "1+1"}, {"type": "text", "text": "Two."}])}


def test_own_conversations_are_read_in_both_forms(tmp_path, tiny_tokenizer):
    system = {"messages": [{"role": "system", "content": "Be brief."}, *exchange("Hi", "Yo.")]}
    lines = [json.dumps(GOOD), "", json.dumps(exchange("a", "b")), json.dumps(system)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    task = CustomJSON(path, held_out=0.0)
    assert len(task) == 3 and task.name == "mine" and task[0] == GOOD
    for i in range(3):
        tiny_tokenizer.render_conversation(task[i])
    assert task.grade(task[1], Reply.of("b")) and not task.grade(task[1], Reply.of("c"))


def test_own_conversations_are_split_by_their_hash(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(exchange(f"q{i}", "a")) for i in range(400)), encoding="utf-8")
    train, test = CustomJSON(path), CustomJSON(path, "test")
    questions = [{c["messages"][0]["content"] for c in task.conversations} for task in (train, test)]
    assert len(train) + len(test) == 400 and 5 <= len(test) <= 40 and not questions[0] & questions[1]


BROKEN = {
    "not JSON": "{",
    "not a conversation": "7",
    "no messages": json.dumps({"messages": []}),
    "no answer": json.dumps([{"role": "user", "content": "Hi"}]),
    "no content": json.dumps([{"role": "user"}, {"role": "assistant", "content": "x"}]),
    "an empty text": json.dumps(exchange("", "x")),
    "blanks for a text": json.dumps(exchange("Hi", " \n")),
    "the wrong role": json.dumps([*reversed(exchange("Hi", "x"))]),
    "two users": json.dumps([{"role": "user", "content": "Hi"}] * 2),
    "parts of a user": json.dumps([{"role": "user", "content": GOOD["messages"][1]["content"]}, exchange("", "x")[1]]),
    "an unknown part": json.dumps(exchange("Hi", [{"type": "picture", "text": "x"}])),
    "a number for a text": json.dumps(exchange("Hi", 7)),
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN.keys())
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 3: "):
        CustomJSON(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere.jsonl"):
        CustomJSON(tmp_path / "nowhere.jsonl")


def test_tasks_leave_shared_data_alone(tasks):
    """A caller may change the conversation that it got."""
    task = tasks["Identity", "train"]
    before = copy.deepcopy(task[5])
    task[5]["messages"].append("x")
    assert task[5] == before
