"""Many answers at once from one model: slots of keys and values, and the scheduler that steps them.

In: prompts as token ids and a Sampling each. Out: Deltas as the text comes, then a Completion.
One thread calls `step`; `submit` and `cancel` may be called from any thread.

An answer does not depend on its company or on what was cached: cpu_forward.py and kvcache.py compute a token in ways
that only its own conversation decides. So what was guessed of an answer (prompt lookup, Saxena 2023) can be checked
several tokens at once, and the answer is the same as without.
"""

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import torch
import torch.nn as nn

from nanochat.answer import Answer, Completion, Delta, Sampling, TokenLogprob
from nanochat.cpu_forward import CpuForward
from nanochat.kvcache import TorchForward
from nanochat.lookup import Lookup
from nanochat.program import Program
from nanochat.sampler import choose, log_probabilities

__all__ = ["Completion", "Delta", "Engine", "Request", "Sampling", "TokenLogprob"]

GUESSED_CHATS = 4  # with more of them at once the rows of guesses cost what they bring
STEP_TOKENS = 256  # of prompts, in one step, so that a long prompt does not hold up the answers that are running


class Request:
    """One prompt on its way through the engine. Callers keep it to cancel, and read `finished` and `completion`."""

    def __init__(self, number: int, prompt: list[int], sampling: Sampling, tokenizer, room: int):
        self.id, self.prompt, self.sampling = number, prompt, sampling
        self.most_tokens = min(room, len(sampling.begin) + (sampling.max_tokens or room))
        self.seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        self.answer = Answer(tokenizer, sampling)
        self.completion: Completion | None = None
        self.cached_tokens = 0
        self.cancelled = False
        self.bias: torch.Tensor | None = None  # (V,) what logit_bias adds
        self.seen: torch.Tensor | None = None  # (V,) bool, tokens so far, if there is a repetition penalty
        self.counts: torch.Tensor | None = None  # (V,) of each token in the answer's text, for the other two
        self.grammar = sampling.grammar and sampling.grammar.copy()
        self.lookup = Lookup(prompt)

    @property
    def finished(self) -> bool:
        return self.completion is not None


class Slot:
    """A row of the cache: what it holds, and the request that works in it."""

    def __init__(self):
        self.prompt: list[int] = []  # tokens stored from the first position on that the next request can use again
        self.length = 0  # tokens stored
        self.request: Request | None = None
        self.program: Program | None = None  # that the request waits for
        self.used = 0  # when it was taken last, to reuse the oldest first


