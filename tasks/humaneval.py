"""HumanEval: 164 Python functions to write, each from its signature and docstring.

In: HumanEval.jsonl (Chen et al., 2021, https://arxiv.org/abs/2107.03374). Out: conversations, and the verdicts of the
published tests, run in the sandbox.
"""

import re

from nanochat import execution
from nanochat.answer import Completion
from tasks.common import exchange
from tasks.published import PublishedTask

ADDRESS = "https://raw.githubusercontent.com/openai/human-eval/master/data/HumanEval.jsonl.gz"
BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(PublishedTask):
    name = "HumanEval"
    files = {"test": ("HumanEval", ADDRESS)}
    columns = ("prompt", "canonical_solution", "test", "entry_point")

    def conversation(self, row: dict) -> dict:
        solution = f"```python\n{row['prompt']}{row['canonical_solution'].rstrip()}\n```"
        return {"messages": exchange(row["prompt"], solution), "test": row["test"], "entry_point": row["entry_point"]}

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """Do the published tests pass? See execution.check_program for what keeps a program from faking it."""
        prompt, entry_point = conversation["messages"][0]["content"], conversation["entry_point"]
        program = build_program(prompt, completion.text, entry_point)
        return execution.check_program(program, conversation["test"], entry_point, prelude=prompt).passed


def build_program(prompt: str, answer: str, entry_point: str) -> str:
    """The program that an answer means: a whole function after the prompt's imports and helpers, or the rest of it.

    The code is the first fenced block that defines the function, else the first block, else the whole answer.
    """
    definition = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = BLOCK.findall(answer) or [answer]
    code = next((block for block in blocks if definition.search(block)), blocks[0])
    if not definition.search(code):
        return prompt + code
    return prompt[: definition.search(prompt).start()] + "\n" + code
