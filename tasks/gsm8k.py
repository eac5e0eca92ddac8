"""GSM8K: word problems of grade-school mathematics, solved in steps with a calculator.

In: gsm8k_train and gsm8k_test (Cobbe et al., 2021, https://arxiv.org/abs/2110.14168). Out: conversations whose answers
call the calculator where the file says <<48/2=24>>, and end with "#### " and the number.
"""

import re
from decimal import Decimal
from pathlib import Path

import numpy as np

from nanochat.answer import Completion
from tasks.common import exchange, reference_text
from tasks.published import PublishedTask

ADDRESS = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
TRAIN, TEST = ("gsm8k_train", f"{ADDRESS}/train.jsonl"), ("gsm8k_test", f"{ADDRESS}/test.jsonl")
VALIDATION = 500  # of the 7,473 training problems: held out, so that nothing is ever chosen by its test score
CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
FINAL = re.compile(r"####\s*\$?\s*(-?(?:\d[\d,]*)?(?:\.\d+)?)", re.ASCII)


class GSM8K(PublishedTask):
    """Splits: train, validation (a part of the published training file) and test."""

    name = "GSM8K"
    files = {"train": TRAIN, "validation": TRAIN, "test": TEST}
    columns = ("question", "answer")

    def __init__(self, split: str = "test", folder: Path | None = None):
        super().__init__(split, folder)
        if split != "test":
            keep = np.arange(len(self.rows))
            keep = keep[-VALIDATION:] if split == "validation" else keep[:-VALIDATION]
            self.order = self.order[np.isin(self.order, keep)]

    def conversation(self, row: dict) -> dict:
        return {"messages": exchange(row["question"], parse_answer(row["answer"]))}

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """The number after the first #### equals the reference's; 1,000 equals 1000.00."""
        answer = final_number(completion.text)
        return answer is not None and answer == final_number(reference_text(conversation))


def parse_answer(answer: str) -> list[dict]:
    """Text and calculator calls: "a <<1+1=2>>2 b" -> text "a ", python "1+1", python_output "2", text "2 b"."""
    pieces = CALL.split(answer)  # text, expression, result, text, ...
    types = ("text", "python", "python_output")
    return [{"type": types[i % 3], "text": piece} for i, piece in enumerate(pieces) if piece]


def final_number(text: str) -> Decimal | None:
    """The number after the first "####", without commas; None if there is none."""
    match = FINAL.search(text)
    digits = match[1].replace(",", "") if match else ""
    return Decimal(digits) if any(map(str.isdigit, digits)) else None
