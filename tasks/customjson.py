"""Your own conversations, from a JSONL file.

In: a file with one conversation a line, either `{"messages": [...]}` or the bare list of messages. Out: a Task, or
the number of the first line that is wrong and what is wrong about it.
"""

import json
from pathlib import Path

from nanochat.answer import Completion
from nanochat.dataset import is_held_out
from nanochat.files import BadFile
from nanochat.tokenizer import checked_messages
from tasks.common import Task, reference_text


class CustomJSON(Task):
    """Conversations of a file. A conversation's own hash decides whether it is held out for the test."""

    def __init__(self, path: str | Path, split: str = "train", held_out: float = 0.05):
        super().__init__(split)
        self.path = Path(path)
        self.name = self.path.stem
        self.conversations = [
            conversation
            for line, conversation in read_conversations(self.path)
            if is_held_out(line, held_out) == (split == "test")
        ]

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return self.conversations[index]

    def grade(self, conversation: dict, completion: Completion) -> bool:
        """Word for word the reference."""
        return completion.text.strip() == reference_text(conversation).strip()


def read_conversations(path: Path) -> list[tuple[str, dict]]:
    """Every line that is not blank, and its conversation. BadFile that names the line, SystemExit if
    there is no file."""
    if not path.is_file():
        raise SystemExit(f"There is no file {path}. It should hold one conversation a line, as JSON.")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append((line.strip(), check_conversation(json.loads(line))))
            except ValueError as error:  # JSONDecodeError is one
                raise BadFile(f"{path}, line {number}: {error}") from error
    return rows


def check_conversation(value) -> dict:
    """The conversation, as the tokenizer renders it. ValueError that says what is wrong and what is expected."""
    conversation = value if isinstance(value, dict) else {"messages": value}
    turns = checked_messages(conversation)
    if turns[-1][0] != "assistant":
        raise ValueError("a conversation must end with an answer of the assistant.")
    for number, message in enumerate(conversation["messages"]):
        if isinstance(message["content"], str) and not message["content"].strip():
            raise ValueError(f"Message {number} of the conversation is blank.")
    return {"messages": conversation["messages"]}