class Engine:
    """Continuous batching over `max_batch` conversations of up to `max_context` tokens each.

    The slots of running answers are the first ones, side by side, so that a batch is a view of the cache.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        max_batch: int = 8,
        max_context: int | None = None,
        weights: str | None = None,
        guess: int = 3,
    ):
        """`max_context` None: the model's sequence_len, which is also the most there can be. Memory is taken here.
        `weights`, on a CPU: "float32", "bfloat16" or "int8"; None: the type that the model computes in.
        `guess`: tokens that are guessed ahead, where it pays."""
        config = model.config
        self.max_context = config.sequence_len if max_context is None else max_context
        if max_batch < 1 or not 2 <= self.max_context <= config.sequence_len:
            raise ValueError(
                f"max_batch={max_batch} must be at least 1, and max_context={self.max_context} from 2 to the "
                f"{config.sequence_len} tokens that the model was built for."
            )
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} tokens and the model room for {config.vocab_size}: they do "
                "not belong together. Use the tokenizer that lies in the model's checkpoint."
            )
        self.vocab_size = tokenizer.vocab_size  # ids that the model has beyond it are never chosen
        self.source, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.device = next(model.parameters()).device
        self.guess = guess
        if CpuForward.fits(model):
            self.forward = CpuForward(model, max_batch, self.max_context, weights)
        elif weights:
            raise ValueError(f"weights={weights!r} is for a GPT on a CPU. Leave it out elsewhere.")
        else:
            self.forward = TorchForward(model, max_batch, self.max_context)
        self.slots = [Slot() for _ in range(max_batch)]
        self.running = 0  # of the slots, the first ones; those that wait for a program are not among them
        self.news = threading.Event()  # a request, a cancellation or the end of a program
        self.filling: Slot | None = None  # the slot whose prompt is being read; one at a time, so the next can share it
        self.waiting: deque[Request] = deque()
        self.lock = threading.Lock()  # for waiting
        self.numbers = itertools.count(1)
        self.totals = dict.fromkeys(("requests", "prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @torch.inference_mode()
    def refresh(self) -> None:
        """Take the weights of the model anew, after they were trained on; forgets all that is cached."""
        if self.has_work:
            raise ValueError("The engine cannot change its weights while answers are running. Finish or cancel them.")
        self.forward.load(self.source)
        self.slots = [Slot() for _ in self.slots]

    def submit(self, prompt: Sequence[int], sampling: Sampling = Sampling()) -> Request:
        """Queue a prompt; any thread. ValueError, before any work, if it is empty, does not fit or has ids that are no
        tokens; the same for the ids in `sampling`."""
        prompt = [int(id) for id in prompt]
        if not prompt:
            raise ValueError("The prompt is empty: it must have at least one token.")
        given = len(prompt) + len(sampling.begin)
        if given >= self.max_context:
            raise ValueError(
                f"The prompt has {given:,} tokens and the context holds {self.max_context:,}, at least one of "
                "which is for the answer. Shorten the prompt."
            )
        checked = {name: getattr(sampling, name) for name in ("begin", "logit_bias", "stop_ids")}
        for name, ids in {"prompt": prompt, **checked}.items():
            if ids and not (0 <= min(ids) and max(ids) < self.vocab_size):
                raise ValueError(
                    f"{name} has token ids from {min(ids)} to {max(ids)}; the vocabulary has {self.vocab_size}."
                )
        if sampling.grammar and not sampling.grammar.allows(sampling.begin):
            raise ValueError("What the answer begins with does not fit the format that it has to have.")
        request = Request(next(self.numbers), prompt, sampling, self.tokenizer, self.max_context - len(prompt))
        with self.lock:
            self.waiting.append(request)
        self.news.set()
        return request

    def cancel(self, request: Request) -> None:
        """End a request wherever it is; any thread. Its Completion, reason "cancelled", comes from the next step."""
        request.cancelled = True
        self.news.set()

    @property
    def model(self) -> nn.Module:
        """The model as it is used here: whole batches through its forward are for evaluations."""
        return self.forward.model

    @property
    def has_work(self) -> bool:
        """Is there anything for `step` to do? Any thread."""
        return bool(self.running or self.filling or self.waiting or self.paused)

    @property
    def paused(self) -> list[Slot]:
        """Slots whose answers wait for a program."""
        return [slot for slot in self.slots if slot.program is not None]

    def stats(self) -> dict[str, int]:
        """What goes on now, and totals since the start. Any thread."""
        now = {
            "running": self.running + (self.filling is not None) + len(self.paused),
            "waiting": len(self.waiting),
            "slots": self.max_batch,
        }
        return now | self.totals

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Delta | Completion]]:
        """Read on in the prompts, then one token for every running answer. What came of it, in order: a request's last
        event is its Completion. One thread only. A fault of one request ends that one, with reason "error".

        If all that there is are answers that wait for their programs, it waits too, for a tenth of a second at most."""
        events: list[tuple[Request, Delta | Completion]] = []
        if self.paused and not (self.running or self.filling or self.waiting):
            self.news.wait(0.1)
        self.news.clear()
        self._end_cancelled(events)
        self._go_on_after_programs()
        for _ in range(STEP_TOKENS // self.forward.chunk):
            if self.filling is None and not self._admit():
                break
            self._prefill(events)
        self._decode(events)
        return events

    # -- What step is made of

    def _end_cancelled(self, events) -> None:
        with self.lock:
            gone = [request for request in self.waiting if request.cancelled]
            for request in gone:
                self.waiting.remove(request)
        for request in gone:
            self._complete(request, "cancelled", events)
        for slot in [slot for slot in self.slots if slot.request is not None and slot.request.cancelled]:
            self._release(slot, "cancelled", events)

    def _admit(self) -> bool:
        """Give the first in the queue a slot, with the longest prefix of its prompt that lies in any slot."""
        with self.lock:
            free = [slot for slot in self.slots if slot.request is None]
            if not self.waiting or not free:
                return False
            request = self.waiting.popleft()
        oldest = min(free, key=lambda slot: slot.used)
        shared = [self._shared(slot, request.prompt) for slot in self.slots]
        most = max(shared)
        source = self.slots[shared.index(most)]
        # Go on in the slot itself, unless it is busy or holds a long conversation that only begins alike.
        slot = source if source in free and most and len(source.prompt) <= 2 * most else oldest
        if most and slot is not source:
            self.forward.copy(self.slots.index(source), self.slots.index(slot), most)
        slot.prompt, slot.length, slot.request = request.prompt[:most], most, request
        slot.used = request.id
        request.cached_tokens = most
        self.totals["requests"] += 1
        self.totals["prompt_tokens"] += len(request.prompt)
        self.totals["cached_tokens"] += most
        self.filling = slot
        return True

    def _shared(self, slot: Slot, prompt: list[int]) -> int:
        """Tokens of the prompt that a slot holds and that can be reused. At least the last one is always computed."""
        most = min(len(slot.prompt), len(prompt) - 1)
        same = next((i for i in range(most) if slot.prompt[i] != prompt[i]), most)
        return same // self.forward.granule * self.forward.granule

    def _prefill(self, events) -> None:
        """The next chunk of the prompt in `filling`; after the last one, the first token of the answer."""
        slot = self.filling
        request, start = slot.request, slot.length
        ids = request.prompt[start : start + self.forward.chunk]
        try:
            before = request.prompt[start - 1] if start else -1
            logits = self.forward.prefill(self.slots.index(slot), start, ids, before)
            slot.length += len(ids)
            slot.prompt = request.prompt[: slot.length]
            if slot.length < len(request.prompt):
                return
            self._prepare(request)
        except Exception as error:  # one request's fault (memory, most likely) must not end the others
            return self._release(slot, "error", events, error)
        self.filling = None
        self._move(slot, self.running)
        self.running += 1
        self._take_tokens([slot], logits, events)

    def _prepare(self, request: Request) -> None:
        """What the sampler needs of a request on the device."""
        s = request.sampling
        if s.logit_bias:
            request.bias = torch.zeros(self.vocab_size, device=self.device)
            request.bias[torch.tensor(list(s.logit_bias), device=self.device)] = torch.tensor(
                list(s.logit_bias.values()), dtype=torch.float32, device=self.device
            )
        if s.repetition_penalty != 1:
            request.seen = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
            request.seen[torch.tensor(request.prompt, device=self.device)] = True
        if s.presence_penalty or s.frequency_penalty:
            request.counts = torch.zeros(self.vocab_size, device=self.device)

    def _decode(self, events) -> None:
        """One token for each running answer, or several where what was guessed of it turns out right."""
        running = self.slots[: self.running]
        if not running:
            return
        guesses = [self._guess(slot) for slot in running]
        places, positions, ids, before, starts = [], [], [], [], []
        for place, (slot, guess) in enumerate(zip(running, guesses)):
            request, last = slot.request, slot.request.answer.ids
            starts.append(len(ids))
            places += [place] * (1 + len(guess))
            positions += range(slot.length, slot.length + 1 + len(guess))
            ids += [last[-1], *guess]
            before += [(last[-2:-1] or request.prompt[-1:])[0], last[-1], *guess][: 1 + len(guess)]
        try:
            logits = self.forward.decode(places, positions, ids, before)
        except Exception as error:  # whose fault it is cannot be known
            for slot in running:
                self._release(slot, "error", events, error)
            return
        self._check_guesses(running, guesses, starts, logits, events)

    def _check_guesses(self, slots, guesses, starts, logits, events) -> None:
        """Take the next token of every slot, then the one behind it where that was the one guessed, and so on."""
        going = list(zip(slots, guesses, starts))
        for ahead in range(1 + max(map(len, guesses))):
            for slot, _, _ in going:
                slot.length += 1
            rows = [start + ahead for _, _, start in going]
            some = logits if len(rows) == len(logits) else logits[rows]
            self._take_tokens([slot for slot, _, _ in going], some, events)
            guessed = [one for one in going if one[0].request and not one[0].program and ahead < len(one[1])]
            going = [one for one in guessed if one[0].request.answer.ids[-1] == one[1][ahead]]
            for slot, guess, _ in guessed:
                if ahead == 0:
                    slot.request.lookup.learn(slot.request.answer.ids, slot.request.answer.ids[-1] == guess[0])

    def _guess(self, slot: Slot) -> list[int]:
        """What an answer may say next: what the engine makes it say, else what came behind its last tokens before."""
        request = slot.request
        most = min(self.guess, self.max_context - 1 - slot.length)
        if not self.forward.checks_guesses or most <= 0:
            return []
        if request.answer.forced:
            return list(itertools.islice(request.answer.forced, min(16, self.max_context - 1 - slot.length)))
        return request.lookup.guess(request.answer.ids, most) if self.running <= GUESSED_CHATS else []

    def _take_tokens(self, slots: list[Slot], logits: torch.Tensor, events) -> None:
        """Choose the next token of each slot and tell its answer."""
        requests, logits = [slot.request for slot in slots], logits[:, : self.vocab_size]
        try:
            ids = choose(logits, requests)
            ids = [request.answer.forced[0] if request.answer.forced else id for id, request in zip(ids, requests)]
            logprobs = log_probabilities(logits, ids, requests)
        except Exception as error:  # whose fault it is cannot be known
            for slot in slots:
                self._release(slot, "error", events, error)
            return
        for slot, id, logprob in zip(slots, ids, logprobs):
            try:
                self._take_token(slot, id, logprob, events)
            except Exception as error:
                self._release(slot, "error", events, error)

    def _take_token(self, slot: Slot, id: int, logprob: TokenLogprob | None, events) -> None:
        request, answer = slot.request, slot.request.answer
        if id < 0:
            raise ValueError("The model's logits are not numbers. Its weights may be damaged or have diverged.")
        self.totals["generated_tokens"] += 1
        if request.seen is not None:
            request.seen[id] = True
        if request.grammar is not None:
            request.grammar.take(id)
            if request.grammar.fault:
                raise ValueError(f"The answer's grammar failed: {request.grammar.fault}")
        deltas, ended = answer.add(id, logprob)
        if request.counts is not None and answer.kind == "text":
            request.counts[id] += 1
        events.extend((request, delta) for delta in deltas)
        if ended:
            self._release(slot, "stop", events)
        elif len(answer.ids) == request.most_tokens:
            self._release(slot, "length", events)
        elif answer.program is not None:
            slot.program = Program(answer.program, self.news.set)
            self.running -= 1
            self._move(slot, self.running)

    def _go_on_after_programs(self) -> None:
        for slot in self.paused:
            if slot.program.output is not None:
                slot.request.answer.hear(slot.program.output)
                slot.program = None
                self._move(slot, self.running)
                self.running += 1

    def _release(self, slot: Slot, reason: str, events, error: Exception | None = None) -> None:
        """End the request of a slot. What it prefilled stays for the next one, unless something went wrong in it."""
        request, slot.request = slot.request, None
        if self.forward.granule == 1:
            slot.prompt = (request.prompt + request.answer.ids)[: slot.length]
        if slot is self.filling:
            self.filling = None
        elif slot.program is not None:
            slot.program.stop()
            slot.program = None
        else:
            self.running -= 1
            self._move(slot, self.running)
        if error is not None:
            self.forward.clear(self.slots.index(slot))
            slot.prompt, slot.length = [], 0
        self._complete(request, reason, events, error)

    def _complete(self, request: Request, reason: str, events, error: Exception | None = None) -> None:
        answer = request.answer
        events.extend((request, delta) for delta in answer.flush())
        request.completion = Completion(
            ids=answer.ids,
            mask=answer.mask,
            text=answer.text,
            parts=answer.parts,
            finish_reason=reason,
            logprobs=answer.logprobs if request.sampling.logprobs is not None else None,
            prompt_tokens=len(request.prompt),
            cached_tokens=request.cached_tokens,
            error=None if error is None else f"{type(error).__name__}: {error}",
        )
        request.bias = request.seen = request.counts = None
        events.append((request, request.completion))

    def _move(self, slot: Slot, to: int) -> None:
        """Bring a slot to a place in the order; the one that is there takes its place."""
        here = self.slots.index(slot)
        if here != to:
            self.forward.swap(here, to, max(slot.length, self.slots[to].length))
            self.slots[here], self.slots[to] = self.slots[to], slot

    # -- For callers without a thread of their own

    def stream(self, prompt: Sequence[int], sampling: Sampling = Sampling()) -> Iterator[Delta | Completion]:
        """Deltas as they come, then the Completion. Closing the iterator cancels the request."""
        request = self.submit(prompt, sampling)
        for other, event in self._run([request]):
            if other is request:
                yield event

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] = Sampling()
    ) -> list[Completion]:
        """All prompts to their ends, in the order given."""
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests = [self.submit(prompt, s) for prompt, s in zip(prompts, each, strict=True)]
        for _ in self._run(requests):
            pass
        return [request.completion for request in requests]

    def _run(self, requests: list[Request]) -> Iterator[tuple[Request, Delta | Completion]]:
        try:
            while not all(request.finished for request in requests):
                yield from self.step()
        finally:  # the caller left, or pressed Ctrl-C
            unfinished = [request for request in requests if not request.finished]
            for request in unfinished:
                self.cancel(request)
            if unfinished:
                self.step()
