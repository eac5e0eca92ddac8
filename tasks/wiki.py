"""Questions about Wikipedia's vital articles: what is it, and which topic does it belong to.

In: the articles of the embedded corpus. Out: WhatIs (to look up) and Topic (one of four to choose). The test split is
the articles that pretraining holds out, so a model is asked for what it has never read.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nanochat import dataset
from nanochat.answer import Completion
from nanochat.encyclopedia import CALL, NOTHING, first_sentence, look_up
from tasks.common import Task, exchange, generator, pick, reference_text

LONGEST_TEXT = 140  # characters, of what a topic is to be found for
# The topics of the corpus (all but "Uncategorized") and what they are called here: one word each, which a small model
# learns to copy far sooner than four.
TOPICS = {
    "Arts": "Arts",
    "Biology and health sciences": "Biology",
    "Everyday life": "Life",
    "Geography": "Geography",
    "History": "History",
    "Mathematics": "Mathematics",
    "People": "People",
    "Philosophy and religion": "Religion",
    "Physical sciences": "Science",
    "Society and social sciences": "Society",
    "Technology": "Technology",
}

PREAMBLE = re.compile(r"In [^,]{3,50}, (?=(?:the|an?) )")
DEFINITION = re.compile(
    r"(?P<subject>[^,;:()]{1,60}?)(?:, (?:or|also|officially|formally|formerly|commonly)\b[^,;()]{1,60},)?"
    r" (?P<verb>is|are|was|were) (?P<rest>(?:an?|the|one|[a-z]+) .+)\."
)
ARTICLE = re.compile(r"(?:The|An|A) (?=\S)")


@dataclass(frozen=True)
class Subject:
    """What an article is about, as a question names it."""

    title: str
    name: str  # as it stands inside a question: "a lighthouse", "the Washington Post", "Ada Lovelace"
    verb: str  # is, are, was, were
    person: bool


WHAT_THING = (
    "What {verb} {name}?",
    "What {verb} {name}?",
    "What {verb} {name}",
    "What's {name}?",
    "Tell me about {name}.",
    "Tell me something about {name}",
    "Can you explain {name}?",
    "Do you know what {name} {verb}?",
    "Explain {name} in one sentence.",
    "Define {name}.",
    "What do you know about {name}?",
    "Look up {name}.",
)
WHO_PERSON = (
    "Who {verb} {name}?",
    "Who {verb} {name}?",
    "Who {verb} {name}",
    "Who's {name}?",
    "Tell me about {name}.",
    "Tell me something about {name}",
    "Do you know who {name} {verb}?",
    "Can you tell me who {name} {verb}?",
    "What do you know about {name}?",
    "Have you heard of {name}?",
    "Look up {name}.",
)
OPENINGS = ("And ", "Okay, ", "So ", "Please, ", "Hey, ", "Now: ")
WHICH_TOPIC = (
    "Which topic does this text belong to?",
    "What is this text about?",
    "Choose the topic of this text.",
)


def read_subject(article: dict) -> Subject | None:
    """What the article's first sentence defines; None where it is no definition of its own title."""
    extract = PREAMBLE.sub("", first_sentence(article["extract"]), count=1)
    match = DEFINITION.fullmatch(extract[:1].upper() + extract[1:])
    title = re.sub(r" \(.*\)$", "", article["title"])
    person = article["topic"] == "People"
    if match is None or not (person or title.lower() in match["subject"].lower()):
        return None
    subject = title if person else match["subject"]  # people are asked for by the name that all know
    return Subject(article["title"], name_in_question(subject, article["extract"], person), match["verb"], person)


def name_in_question(subject: str, extract: str, person: bool) -> str:
    """ "A lighthouse" -> "a lighthouse", "Origami" -> "origami" if the article itself writes it small somewhere."""
    if person:
        return subject
    small = subject[:1].lower() + subject[1:]
    is_common = ARTICLE.match(subject) or re.search(rf"\b{re.escape(small)}\b", extract)
    return small if is_common else subject


@lru_cache(maxsize=2)
def articles(split: str) -> tuple[dict, ...]:
    """The articles of a split, as `dataset.wiki_articles` orders them."""
    return tuple(a for a in dataset.wiki_articles() if dataset.is_held_out(a["title"]) == (split == "test"))


