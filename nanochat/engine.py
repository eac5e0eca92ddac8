"""Many answers at once from one model: slots of keys and values, a sampler, and the scheduler that steps them.

In: prompts as token ids and a Sampling each. Out: Deltas as the text comes, then a Completion.
One thread calls `step`; `submit` and `cancel` may be called from any thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


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
    """Run the calculator when the model asks for it."""


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
    ids: tuple[int, ...] = ()  # the tokens that this piece is made of; with stop strings they may lag behind the text
    logprobs: tuple[TokenLogprob, ...] = ()


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


class Request:
    """One prompt on its way through the engine. Callers keep it to cancel, and read `finished`."""

    id: int
    prompt: list[int]
    sampling: Sampling
    finished: bool = False
    completion: Completion | None = None


class Engine:
    """Continuous batching over `max_batch` slots of `max_context` tokens each."""

    def __init__(self, model, tokenizer, max_batch: int = 8, max_context: int | None = None):
        """`max_context` None: the model's sequence_len. Memory is taken here, once."""

    def submit(self, prompt: Sequence[int], sampling: Sampling = Sampling()) -> Request:
        """Queue a prompt; any thread. ValueError, before any work, if it does not fit (both numbers) or is empty."""
        raise NotImplementedError

    def cancel(self, request: Request) -> None:
        """End a request wherever it is; any thread. Its Completion, reason "cancelled", comes from the next step."""
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        """Is there anything for `step` to do? Any thread."""
        raise NotImplementedError

    def step(self) -> list[tuple[Request, Delta | Completion]]:
        """Admit, prefill a chunk, decode one token for every running request. What came of it, in order; a request's
        last event is its Completion. One thread only. It raises nothing for a fault of one request: that one's
        Completion has reason "error"."""
        raise NotImplementedError

    def stats(self) -> dict[str, int]:
        """running, waiting, slots, prompt_tokens, cached_tokens, generated_tokens (totals since the start)."""
        raise NotImplementedError

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        """All prompts to their ends, in the order given."""
        raise NotImplementedError

    def stream(self, prompt: Sequence[int], sampling: Sampling = Sampling()) -> Iterator[Delta | Completion]:
        """Deltas as they come, then the Completion. Closing the iterator cancels the request."""
        raise NotImplementedError
