"""What callers of the engine say and get, and how the tokens of an answer become text.

In: a Sampling, then token ids one by one. Out: Deltas of whole characters, parts of a conversation, a Completion.
It owns stop strings, the parts of an answer and when a tool is asked; it knows nothing of models or batches.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nanochat.encyclopedia import look_up
from nanochat.execution import calculate
from nanochat.grammar import Grammar
from nanochat.tokenizer import StreamDecoder


@dataclass(frozen=True)
class Sampling:
    """How one answer is chosen. ValueError with the name and the value if a setting is out of range."""

    max_tokens: int | None = None
    """Tokens of the answer at most, tool output included; None: until the context is full."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and of the answer so far become less likely (CTRL, Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the answer's text has (OpenAI's API). Tool calls are neither counted nor
    changed."""
    frequency_penalty: float = 0.0
    """The same, times how often the text has the token."""
    seed: int | None = None
    """The same seed gives the same answer, in whatever company; None: a new one each time."""
    stop: Sequence[str] = ()
    """Strings that end the answer; the text ends before them."""
    stop_ids: Sequence[int] = ()
    """Further tokens that end the answer, besides <|assistant_end|> and <|bos|>."""
    logprobs: int | None = None
    """Log probabilities of each token and of this many alternatives; None: none."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    tools: bool = True
    """Answer when the model asks the calculator or the encyclopedia."""
    python: bool = False
    """With tools: what the calculator refuses runs as a program in the sandbox."""
    begin: Sequence[int] = ()
    """Tokens that the answer begins with, whatever the model says; the seed goes on behind them as if it had."""

    grammar: Grammar | None = None
    """Only tokens that it allows; see grammar.py."""

    def __post_init__(self):
        allowed = {
            "max_tokens": self.max_tokens is None or self.max_tokens >= 1,
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
            "frequency_penalty": -2 <= self.frequency_penalty <= 2,
            "stop": not isinstance(self.stop, str) and all(self.stop),
            "logprobs": self.logprobs is None or self.logprobs >= 0,
            "logit_bias": all(bias < math.inf for bias in self.logit_bias.values()),
        }
        for name, fits in allowed.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range: {SAMPLING_RANGES[name]}.")


SAMPLING_RANGES = {
    "max_tokens": "a whole number from 1, or None for as many as fit",
    "temperature": "a number from 0 (greedy)",
    "top_k": "a whole number from 0 (off)",
    "top_p": "above 0 and up to 1 (off)",
    "min_p": "from 0 (off) to 1",
    "repetition_penalty": "a number above 0; 1 is off",
    "presence_penalty": "from -2 to 2; 0 is off",
    "frequency_penalty": "from -2 to 2; 0 is off",
    "stop": "a list of strings, none of them empty",
    "logprobs": "a whole number from 0, or None for none",
    "logit_bias": "numbers below infinity for each token id",
}


