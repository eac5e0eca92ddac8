"""What every task shares: the Task class, the form of a multiple-choice question, and mixtures of tasks.

In: a split (such as "test") and whatever facts a task is made of. Out: conversations whose last message is the
reference answer, and a verdict on a model's own answer. Everything is the same on every machine and in every run.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from nanochat.answer import Completion
from nanochat.corpus import held_out_score

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Task:
    """A list of conversations with reference answers, and how an answer is judged.

    `kind` is "categorical" (the conversation has "letters", and the answer is one of them) or "generative" (any text).
    `chance` is the accuracy of guessing. `endless` tasks give another item for every index, past their length
    too. `short` tasks are exchanges of some forty tokens; mixtures may put several into one conversation.
    """

    name: str
    kind: str = "generative"
    chance: float = 0.0
    endless: bool = False
    short: bool = False
    splits: tuple[str, ...] = ("train", "test")

    def __init__(self, split: str):
        if split not in self.splits:
            raise ValueError(f"{type(self).__name__}: split must be one of {', '.join(self.splits)}, not {split!r}.")
        self.split = split

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        """The conversation at `index`; its last message is the reference answer. IndexError past the end."""
        raise NotImplementedError

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """Is the completion right, by its `text` and `parts`? Categorical tasks compare the letter."""
        if self.kind != "categorical":
            raise NotImplementedError(f"{type(self).__name__} is generative and must define grade().")
        return completion.text.strip() == reference_text(conversation)


class Drawn(Task):
    """Short exchanges made up by a rule, another for every index: `size` is how many an evaluation asks."""

    endless = True
    short = True
    splits = ("train", "validation", "test")

    def __init__(self, split: str, size: int = 2000):
        super().__init__(split)
        self.size = size

    def __len__(self) -> int:
        return self.size


def split_of(key: str) -> str:
    """The split that a fact belongs to, on every machine and for ever: a tenth is held out, and a fifth of that is
    "validation", for whatever is looked at while a model is made."""
    score = held_out_score(key)
    return "validation" if score < 0.02 else "test" if score < 0.1 else "train"


def generator(*keys: object) -> np.random.Generator:
    """Random numbers that depend on the keys alone: `generator("Arithmetic", "train", 7)`."""
    digest = blake2b("\x1f".join(map(str, keys)).encode("utf-8"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, unchanged (`rng.choice` would turn it into a numpy value)."""
    return options[int(rng.integers(len(options)))]


def exchange(question: str, answer: str | list[dict]) -> list[dict]:
    """One user message and the assistant's reply; `answer` is a text or a list of parts."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def visible_text(content: str | list[dict]) -> str:
    """What a reader sees of a message: its text parts, without code and tool output."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def reference_text(conversation: dict) -> str:
    """The visible text of the reference answer."""
    return visible_text(conversation["messages"][-1]["content"])


def render_multiple_choice(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """The one form in which all categorical tasks ask.

    The letter follows its choice, since a small model binds it better to what it has just read; and there is no space
    before it, so that it is the very token of the answer.
    """
    lines = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True))
    return f"{question}\n{lines}Answer with one letter."


class TaskMixture:
    """Several tasks as one, in an order shuffled by the seed.

    Each entry is (task, amount): an int is a number of items, a float a number of passes over the task. An endless task
    is joined at a place that the seed draws; any other is gone through, every pass in another order.
    With `exchanges` above 1, up to so many items of `short` tasks follow each other in one conversation.
    """

    def __init__(self, entries: Sequence[tuple[Task, int | float]], seed: int = 0, exchanges: int = 1):
        rng = np.random.default_rng(seed)
        items = [(task, int(index)) for task, amount in entries for index in choose_indices(task, amount, rng)]
        self.conversations: list[list[tuple[Task, int]]] = []
        waiting: list[tuple[Task, int]] = []
        wanted = 1
        for task, index in (items[i] for i in rng.permutation(len(items))):
            if not task.short:
                self.conversations.append([(task, index)])
                continue
            waiting.append((task, index))
            if len(waiting) == wanted:
                self.conversations.append(waiting)
                waiting, wanted = [], int(rng.integers(1, exchanges + 1))
        self.conversations += [waiting] if waiting else []

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"The mixture has {len(self):,} conversations; there is no number {index:,}.")
        items = [task[place] for task, place in self.conversations[index]]
        if len(items) == 1:
            return items[0]
        return {"messages": [message for item in items for message in item["messages"]]}


def choose_indices(task: Task, amount: int | float, rng: np.random.Generator) -> np.ndarray:
    """Which items of a task a mixture takes, (count,) int64. ValueError for a negative amount or an empty task."""
    size = len(task)
    if amount < 0 or size == 0:
        raise ValueError(f"A mixture cannot take {amount} of {task.name}, which has {size} items.")
    count = amount if isinstance(amount, int) else round(amount * size)
    if task.endless:
        return int(rng.integers(2**40)) + np.arange(count, dtype=np.int64)
    passes = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *passes])[:count]
