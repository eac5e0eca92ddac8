"""Sums with two numbers, worked out by the calculator tool.

In: an index, from which the operands, the operation and the words are drawn. Out: "What is 12 times 34?", answered
by `12*34` -> `408` -> "12 * 34 = 408." No pair of operands of the test, in either order, is ever seen in training.
"""

import re
from dataclasses import dataclass

import numpy as np

from nanochat.answer import Completion
from nanochat.execution import calculate
from tasks.common import Drawn, exchange, generator, pick, reference_text, split_of


@dataclass(frozen=True)
class Operation:
    """An operation and the words for it."""

    sign: str
    expression: str  # as the calculator reads it
    written: tuple[str, ...]  # as people write it
    word: str
    command: str
    noun: str


OPERATIONS = (
    Operation("+", "{a}+{b}", ("+",), "plus", "Add {a} and {b}.", "the sum of {a} and {b}"),
    Operation("-", "{a}-{b}", ("-",), "minus", "Subtract {b} from {a}.", "the result of {a} minus {b}"),
    Operation("*", "{a}*{b}", ("*", "x", "×"), "times", "Multiply {a} by {b}.", "the product of {a} and {b}"),
    Operation("/", "round({a}/{b}, 4)", ("/", "÷"), "divided by", "Divide {a} by {b}.", "the quotient of {a} and {b}"),
)

PHRASINGS = (
    "What is {a} {word} {b}?",
    "What is {a} {written} {b}?",
    "How much is {a} {word} {b}?",
    "Calculate {a} {written} {b}.",
    "{a} {written} {b}",
    "{a}{written}{b}=?",
    "{command}",
    "What is {noun}?",
    "Can you work out {a} {word} {b} for me?",
    "Please tell me {noun}.",
)


class Arithmetic(Drawn):
    """Addition, subtraction, multiplication and division of whole numbers of two to four digits, in ten phrasings.

    Training also has numbers of one digit, which people try first, and divisions by zero, which they try next.
    """

    name = "Arithmetic"

    def __getitem__(self, index: int) -> dict:
        rng = generator(self.name, self.split, index)
        operation = pick(rng, OPERATIONS)
        a, b = self.draw_operands(rng, operation)
        words = {"a": a, "b": b, "word": operation.word, "written": pick(rng, operation.written)}
        words |= {"command": operation.command.format(**words), "noun": operation.noun.format(**words)}
        expression = operation.expression.format(a=a, b=b)
        result = calculate(expression)
        said = "Nothing can be divided by zero." if result is None else f"{a} {operation.sign} {b} = {result}."
        answer = [
            {"type": "python", "text": expression},
            {"type": "python_output", "text": result or "error"},
            {"type": "text", "text": said},
        ]
        return {"messages": exchange(pick(rng, PHRASINGS).format(**words), answer), "operands": (a, b)}

    def draw_operands(self, rng: np.random.Generator, operation: Operation) -> tuple[int, int]:
        """A pair of this split. Half of the divisions leave nothing over."""
        while True:
            a, b = self.draw_number(rng), self.draw_number(rng)
            if operation.sign == "/" and rng.random() < 0.5:
                b = min(a, b)
                a = b * int(rng.integers(1, 9999 // b + 1))
            if operation.sign == "/" and self.split == "train" and rng.random() < 0.05:
                b = 0
            pair = f"{min(a, b)} {max(a, b)}"
            if split_of(pair) == self.split:
                return a, b

    def draw_number(self, rng: np.random.Generator) -> int:
        """The number of digits is drawn first, so that short numbers are as common as long ones."""
        digits = int(rng.integers(1 if self.split == "train" and rng.random() < 0.25 else 2, 5))
        return int(rng.integers(10 ** (digits - 1), 10**digits))

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """The last number of the answer is the last number of the reference."""
        return last_number(completion.text) == last_number(reference_text(conversation))


def last_number(text: str) -> float | None:
    """ "12 * 34 = 408." -> 408.0; None if there is no number."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