class TokenLogprob(NamedTuple):
    """Natural logarithms of probabilities under the model itself: temperature, penalties and cuts are not in them."""

    id: int
    logprob: float
    top: list[tuple[int, float]]  # the likeliest tokens, best first


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. Whole characters only, never a special token."""

    text: str
    kind: str = "text"  # the part that the text belongs to: "text", "python" or "python_output"
    ids: tuple[int, ...] = ()  # tokens since the last Delta; text that may begin a stop string waits with its tokens
    logprobs: tuple[TokenLogprob, ...] = ()  # of ids, if asked for


@dataclass(frozen=True)
class Completion:
    """A finished answer."""

    ids: list[int]  # all tokens, special ones and tool output included
    mask: list[bool]  # False where the engine forced the token (tool output), True where the model chose it
    text: str  # the text parts only
    parts: list[dict]  # a conversation's content: {"type": "text" | "python" | "python_output", "text": str}
    finish_reason: str  # "stop", "length", "cancelled" or "error"
    logprobs: list[TokenLogprob] | None  # one for each of ids, if asked for
    prompt_tokens: int
    cached_tokens: int  # of the prompt, those that were in the cache already
    error: str | None = None


class Answer:
    """The tokens of one answer as they come: text in parts, stop strings, tools."""

    def __init__(self, tokenizer, sampling: Sampling):
        self.tokenizer, self.sampling = tokenizer, sampling
        self.special = {id: name for name, id in tokenizer.special.items()}
        self.end_ids = {tokenizer.bos_id, tokenizer.special["<|assistant_end|>"], *sampling.stop_ids}
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.logprobs: list[TokenLogprob] = []
        self.parts: list[dict] = []
        self.kind = "text"
        self.decoder = StreamDecoder(tokenizer)
        self.held = ""  # text that may be the beginning of a stop string
        self.told = 0  # of ids, those that went out with a Delta
        self.forced: deque[int] = deque(sampling.begin)  # tokens that come next whatever the model says
        self.program: str | None = None  # waits to be run; `hear` goes on from what it said

    def add(self, id: int, logprob: TokenLogprob | None) -> tuple[list[Delta], bool]:
        """Take the next token. Returns what can be shown now, and whether the answer ends here."""
        forced = bool(self.forced)
        if forced:
            self.forced.popleft()
        ends = id in self.end_ids and not forced
        last = self.flush() if ends else []  # the end is none of the tokens of what is shown
        self.ids.append(id)
        self.mask.append(not forced)
        if logprob is not None:
            self.logprobs.append(logprob)
        if ends:
            return last, True
        if id in self.special:
            return self._special(self.special[id]), False
        return self._show(self.decoder.add(id))

    def _special(self, name: str) -> list[Delta]:
        """The tokens that begin and end a part; any other special token is kept in ids and shows nothing."""
        begins = {"<|python_start|>": "python", "<|output_start|>": "python_output"}
        if name not in ("<|python_end|>", "<|output_end|>", *begins):
            return []
        deltas = self.flush()
        if name == "<|python_end|>" and self.kind == "python" and self.sampling.tools:
            code = self.parts[-1]["text"] if self.parts and self.parts[-1]["type"] == "python" else ""
            result = look_up(code) or calculate(code)
            if result is not None or not self.sampling.python:
                self.hear("error" if result is None else result)
            elif self.tokenizer.special["<|output_end|>"] not in self.forced:  # else it was begun with the output
                self.program = code
        self.kind = begins.get(name, "text")
        if name in begins:
            self.parts.append({"type": self.kind, "text": ""})
        return deltas

    def hear(self, output: str) -> None:
        """What the tool said comes next, unless the answer was begun with something else."""
        special = self.tokenizer.special
        ids = [special["<|output_start|>"], *self.tokenizer.encode(output).tolist(), special["<|output_end|>"]]
        if list(self.forced) == ids[: len(self.forced)]:
            self.forced = deque(ids)
        self.program = None

    def _show(self, text: str) -> tuple[list[Delta], bool]:
        """New text, up to a stop string, less what may be the beginning of one."""
        if self.kind != "text" or not self.sampling.stop:
            return self._emit(text), False
        text = self.held + text
        found = [place for place in (text.find(stop) for stop in self.sampling.stop) if place >= 0]
        if found:
            self.held, self.decoder = "", StreamDecoder(self.tokenizer)
            return self._emit(text[: min(found)]), True
        longest = max(map(len, self.sampling.stop))
        starts = range(max(0, len(text) - longest + 1), len(text))
        keep = next((at for at in starts if any(stop.startswith(text[at:]) for stop in self.sampling.stop)), len(text))
        self.held = text[keep:]
        return self._emit(text[:keep]), False

    def flush(self) -> list[Delta]:
        """What was held back, at the end of a part or of the answer."""
        text, self.held = self.held + self.decoder.flush(), ""
        self.decoder = StreamDecoder(self.tokenizer)
        return self._emit(text)

    def _emit(self, text: str) -> list[Delta]:
        if not text:
            return []
        if not self.parts or self.parts[-1]["type"] != self.kind:
            self.parts.append({"type": self.kind, "text": ""})
        self.parts[-1]["text"] += text
        told, self.told = self.told, len(self.ids)
        return [Delta(text, self.kind, tuple(self.ids[told:]), tuple(self.logprobs[told:]))]

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")
