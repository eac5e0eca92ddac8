"""An answer in the terminal while it is written: Markdown that is finished stays, only its last piece is redrawn.

In: pieces of an answer, as the engine gives them. Out: what a terminal shows, or plain text where there is none.
"""

import re
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from nanochat.markdown import settle

REDRAW_EVERY = 0.06  # seconds
LONG_CALL = 40  # characters; a longer one stands in a paragraph of its own
FENCE = re.compile(r"^ {0,3}```", re.MULTILINE)


def printable(text: str) -> str:
    """Without control characters: a model must not move the cursor or change the terminal's title."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


class PlainAnswer:
    """For a pipe: the text and nothing else, as it comes."""

    def add(self, text: str, kind: str) -> None:
        if kind == "text":
            print(printable(text), end="", flush=True)

    def close(self) -> None:
        print()


class MarkdownAnswer:
    """For a terminal. A tool call is shown as code, `2 * 3 = 6`, where it was made; a program as a block of code."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.pending, self.shown = "", 0.0  # what is not finished yet
        self.tool: dict[str, str] = {}  # the call that is being made: its text and its output
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.live.start()

    def add(self, text: str, kind: str) -> None:
        """kind is "text", "python" or "python_output"."""
        text = printable(text)
        if kind == "text" or kind == "python" and "python_output" in self.tool:
            self._end_tool()
        if kind == "text":
            self.pending += text
        else:
            self.tool[kind] = self.tool.get(kind, "") + text.replace("`", "'")
        self._print_finished()
        if time.monotonic() - self.shown > REDRAW_EVERY:
            self.shown = time.monotonic()
            self.live.update(self._markdown(settle(self._tail())), refresh=True)

    def close(self) -> None:
        self.live.update("", refresh=True)
        self.live.stop()
        self._end_tool()
        if self.pending.strip():
            self.console.print(self._markdown(self.pending.strip("\n")))

    def _end_tool(self) -> None:
        self.pending, self.tool = self.pending + self._tool(), {}

    def _tool(self) -> str:
        """The call as Markdown."""
        if any("\n" in text for text in self.tool.values()):
            languages = {"python": "python", "python_output": ""}
            blocks = [f"```{languages[kind]}\n{text.rstrip()}\n```\n" for kind, text in self.tool.items()]
            return "\n\n" + "".join(blocks) + "\n"
        line = " → ".join(self.tool.values())
        return f"\n\n`{line}`\n\n" if len(line) > LONG_CALL else f" `{line}` " if line else ""

    def _print_finished(self) -> None:
        """A blank line outside of code ends a piece: nothing that comes later changes how it looks."""
        place = self.pending.rfind("\n\n")
        while place >= 0 and len(FENCE.findall(self.pending[:place])) % 2:
            place = self.pending.rfind("\n\n", 0, place)
        if place >= 0:
            done, self.pending = self.pending[:place], self.pending[place + 2 :]
            if done.strip():
                self.console.print(self._markdown(done.strip("\n")))
                self.console.print()

    def _tail(self) -> str:
        """As much of what is pending as fits on the screen: of long code its end."""
        text = self.pending + self._tool()
        lines, room = text.split("\n"), max(4, self.console.height - 4)
        if len(lines) <= room:
            return text
        fence = lines[0] if FENCE.match(lines[0]) else ""
        return "\n".join([fence, *lines[-room:]] if fence else lines[-room:])

    @staticmethod
    def _markdown(text: str) -> Markdown:
        """Lines stay lines, as on the chat page. Links are written out: their names may lie."""
        parts = re.split(r"(^ {0,3}```.*?(?:^ {0,3}```[^\n]*$|\Z))", text, flags=re.MULTILINE | re.DOTALL)
        parts[::2] = [part.replace("\n", "  \n") for part in parts[::2]]
        return Markdown("".join(parts), code_theme="ansi_dark", hyperlinks=False)


def open_answer() -> PlainAnswer | MarkdownAnswer:
    return MarkdownAnswer() if sys.stdout.isatty() else PlainAnswer()
