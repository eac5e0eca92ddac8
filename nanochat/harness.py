"""Our models under EleutherAI's lm-eval: what its class LM must answer, without importing it (scripts/lm_eval.py does).

In: lm-eval's requests, which are texts in their `args`. Out: log likelihoods, whether they are what greedy decoding
would say, and answers. Every text stands behind <|bos|>. A context that begins with <|bos|> is a conversation that
`apply_chat_template` rendered; nowhere else does a text become a special token.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from nanochat import checkpoint_manager
from nanochat.common import Progress, compute_dtype, pick_device, tokens_at_once
from nanochat.core_eval import Item, common_prefix, cut_item, score_items
from nanochat.engine import Engine, Sampling
from nanochat.tokenizer import SPECIAL_TOKENS

SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")


class Harness:
    """Its arguments are lm-eval's --model_args: path, the folder of a checkpoint; or source, model_tag and step."""

    def __init__(self, path=None, source="sft", model_tag=None, step=None, device=None, batch_size=8, **_):
        super().__init__()
        # lm-eval says "cuda" unless it is told otherwise, also where there is none.
        self.on = pick_device("auto" if device is None or device.startswith("cuda") else device)
        loaded = checkpoint_manager.load(
            source, model_tag, step, path=path, device=self.on, dtype=compute_dtype(self.on)
        )
        self.model, self.words = loaded.model.eval(), loaded.tokenizer
        self.limit = self.model.config.sequence_len
        self.batch = int(batch_size) if str(batch_size).isdigit() else 8  # it may say "auto"

    # -- Scores

    def loglikelihood(self, requests, **_) -> list[tuple[float, bool]]:
        """args (context, continuation) -> (log probability of the continuation, is it the greedy one). Neighbours with
        the same context are scored together, and the context is read once."""
        pairs = [request.args for request in requests]
        groups = [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair[0])]
        items = [self.build_item([self.encode_pair(*pair) for pair in group]) for group in groups]
        return [answer for answers in self.score(items, "Log likelihoods") for answer in answers]

    def loglikelihood_rolling(self, requests, **_) -> list[float]:
        """args (text,) -> its log probability. A text longer than the context is cut into windows, each token is scored
        once; the last window is as long as the context."""
        items, owners = [], []
        for number, request in enumerate(requests):
            row = np.concatenate(([self.words.bos_id], self.words.encode(request.args[0]))).astype(np.int64)
            for end in range(self.limit + 1, len(row) + self.limit, self.limit):
                end = min(end, len(row))
                begin = max(0, end - self.limit - 1)
                done = 1 + (end - 2) // self.limit * self.limit  # tokens that the windows before this one scored
                items.append(Item([row[begin:end]], [done - begin], shared=done - begin))
                owners.append(number)
        sums = np.zeros(len(requests))
        for owner, answers in zip(owners, self.score(items, "Log likelihoods")):
            sums[owner] += answers[0][0]
        return sums.tolist()

    def encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, int]:
        """(ids, where the continuation starts), as with lm-eval's other models: blanks at the end of a context belong
        to the continuation, and its ids are those that the whole text has behind as many as the context alone has."""
        given, whole = self.encode(context.rstrip()), self.encode(context + continuation)
        start = min(len(given), len(whole) - 1)
        return np.concatenate((given[:start], whole[start:])), start

    def encode(self, text: str) -> np.ndarray:
        if not text.startswith("<|bos|>"):
            return np.concatenate(([self.words.bos_id], self.words.encode(text))).astype(np.int64)
        special = self.words.special
        parts = [[special[part]] if part in special else self.words.encode(part) for part in SPECIAL.split(text)]
        return np.concatenate(parts).astype(np.int64)

    def build_item(self, rows: Sequence[tuple[np.ndarray, int]]) -> Item:
        tokens, starts = [ids for ids, _ in rows], [start for _, start in rows]
        shared = min(common_prefix(tokens), *starts)
        over = max(map(len, tokens)) - (self.limit + 1)  # the last token is not read
        return Item(tokens, starts, shared) if over <= 0 else cut_item(tokens, starts, shared, over, self.limit + 1)

    def score(self, items: Sequence[Item], title: str) -> list[list[tuple[float, bool]]]:
        answers: list = [None] * len(items)
        progress = Progress(title, len(items), "items")
        for done, (i, losses, hits) in enumerate(score_items(self.model, items, tokens_at_once(self.on)), start=1):
            answers[i] = [(-float(loss.sum()), bool(hit.all())) for loss, hit in zip(losses, hits)]
            progress.update(done)
        return answers

    # -- Answers

    def generate_until(self, requests, **_) -> list[str]:
        """args (context, {"until": [...], "max_gen_toks": n, "do_sample": ..., ...}) -> what the model says, up to one
        of the strings in `until`. In a conversation the tools are at hand, as in our own evaluation."""
        prompts, samplings = [], []
        for request in requests:
            context, options = request.args
            sampling = self.sampling(options, chat=context.startswith("<|bos|>"))
            room = self.engine.max_context - min(sampling.max_tokens, self.engine.max_context // 2)
            prompts.append(self.encode(context)[-room:])
            samplings.append(sampling)
        progress = Progress("Answers", len(prompts), "answers")
        answers = []
        for start in range(0, len(prompts), 8 * self.batch):
            part = slice(start, start + 8 * self.batch)
            answers += [answer.text for answer in self.engine.generate(prompts[part], samplings[part])]
            progress.update(len(answers))
        return answers

    @functools.cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.words, max_batch=self.batch)

    @staticmethod
    def sampling(options: dict, chat: bool) -> Sampling:
        """lm-eval's names in ours. Greedy unless do_sample says otherwise."""
        until = options.get("until") or []
        limits = [options[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if options.get(key)]
        chosen = {key: options[key] for key in ("top_k", "top_p", "min_p") if options.get(key) is not None}
        return Sampling(
            max_tokens=int(limits[0]) if limits else 256,
            temperature=float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0,
            stop=[text for text in ([until] if isinstance(until, str) else until) if text],
            seed=0,
            tools=chat,
            **(chosen if options.get("do_sample") else {}),
        )

    # -- Conversations

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The conversation as text that `encode` reads back. Names of special tokens in a message are broken up by a
        word joiner. Without a generation prompt the last message is the beginning of an answer."""
        inert: Callable = lambda text: SPECIAL.sub(lambda match: "<\u2060" + match.group()[1:], text)  # noqa: E731
        messages = [message | {"content": inert(message["content"])} for message in chat_history]
        if add_generation_prompt:
            return self.words.decode(self.words.render_for_completion({"messages": messages}))
        ids, _ = self.words.render_conversation({"messages": messages})
        return self.words.decode(ids[:-1])  # the answer is not over

    def chat_template(self, chat_template=False) -> str:
        """What lm-eval writes into its results."""
        return "nanochat" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        return self.words.hash
