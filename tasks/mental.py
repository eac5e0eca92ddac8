"""Sums without the calculator: which of two results is it?

In: an index, from which the operands, the sign and the words are drawn. Out: "In your head: is 17 + 25 42 or 63?",
answered "42". The wrong result is at least ten away, so that a feeling for the size of numbers is enough: that is what
a small model can learn in minutes and use on new numbers, where the sums themselves it only learns by heart. No pair of
operands of the test, in either order, is ever seen in training. Reinforcement learning practises it on a CPU.
"""

import numpy as np

from nanochat.answer import Completion
from tasks.common import Drawn, exchange, generator, pick, reference_text, split_of

MOST = 49  # so that every result has at most two digits
APART = 10

PHRASINGS = (
    "In your head: is {a} {sign} {b} {first} or {second}?",
    "In your head, {a} {word} {b}: {first} or {second}?",
    "Without the calculator: {a} {sign} {b}, {first} or {second}?",
    "Without the calculator, is {a} {word} {b} {first} or {second}?",
    "Just the number: {a} {sign} {b} = {first} or {second}?",
    "Just the number, please: is {a} {word} {b} {first} or {second}?",
)


class MentalArithmetic(Drawn):
    """Sums and differences of whole numbers from 1 to 49, none of them negative, with two results to choose from."""

    name = "MentalArithmetic"
    chance = 0.5

    def __getitem__(self, index: int) -> dict:
        rng = generator(self.name, self.split, index)
        a, b = self.draw_operands(rng)
        sign, word, result = pick(rng, (("+", "plus", a + b), ("-", "minus", a - b)))
        wrong = pick(rng, [n for n in range(2 * MOST + 1) if abs(n - result) >= APART])
        first, second = (result, wrong) if rng.random() < 0.5 else (wrong, result)
        question = pick(rng, PHRASINGS).format(a=a, b=b, sign=sign, word=word, first=first, second=second)
        return {"messages": exchange(question, str(result)), "operands": (a, b)}

    def draw_operands(self, rng: np.random.Generator) -> tuple[int, int]:
        """A pair of this split, the larger one first."""
        while True:
            b, a = sorted(int(n) for n in rng.integers(1, MOST + 1, 2))
            if split_of(f"{b} and {a} in the head") == self.split:
                return a, b

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """The bare number, and no call of the tool."""
        used_tool = any(part["type"] != "text" for part in completion.parts)
        return not used_tool and completion.text.strip() == reference_text(conversation)
