"""Answers that are JSON of a given schema: which tokens may come next, by llguidance.

In: a JSON schema, then tokens one by one. Out: a mask over the vocabulary.
A grammar is bounded in size and work; the last few are kept, so that the next answer need not compile it again.
"""

import functools
import json
import threading
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from nanochat.tokenizer import Tokenizer

MOST_TEXT = 64 << 10  # characters of a schema
LIMITS = LLParserLimits(
    max_grammar_size=100_000, initial_lexer_fuel=500_000, step_lexer_fuel=200_000, verbose_errors=False
)


class Grammars:
    """Compiles schemas for one tokenizer. Any thread; a compilation holds up the others and not the interpreter."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = LLTokenizer(TokenizerWrapper(Vocabulary(tokenizer)))
        self.lock = threading.Lock()
        self.compiled = functools.lru_cache(maxsize=32)(self._compile)

    def of_schema(self, schema: dict) -> "Grammar":
        """ValueError if the schema is none, or too large, or more than llguidance can do."""
        text = json.dumps(schema)  # not sorted: an answer has its keys in this order
        if len(text) > MOST_TEXT:
            raise ValueError(f"the schema has {len(text):,} characters; at most {MOST_TEXT:,} are served.")
        with self.lock:
            return Grammar(self.compiled(text))

    def _compile(self, schema: str) -> LLMatcher:
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
            matcher.compute_logit_bias()  # what fails at the first token fails here
        except Exception as error:
            raise ValueError(f"the schema cannot be used: {str(error)[:300]}") from error
        if matcher.is_error():
            raise ValueError(f"the schema cannot be used: {matcher.get_error()[:300]}")
        return matcher


class Grammar:
    """One answer's way through a grammar. `Sampling` holds a fresh one; each answer takes a copy."""

    def __init__(self, matcher: LLMatcher):
        self.matcher = matcher.deep_copy()

    def copy(self) -> "Grammar":
        return Grammar(self.matcher)

    def allowed(self) -> np.ndarray:
        """(V,) bool: the tokens that may come next, <|assistant_end|> where the answer may end."""
        return np.frombuffer(self.matcher.compute_logit_bias(), np.uint8) > 0

    def allows(self, ids: Sequence[int]) -> bool:
        """Whether these tokens may come next, one after the other."""
        return self.matcher.validate_tokens(list(ids)) == len(ids)

    @property
    def fault(self) -> str:
        """What is wrong, if the grammar has become more than its limits allow."""
        return self.matcher.get_error() if self.matcher.is_error() else ""

    def take(self, id: int) -> None:
        self.matcher.consume_token(id)


class Vocabulary:
    """A Tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokens, self.encode = tokenizer.vocabulary, tokenizer.encode_bytes
        self.special_token_ids = list(tokenizer.special.values())
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.special["<|assistant_end|>"]

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text).tolist()
