"""Words and their letters: Spelling says them one by one, LetterCount counts one of them with the calculator tool.

In: the words of the embedded corpus. Out: `Spell "cat".` -> "c a t"; `How many t's are in cat?` -> a call of count.
Words and letters come with quotes and without. Behind a quote a word has other tokens than behind a space, so a call
repeats the word with what stands before it, `" cat".count("t")`: to copy is easier than to spell.
"""

import re
from collections import Counter
from functools import lru_cache

import numpy as np

from nanochat import dataset
from nanochat.answer import Completion
from nanochat.execution import calculate
from tasks.common import Drawn, exchange, generator, pick, reference_text, split_of

LEAST_COUNT = 5  # rarer words of the corpus are mostly names and typing errors
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
WORD = re.compile(r"(?<![^\W\d_])[a-z]{3,9}(?![^\W\d_])")

SPELL = (
    "Spell {word}.",
    "How do you spell {word}?",
    "Spell the word {word}.",
    "Can you spell {word}?",
    "Please spell {word} for me.",
    "How is {word} spelled?",
    "spell {word}",
    "how do you spell {word}",
    "What are the letters of {word}?",
)
COUNT = (
    "How many times does the letter {letter} occur in {word}?",
    "How many {letter} are in {word}?",
    "Count the letter {letter} in {word}.",
    "How often is {letter} in the word {word}?",
    "How many times does {letter} appear in {word}?",
    "how many {letter} are there in {word}",
    "how many {letter} in {word}",
    "What is the number of {letter} in {word}?",
    "In the word {word}, how many {letter} are there?",
)


@lru_cache(maxsize=1)
def count_words() -> dict[str, int]:
    """How often the corpus has each word of three to nine plain small letters."""
    counts = Counter(word for article in dataset.wiki_articles() for word in WORD.findall(article["extract"]))
    return {word: count for word, count in sorted(counts.items()) if count >= LEAST_COUNT}


def quoted(text: str) -> str:
    return f'"{text}"'


def plain(text: str) -> str:
    return text


WRITTEN = ((quoted, quoted), (quoted, quoted), (quoted, plain), (plain, plain), (plain, plain))  # a word and a letter


class WordTask(Drawn):
    """Draws words of its split, the square root of their frequency being their weight: common ones come more often, and
    all of them come."""

    def __init__(self, split: str):
        words = {word: count for word, count in count_words().items() if split_of(word) == split}
        super().__init__(split, size=len(words))
        self.words = list(words)
        weights = np.sqrt(np.array(list(words.values()), dtype=np.float64))
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw_word(self, rng: np.random.Generator) -> str:
        return self.words[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.words) - 1)]


class Spelling(WordTask):
    """`Spell "strawberry".` -> "s t r a w b e r r y", which the model has to know.

    Without quotes it asks the tool. Behind a space a common word is a single token, and the letters of one that was
    never spelled cannot be known; behind a quote it is made of pieces that other words have, too.

    In training up to four words are asked for at once: the letters of every token have to be learned, and most tokens
    of such an answer are letters.
    """

    name = "Spelling"

    def __getitem__(self, index: int) -> dict:
        rng = generator(self.name, self.split, index)
        around = pick(rng, (quoted, quoted, quoted, plain))
        count = int(rng.integers(1, 5)) if self.split == "train" and around is quoted else 1
        words = [self.draw_word(rng) for _ in range(count)]
        asked, answer = " and ".join(map(around, words)), "; ".join(map(" ".join, words))
        if around is plain:
            call = {"type": "python", "text": f'" ".join(" {words[0]}".strip())'}
            answer = [call, {"type": "python_output", "text": answer}, {"type": "text", "text": answer}]
        return {"messages": exchange(pick(rng, SPELL).format(word=asked), answer), "words": words}

    def grade(self, conversation: dict, completion: Completion) -> bool:
        return completion.text.split() == reference_text(conversation).split()


class LetterCount(WordTask):
    """`How many "r" are in "strawberry"?` -> `"strawberry".count("r")` -> 3"""

    name = "LetterCount"
    chance = 0.52  # what always saying 1 would earn

    def __getitem__(self, index: int) -> dict:
        rng = generator(self.name, self.split, index)
        word = self.draw_word(rng)
        letter = self.draw_letter(rng, word)
        around_word, around_letter = pick(rng, WRITTEN)
        way, said = pick(rng, COUNT), around_letter(letter)
        if around_letter is plain and "many {letter}" in way and rng.random() < 0.5:
            said = f"{letter}'s"
        asked = way.format(word=around_word(word), letter=said)
        expression = f'"{" " if around_word is plain else ""}{word}".count("{letter}")'
        result = calculate(expression)
        answer = [
            {"type": "python", "text": expression},
            {"type": "python_output", "text": result},
            {"type": "text", "text": f'The letter "{letter}" appears {result} time{"" if result == "1" else "s"}.'},
        ]
        return {"messages": exchange(asked, answer), "words": [word]}

    def draw_letter(self, rng: np.random.Generator, word: str) -> str:
        """Half of the time the one that the word has most of, since else the answer would nearly always be 1."""
        kind = rng.random()
        if kind < 0.5:
            return max(word, key=word.count)
        return pick(rng, sorted(set(word)) if kind < 0.75 else ALPHABET)

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """The only number in the answer is the right one."""
        return re.findall(r"\d+", completion.text) == re.findall(r"\d+", reference_text(conversation))