def beginning(article: dict) -> str:
    """The first sentence of an article, cut after a word where it is long: enough to tell the topic by."""
    sentence = first_sentence(article["extract"])
    return sentence if len(sentence) <= LONGEST_TEXT else sentence[:LONGEST_TEXT].rsplit(" ", 1)[0] + " ..."


class WhatIs(Task):
    """ "What is a lighthouse?", answered by `look up a lighthouse` -> "A lighthouse is a tower." -> the same sentence.

    A small model knows little of the world; it learns to ask, to say what it has read, and to admit that it has found
    nothing.
    """

    name = "WhatIs"
    endless = True
    short = True

    def __init__(self, split: str):
        super().__init__(split)
        found = [subject for subject in map(read_subject, articles(split)) if subject is not None]
        self.subjects = [found[i] for i in generator(self.name, split).permutation(len(found))]

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> dict:
        """Every pass over the subjects asks in other words; the test asks the plain question. One in ten is of what
        does not exist."""
        rng = generator(self.name, self.split, index)
        subject = self.subjects[index % len(self.subjects)]
        name = subject.name if rng.random() < 0.9 else self.invent(rng, subject.name)
        ways = WHO_PERSON if subject.person else WHAT_THING
        if self.split == "test":
            question = ways[0].format(name=name, verb=subject.verb)
        else:
            ways = [way for way in ways if subject.verb == "is" or "'s" not in way]
            question = pick(rng, ways).format(name=name, verb=subject.verb)
            if rng.random() < 0.15:
                question = pick(rng, OPENINGS) + question[0].lower() + question[1:]
            if rng.random() < 0.2:
                question, name = question.lower(), name.lower()  # as people type
        found = look_up(CALL + name)
        answer = [
            {"type": "python", "text": CALL + name},
            {"type": "python_output", "text": found},
            {"type": "text", "text": f"I have found nothing about {name}." if found == NOTHING else found},
        ]
        return {"messages": exchange(question, answer), "title": subject.title}

    def invent(self, rng: np.random.Generator, name: str) -> str:
        """A name like it that nobody has: "a lighthouse" and "Ada Lovelace" make "a lightlace"."""
        while True:
            other = pick(rng, self.subjects).name.split()[-1]
            made = name[: len(name) - len(name.split()[-1]) // 2] + other[-(len(other) // 2) :].lower()
            if look_up(CALL + made) == NOTHING:
                return made

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """It says what the encyclopedia says, letter by letter."""
        return completion.text.strip() == reference_text(conversation)


class Topic(Task):
    """Which of four topics does an article's first sentence belong to? The wrong ones are those of articles drawn at
    random, so that a topic is offered about as often as it is right, and guessing the commonest does not pay.

    The answer is a line of the list and not a letter: in minutes a small model learns to tell topics apart and to copy
    what it is offered, but not to bind a letter to each name.
    """

    name = "Topic"
    chance = 0.25
    endless = True

    def __init__(self, split: str):
        super().__init__(split)
        found = [a | {"topic": TOPICS[a["topic"]]} for a in articles(split) if a["topic"] in TOPICS]
        self.articles = [found[i] for i in generator(self.name, split).permutation(len(found))]

    def __len__(self) -> int:
        return len(self.articles)

    def __getitem__(self, index: int) -> dict:
        """Every pass over the articles has other choices in another order."""
        rng = generator(self.name, self.split, index)
        article = self.articles[index % len(self.articles)]
        choices = [article["topic"]]
        while len(choices) < 4:
            topic = pick(rng, self.articles)["topic"]
            choices += [topic] if topic not in choices else []
        choices = [choices[i] for i in rng.permutation(4)]
        way = WHICH_TOPIC[0] if self.split == "test" else pick(rng, WHICH_TOPIC)
        question = "\n".join([way, beginning(article), *(f"- {choice}" for choice in choices), "Answer with one line."])
        return {"messages": exchange(question, f"- {article['topic']}"), "title": article["title"]}

    def grade(self, conversation: dict, completion: Completion) -> bool:
        return completion.text.strip() == reference_text(conversation)
