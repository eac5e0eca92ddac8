"""Sums of one or two numbers, worked out by the calculator tool.

In: an index, from which the operands, the operation and the words are drawn. Out: "What is 12 times 34?", answered
by `12*34` -> `408` -> "12 * 34 = 408." The call repeats the numbers of the question in their order wherever it can,
since copying is what a small model does best. No operands of the test, in either order, are ever seen in training.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanochat.answer import Completion
from nanochat.execution import calculate
from tasks.common import Drawn, exchange, generator, pick, reference_text, split_of

POWERS = tuple((a, b) for a in range(2, 31) for b in range(2, 24) if a**b < 10**7)


def draw_number(rng: np.random.Generator, shortest: int = 2, longest: int = 4) -> int:
    """The number of digits is drawn first, so that short numbers are as common as long ones."""
    digits = int(rng.integers(shortest, longest + 1))
    return int(rng.integers(10 ** (digits - 1), 10**digits))


def draw_pair(rng: np.random.Generator, practice: bool) -> tuple[int, int]:
    """Two to four digits. Practice also has one digit, and often both numbers short: what people try first."""
    digits = (1, pick(rng, (2, 4))) if practice and rng.random() < 0.25 else (2, 4)
    return draw_number(rng, *digits), draw_number(rng, *digits)


def draw_division(rng: np.random.Generator, practice: bool) -> tuple[int, int]:
    """Half of the divisions leave nothing over. In practice some are by zero, which people try next."""
    a, b = draw_pair(rng, practice)
    if practice and rng.random() < 0.05:
        return a, 0
    if rng.random() < 0.5:
        b = min(a, b)
        a = b * int(rng.integers(1, 9999 // b + 1))
    return a, b


def draw_power(rng: np.random.Generator, practice: bool) -> tuple[int, int]:
    """Small numbers, so that the result stays below ten million."""
    return pick(rng, POWERS)


def draw_square(rng: np.random.Generator, practice: bool) -> tuple[int, int]:
    """The exponent is an operand, too, so that 17 squared is held out together with 17 to the power of 2."""
    return int(rng.integers(2, 1000)), 2


def draw_percentage(rng: np.random.Generator, practice: bool) -> tuple[int, int]:
    """Half of the percentages are multiples of five."""
    percent = 5 * int(rng.integers(1, 20)) if rng.random() < 0.5 else int(rng.integers(1, 100))
    return percent, draw_number(rng)


def draw_radicand(rng: np.random.Generator, practice: bool) -> tuple[int]:
    """Half of the roots are whole numbers."""
    return (int(rng.integers(2, 100)) ** 2 if rng.random() < 0.5 else draw_number(rng, 1),)


@dataclass(frozen=True)
class Operation:
    """An operation and the words for it, in which {a} and {b} are its operands."""

    expression: str  # as the calculator reads it
    answer: str
    spoken: tuple[str, ...]  # "12 plus 34"
    written: tuple[str, ...]  # "12+34"
    command: str
    draw: Callable[[np.random.Generator, bool], tuple[int, ...]] = draw_pair


FOUR = (
    Operation(
        "{a}+{b}",
        "{a} + {b} = {result}.",
        spoken=("{a} plus {b}", "the sum of {a} and {b}"),
        written=("{a} + {b}", "{a}+{b}"),
        command="Add {a} and {b}.",
    ),
    Operation(
        "{a}-{b}",
        "{a} - {b} = {result}.",
        spoken=("{a} minus {b}", "the result of {a} minus {b}"),
        written=("{a} - {b}", "{a}-{b}"),
        command="Subtract {b} from {a}.",
    ),
    Operation(
        "{a}*{b}",
        "{a} * {b} = {result}.",
        spoken=("{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}"),
        written=("{a} * {b}", "{a}*{b}", "{a} x {b}", "{a}x{b}", "{a} × {b}", "{a}×{b}"),
        command="Multiply {a} by {b}.",
    ),
    Operation(
        "round({a}/{b}, 4)",
        "{a} / {b} = {result}.",
        spoken=("{a} divided by {b}", "the quotient of {a} and {b}"),
        written=("{a} / {b}", "{a}/{b}", "{a} ÷ {b}", "{a}÷{b}"),
        command="Divide {a} by {b}.",
        draw=draw_division,
    ),
)
FURTHER = (
    Operation(
        "{a}**{b}",
        "{a} to the power of {b} is {result}.",
        spoken=("{a} to the power of {b}", "{a} to the power {b}", "{a} raised to {b}"),
        written=("{a}^{b}", "{a} ^ {b}", "{a}**{b}", "{a} ** {b}"),
        command="Raise {a} to the power of {b}.",
        draw=draw_power,
    ),
    Operation(
        "{a}**{b}",
        "{a} squared is {result}.",
        spoken=("{a} squared", "the square of {a}"),
        written=("{a}²", "{a} squared"),
        command="Square {a}.",
        draw=draw_square,
    ),
    Operation(
        "{a}*{b}/100",
        "{a}% of {b} is {result}.",
        spoken=("{a}% of {b}", "{a} percent of {b}"),
        written=("{a}% of {b}",),
        command="Take {a}% of {b}.",
        draw=draw_percentage,
    ),
    Operation(
        "round(sqrt({a}), 4)",
        "The square root of {a} is {result}.",
        spoken=("the square root of {a}", "square root of {a}"),
        written=("sqrt({a})", "sqrt {a}", "√{a}"),
        command="Take the square root of {a}.",
        draw=draw_radicand,
    ),
)

PHRASINGS = (
    "What is {spoken}?",
    "What is {written}?",
    "What's {spoken}?",
    "What's {written}?",
    "whats {written}",
    "How much is {spoken}?",
    "How much is {written}?",
    "Calculate {written}.",
    "Compute {written}.",
    "{spoken}",
    "{written}",
    "{written}?",
    "{written} = ?",
    "{written}=?",
    "{command}",
    "Can you work out {spoken} for me?",
    "Please tell me {spoken}.",
)


class Arithmetic(Drawn):
    """Four fifths are addition, subtraction, multiplication and division of whole numbers of two to four digits, the
    others powers, squares, percentages and square roots. A third of the questions are in small letters, and a third
    lack their last stop.

    Training also has numbers of one digit, which people try first, and divisions by zero, which they try next.
    """

    name = "Arithmetic"

    def __getitem__(self, index: int) -> dict:
        rng = generator(self.name, self.split, index)
        operation = pick(rng, FURTHER if rng.random() < 0.2 else FOUR)
        operands = self.draw_operands(rng, operation)
        numbers = dict(zip("ab", operands))
        expression = operation.expression.format(**numbers)
        result = calculate(expression)
        answer = "Nothing can be divided by zero." if result is None else operation.answer
        parts = [
            {"type": "python", "text": expression},
            {"type": "python_output", "text": result or "error"},
            {"type": "text", "text": answer.format(**numbers, result=result)},
        ]
        spoken, written = pick(rng, operation.spoken), pick(rng, operation.written)
        asked = pick(rng, PHRASINGS).format(spoken=spoken, written=written, command=operation.command)
        question = written_carelessly(asked.format(**numbers), rng)
        return {"messages": exchange(question, parts), "operands": operands}

    def draw_operands(self, rng: np.random.Generator, operation: Operation) -> tuple[int, ...]:
        """Operands of this split."""
        while True:
            operands = operation.draw(rng, self.split == "train")
            if split_of(" ".join(map(str, sorted(operands)))) == self.split:
                return operands

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """The last number of the answer is the last number of the reference."""
        return last_number(completion.text) == last_number(reference_text(conversation))


def written_carelessly(question: str, rng: np.random.Generator) -> str:
    """A third in small letters, a third without the last stop, as people type."""
    question = question.lower() if rng.random() < 1 / 3 else question
    return question.rstrip(" ?.") if rng.random() < 1 / 3 else question


def last_number(text: str) -> float | None:
    """ "12 * 34 = 408." -> 408.0; None if there is no number."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
