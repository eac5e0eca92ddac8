"""Your own conversations, from a JSONL file.

In: a file with one conversation a line, either `{"messages": [...]}` or the bare list of messages. Out: a Task, or
the number of the first line that is wrong and what is wrong about it.
"""

import json
from pathlib import Path

from nanochat.answer import Completion
from nanochat.dataset import is_held_out
from tasks.common import Task, reference_text

PART_TYPES = ("text", "python", "python_output")


class CustomJSON(Task):
    """Conversations of a file. A conversation's own hash decides whether it is held out for the test."""

    short = False

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
    """Every line that is not blank, and its conversation. ValueError that names the file and the line, SystemExit if
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
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def check_conversation(value) -> dict:
    """The conversation, as the tokenizer renders it. ValueError that says what is wrong and what is expected."""
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise ValueError('expected {"messages": [...]} or a list of messages.')
    turns = messages[1:] if isinstance(messages[0], dict) and messages[0].get("role") == "system" else messages
    if not turns or len(turns) % 2:
        raise ValueError("a conversation must end with an answer of the assistant.")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) < {"role", "content"}:
            raise ValueError(f'message {place + 1} must be {{"role": ..., "content": ...}}.')
        if place == 0 and len(turns) < len(messages):
            expected = "system"
        else:
            expected = ("user", "assistant")[(place - (len(messages) - len(turns))) % 2]
        if message["role"] != expected:
            raise ValueError(f"message {place + 1} has the role {message['role']!r} where {expected!r} is due.")
        check_content(message["content"], place + 1, may_have_parts=expected == "assistant")
    return {"messages": messages}


def check_content(content, number: int, may_have_parts: bool) -> None:
    """A text, or for the assistant a list of parts."""
    if isinstance(content, str) and content.strip():
        return
    if not (may_have_parts and isinstance(content, list) and content):
        raise ValueError(f"message {number} needs content: a text{' or a list of parts' if may_have_parts else ''}.")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in PART_TYPES or not isinstance(part.get("text"), str):
            raise ValueError(
                f'message {number} has a part that is not {{"type": one of {", ".join(PART_TYPES)}, "text": a text}}.'
            )
