"""Talk to the model in the terminal.

python -m scripts.chat_cli
python -m scripts.chat_cli -i base -p "The chemical symbol of gold is" > answer.txt
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from tyro.conf import arg

from nanochat import checkpoint_manager
from nanochat.common import base_dir, compute_dtype, pick_device
from nanochat.configurator import parse
from nanochat.engine import Completion, Engine, Sampling

HELP = """/new    forget the conversation and begin another
/help   this text
/quit   leave (or Ctrl-D)
Alt-Enter starts a new line, the arrow keys bring back what you wrote, Ctrl-C stops an answer."""


@dataclass(frozen=True)
class Config:
    """Talk to the model in the terminal."""

    prompt: Annotated[str | None, arg(aliases=["-p"])] = None
    """print the answer to this, and nothing else, and exit"""
    source: Annotated[Literal["base", "mid", "sft", "rl"], arg(aliases=["-i"])] = "sft"
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
    device: str = "auto"
    """auto, cuda, mps or cpu"""


def main(cfg: Config) -> None:
    device = pick_device(cfg.device)
    try:
        sampling = Sampling(cfg.max_tokens, cfg.temperature, cfg.top_k, cfg.top_p, seed=cfg.seed)
        path = checkpoint_manager.find(cfg.source, cfg.model_tag, cfg.step)
        checkpoint = checkpoint_manager.load(path=path, device=device, dtype=compute_dtype(device))
        chat = Chat(Engine(checkpoint.model, checkpoint.tokenizer, max_batch=1), sampling)
        if cfg.prompt is not None:
            chat.say(cfg.prompt)
            return
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(dim(f"{checkpoint.stage} {checkpoint.tag}, step {checkpoint.state.step}, on {device.type}. /help, /quit"))
    talk(chat, read_lines())


def talk(chat: "Chat", lines: Iterator[str]) -> None:
    """Answer each line, or do what it commands, until there are no more."""
    for line in lines:
        command = line.strip()
        if command == "/quit":
            break
        elif command == "/new":
            chat.messages.clear()
            print(dim("A new conversation."))
        elif command == "/help":
            print(HELP)
        elif command.startswith("/") and " " not in command:
            print(f"There is no {printable(command)}.\n{HELP}")
        elif command:
            try:
                chat.say(line)
            except ValueError as error:
                print(f"{error} /new begins another conversation.")


class Chat:
    """A conversation: what was said so far, and a model to go on with it."""

    def __init__(self, engine: Engine, sampling: Sampling):
        self.engine, self.sampling = engine, sampling
        self.messages: list[dict] = []

    def say(self, text: str) -> Completion:
        """Print the answer as it comes. Ctrl-C stops it, and what was said stays in the conversation.

        ValueError if the conversation does not fit in the context any more; then it is as before."""
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.engine.tokenizer.render_for_completion({"messages": asked})
        request = self.engine.submit(prompt, self.sampling)
        expression = ""
        with interruptible() as is_interrupted:
            while not request.finished:
                if is_interrupted():
                    self.engine.cancel(request)
                for _, event in self.engine.step():
                    if isinstance(event, Completion):
                        break
                    elif event.kind == "text":
                        print(printable(event.text), end="", flush=True)
                    elif event.kind == "python":
                        expression += event.text
                    elif sys.stdout.isatty():
                        # The output comes token by token: the expression stands before the first of them.
                        print(dim(printable(f" {expression} = " * bool(expression) + event.text)), end="", flush=True)
                        expression = ""
        answer = request.completion
        notes = {
            "cancelled": "stopped",
            "length": "cut: --max_tokens is reached, or the context is full",
            "error": answer.error,
        }
        if answer.finish_reason in notes:
            print(dim(f" ({notes[answer.finish_reason]})"), end="", file=sys.stderr, flush=True)
        print()
        if answer.parts:
            self.messages = [*asked, {"role": "assistant", "content": answer.parts}]
        return answer


def read_lines() -> Iterator[str]:
    """What the user types, with history and editing; or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    history = FileHistory(str(base_dir() / "chat_history"))
    session = PromptSession(history=history, key_bindings=keys, multiline=True, prompt_continuation="  ")
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


def printable(text: str) -> str:
    """Without control characters: a model must not move the cursor or change the terminal's title."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


if __name__ == "__main__":
    main(parse(Config))
