"""Talk to the model in the terminal.

python -m scripts.chat_cli
python -m scripts.chat_cli -i base -p "The chemical symbol of gold is" > answer.txt
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.shortcuts import CompleteStyle
from tyro.conf import arg

from nanochat import checkpoint_manager
from nanochat.common import STAGES, base_dir, compute_dtype, pick_device
from nanochat.configurator import launch
from nanochat.cpu_matmul import KINDS
from nanochat.engine import Completion, Engine, Sampling
from nanochat.execution import open_sandbox
from nanochat.files import write_json
from nanochat.terminal import dim, open_answer, printable

HELP = """/new             forget the conversation and begin another
/retry           answer the last message again
/undo            forget the last message and its answer
/system TEXT     instructions before the conversation; without TEXT there are none
/set NAME VALUE  temperature, top_k, top_p, min_p, frequency_penalty, seed or max_tokens; without a value it is shown
/save FILE       the conversation as JSON; the chat page can import it
/help            this text
/quit            leave (or Ctrl-D)
Alt-Enter starts a new line, the arrow keys bring back what you wrote, Ctrl-C stops an answer."""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "frequency_penalty", "seed", "max_tokens")


@dataclass(frozen=True)
class Config:
    """Talk to the model in the terminal."""

    prompt: Annotated[str | None, arg(aliases=["-p"])] = None
    """print the answer to this, and nothing else, and exit"""
    source: Annotated[Literal[STAGES], arg(aliases=["-i"])] = "sft"
    """stage of the model"""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """which model; by default the newest"""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """which of its checkpoints; by default the newest"""
    temperature: Annotated[float, arg(aliases=["-t"])] = 0.6
    """0 is greedy"""
    top_k: Annotated[int, arg(aliases=["-k"])] = 50
    """choose among so many tokens; 0: all"""
    top_p: float = 1.0
    """choose among the likeliest tokens that share this probability"""
    seed: int | None = None
    """the same seed gives the same answers; by default they differ each time"""
    max_tokens: int = 512
    """of an answer"""
    python: bool = False
    """run the programs that the model writes, in the sandbox. Off, since the quickstart's models know only
    the calculator and the encyclopedia"""
    sandbox: Literal["strict", "basic"] = "strict"
    """least level of the sandbox for --python"""
    weights: Literal[KINDS] = "bfloat16"
    """on a CPU: smaller weights are faster, and less exact (see dev/LOG.md); a GPU has its own type"""
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    device = pick_device(cfg.device)
    if cfg.python:
        open_sandbox(cfg.sandbox)
    try:
        sampling = Sampling(cfg.max_tokens, cfg.temperature, cfg.top_k, cfg.top_p, seed=cfg.seed, python=cfg.python)
        path = checkpoint_manager.find(cfg.source, cfg.model_tag, cfg.step)
        checkpoint = checkpoint_manager.load(path=path, device=device, dtype=compute_dtype(device))
        weights = cfg.weights if device.type == "cpu" else None
        engine = Engine(checkpoint.model, checkpoint.tokenizer, max_batch=1, weights=weights)
        chat = Chat(engine, sampling, base=checkpoint.stage == "base")
        if cfg.prompt is not None:
            chat.say(cfg.prompt)
            return
    except ValueError as error:
        raise SystemExit(str(error)) from error
    about = f"{checkpoint.stage} {checkpoint.tag}, step {checkpoint.state.step}, on {device.type}. /help, /quit"
    if chat.base:
        about += "\nIt has not learned to talk yet: it goes on with each text that you write."
    print(dim(about), file=sys.stderr)  # stdout may be a pipe, for the answers
    talk(chat, read_lines())


def talk(chat: "Chat", lines: Iterator[str]) -> None:
    """Answer each line, or do what it commands, until there are no more."""
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                break
            elif command in COMMANDS:
                print(do(chat, command, rest.strip()), end="")
            elif command.startswith("/") and not rest:
                print(f"There is no {printable(command)}.\n{HELP}")
            elif command:
                chat.say(line)
        except (ValueError, OSError) as error:
            print(printable(str(error)))


def do(chat: "Chat", command: str, rest: str) -> str:
    """Carry out a command. Returns what to print. ValueError or OSError that says what is wrong."""
    if command == "/new":
        chat.messages.clear()
        return dim("A new conversation.") + "\n"
    if command == "/undo":
        del chat.messages[-2:]
        left = len(chat.messages) // 2
        return dim(f"{left} message{' is' if left == 1 else 's are'} left.") + "\n"
    if command == "/retry":
        if not chat.messages:
            raise ValueError("There is nothing to answer yet.")
        *before, question, _ = chat.messages
        chat.say(question["content"], before)
        return ""
    if command == "/system":
        chat.system = rest
        return dim("The instructions are set." if rest else "There are no instructions.") + "\n"
    if command == "/set":
        return change(chat, rest)
    if command == "/save":
        if not rest:
            raise ValueError("/save needs the name of a file.")
        write_json(Path(rest).expanduser(), chat.export())
        return dim(f"Saved in {printable(rest)}.") + "\n"
    return HELP + "\n"


def change(chat: "Chat", words: str) -> str:
    """/set: show all settings, or one, or change it."""
    name, _, value = words.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    if name and name not in SETTINGS:
        raise ValueError(f"There is no setting {printable(name)}; there are {', '.join(SETTINGS)}.")
    if value.strip():
        try:
            number = None if value.strip() in ("none", "off") else float(value)
            whole = name in ("top_k", "seed", "max_tokens") and number is not None
            chat.sampling = replace(chat.sampling, **{name: int(number) if whole else number})
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{name} cannot be {printable(value.strip())}.") from error
    shown = [name] if name else SETTINGS
    return "".join(f"{one} {getattr(chat.sampling, one)}\n" for one in shown)


class Chat:
    """A conversation: what was said so far, and a model to go on with it. A base model, which has never seen one, goes
    on with the last message as a text."""

    def __init__(self, engine: Engine, sampling: Sampling, base: bool = False):
        self.engine, self.sampling, self.system, self.base = engine, sampling, "", base
        self.messages: list[dict] = []

    def tokens(self, messages: list[dict]) -> tuple[list[int], int]:
        """What the model reads before it says something, and how many messages do not fit in its context any more."""
        tokenizer = self.engine.tokenizer
        if self.base:
            return [tokenizer.bos_id, *tokenizer.encode(messages[-1]["content"]).tolist()], 0
        instructions = [{"role": "system", "content": self.system}] if self.system else []
        conversation = {"messages": [*instructions, *messages]}
        ids, left_out = tokenizer.render_recent(conversation, self.engine.max_context)
        return ids.tolist(), left_out

    def say(self, text: str, before: list[dict] | None = None) -> Completion:
        """Print the answer as it comes, `before` being what was said until now, by default all of it. Ctrl-C stops it,
        and what was said stays in the conversation.

        ValueError if the text alone does not fit in the context; then the conversation is as before."""
        asked = [*(self.messages if before is None else before), {"role": "user", "content": text}]
        ids, left_out = self.tokens(asked)
        request = self.engine.submit(ids, self.sampling)
        shown = open_answer()
        with interruptible() as is_interrupted:
            while not request.finished:
                if is_interrupted():
                    self.engine.cancel(request)
                for _, event in self.engine.step():
                    if not isinstance(event, Completion):
                        shown.add(event.text, event.kind)
        shown.close()
        answer = request.completion
        notes = {
            "cancelled": "stopped",
            "length": "cut: --max_tokens is reached, or the context is full",
            "error": answer.error,
        }
        if answer.finish_reason in notes:
            print(dim(f"({notes[answer.finish_reason]})"), file=sys.stderr, flush=True)
        if left_out:
            print(dim(f"(the first {left_out} messages no longer fit in the context)"), file=sys.stderr, flush=True)
        if answer.parts:
            self.messages = [*asked, {"role": "assistant", "content": answer.parts}]
        return answer

    def export(self) -> dict:
        """The conversation as the chat page exports its own."""
        now, nodes = round(1000 * time.time()), []
        for number, message in enumerate(self.messages):
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parent = str(number - 1) if number else None
            nodes.append({"id": str(number), "parent": parent, "role": message["role"], "parts": parts, "created": now})
        leaf = nodes[-1]["id"] if nodes else None
        chat = {
            "version": 1,
            "id": f"cli{now:x}",
            "title": "",
            "created": now,
            "updated": now,
            "leaf": leaf,
            "nodes": nodes,
        }
        return {"format": "nanochat-chats", "version": 1, "chats": [chat]}


def read_lines() -> Iterator[str]:
    """What the user types, with history and editing; or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    session = PromptSession(
        history=FileHistory(str(base_dir() / "chat_history")),
        completer=WordCompleter(COMMANDS, sentence=True),
        complete_style=CompleteStyle.READLINE_LIKE,  # a menu would keep eight lines free for itself
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            print(dim("Ctrl-D or /quit leaves."))
        except EOFError:
            return


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C within the block only makes the yielded function say so, so that no step is torn."""
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield lambda: bool(interrupts)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    if not sys.stdout.isatty():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has read enough
    launch(main, Config)
