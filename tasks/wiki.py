"""Questions about Wikipedia's vital articles: what is it, and which topic does it belong to.

In: the articles of the embedded corpus. Out: WhatIs (a sentence to write) and Topic (one of four to choose). The test
split is the articles that pretraining holds out, so a model answers about what it has never read.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from nanochat import dataset
from nanochat.answer import Completion
from tasks.common import Task, exchange, generator, pick, reference_text

LONGEST_ANSWER = 120  # characters; a model of the quickstart's size loses the thread in longer sentences
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

# A full stop after these ends no sentence.
ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|St|Dr|Mr|Mrs|Sgt|Op|No|Jr|Sr|Mt|Ft|vs|lit|c|ca|fl|Rev|Gen|Col|Lt|etc|subg|var|sp)|\b[A-Za-z]\.[A-Za-z])$"
)
SENTENCE_END = re.compile(r"[.!?][\"”]?(?= [A-Z0-9\"“]|$)")
PREAMBLE = re.compile(r"In [^,]{3,50}, (?=(?:the|an?) )")
DEFINITION = re.compile(
    r"(?P<subject>[^,;:()]{1,60}?)(?:, (?:or|also|officially|formally|formerly|commonly)\b[^,;()]{1,60},)?"
    r" (?P<verb>is|are|was|were) (?P<rest>(?:an?|the|one|[a-z]+) .+)\."
)
# Where a long sentence may stop and still be one.
CLAUSE = re.compile(
    r",? (?:that|which|who|whose|where|because|when|while|although|including|such as|as well as|especially|typically)\b"
    r"|, (?:and |or |but )?(?:often|usually|located|known|with|used|made|based|consisting|found|born|best|most)\b|;"
)
DANGLING = re.compile(r"(?: (?:of|by|in|for) \w+ing|,| (?:of|in|to|by|and|or|the|an?|ways?))$")
UGLY = re.compile(r"[()\[\]{}]| [,;.]|\b(\w+) \1\b")  # brackets that may not close, gaps where a formula was
ARTICLE = re.compile(r"(?:The|An|A) (?=\S)")


@dataclass(frozen=True)
class Fact:
    """One article as a question and its answer."""

    title: str
    name: str  # the subject as it stands inside a question: "a lighthouse", "the Washington Post", "Ada Lovelace"
    verb: str  # is, are, was, were
    answer: str
    person: bool


WHAT_THING = (
    "What {verb} {name}?",
    "What {verb} {name}?",
    "Tell me about {name}.",
    "Can you explain {name}?",
    "Do you know what {name} {verb}?",
    "Explain {name} in one sentence.",
    "what {verb} {name}",
)
WHO_PERSON = (
    "Who {verb} {name}?",
    "Who {verb} {name}?",
    "Tell me about {name}.",
    "Do you know who {name} {verb}?",
    "Can you tell me who {name} {verb}?",
    "What do you know about {name}?",
    "who {verb} {name}",
)
WHICH_TOPIC = (
    "Which topic does this text belong to?",
    "What is this text about?",
    "Choose the topic of this text.",
)


def first_sentence(text: str) -> str:
    """The first sentence of a text, its white space made plain."""
    text = " ".join(text.split())
    for end in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text, 0, end.start()):
            return text[: end.end()]
    return text


def shorten(sentence: str) -> str | None:
    """The sentence itself if it is short, else up to its last clause that fits; None if there is no such place."""
    if len(sentence) <= LONGEST_ANSWER:
        return sentence
    for cut in reversed([match.start() for match in CLAUSE.finditer(sentence, 0, LONGEST_ANSWER)]):
        if not DANGLING.search(sentence, 0, cut):
            return sentence[:cut] + "."
    return None


def read_fact(article: dict) -> Fact | None:
    """The article's definition of its own subject; None where no short and regular sentence gives one."""
    extract = PREAMBLE.sub("", first_sentence(article["extract"]), count=1)
    match = DEFINITION.fullmatch(extract[:1].upper() + extract[1:])
    title = re.sub(r" \(.*\)$", "", article["title"])
    person = article["topic"] == "People"
    if match is None or not (person or title.lower() in match["subject"].lower()):
        return None
    subject = title if person else match["subject"]  # people are asked for by the name that all know
    answer = shorten(f"{subject} {match['verb']} {match['rest']}.")
    if answer is None or len(answer) < len(subject) + 15 or UGLY.search(answer):
        return None
    return Fact(article["title"], name_in_question(subject, article["extract"], person), match["verb"], answer, person)


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
    """ "What is a lighthouse?" -> "A lighthouse is a tower." A small model guesses the facts, but in the right form."""

    name = "WhatIs"
    endless = True
    short = True

    def __init__(self, split: str):
        super().__init__(split)
        facts = [fact for fact in map(read_fact, articles(split)) if fact is not None]
        self.facts = [facts[i] for i in generator(self.name, split).permutation(len(facts))]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: int) -> dict:
        """Every pass over the facts asks in other words; the test asks the plain question."""
        fact = self.facts[index % len(self.facts)]
        ways = WHO_PERSON if fact.person else WHAT_THING
        way = ways[0] if self.split == "test" else pick(generator(self.name, self.split, index), ways)
        return {"messages": exchange(way.format(name=fact.name, verb=fact.verb), fact.answer), "title": fact.title}

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """Is it a sentence in the right form: a subject, is/are/was/were, a full stop, nothing said twice, no tool?"""
        text = completion.text.strip()
        words = text.split()
        fives = list(zip(words, words[1:], words[2:], words[3:], words[4:]))
        verb = re.search(r"^\S.{0,80}? (?:is|are|was|were) (?=\S)", text)
        asked = re.sub(r"^(?:the|an?) ", "", conversation["messages"][-1]["content"].lower()).split()[0].strip(",.'\"")
        starts = verb is not None and (asked in verb[0].lower() or ARTICLE.match(text) is not None)
        no_tool = all(part["type"] == "text" for part in completion.parts)
        return starts and text.endswith(".") and len(fives) == len(set(fives)) and no_tool


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
