"""The shapes of OpenAI's HTTP API: what clients send, checked and turned into our words, and what they get back.

In: JSON bodies. Out: conversations, Samplings, and dicts that the official client libraries understand.
Our extensions: top_k, min_p, repetition_penalty, begin_with, truncation, token ids beside logprobs, and the parts of an
answer that used a tool.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from nanochat.engine import Completion, Delta, Sampling, TokenLogprob
from nanochat.grammar import Grammar, Grammars
from nanochat.tokenizer import Tokenizer


def check_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair at position {error.start}; send whole characters") from error
    return text


Text = Annotated[str, AfterValidator(check_unicode)]
StopText = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(check_unicode)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

NO_FUNCTIONS = "this model cannot call your functions; its calculator and encyclopedia run in the server"
OPENING = "Hello!"  # the user's, in front of an assistant that speaks first: models have only seen users begin


class Refusal(ValueError):
    """A request that we understand and cannot serve: an HTTP status, a message, and the parameter at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


# ---------------------------------------------------------------------------------------------------------------------
# Requests


PartKind = Literal["text", "python", "python_output"]


class Part(BaseModel):
    type: PartKind
    text: Text

    @field_validator("type", mode="before")
    @classmethod
    def refuse_pictures(cls, value):
        if value not in get_args(PartKind):
            raise ValueError('this model knows only text; send {"type": "text", "text": "..."}')
        return value


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=4096)] | None = None

    @field_validator("role", mode="before")
    @classmethod
    def refuse_answers_of_functions(cls, value):
        if value in ("tool", "function"):
            raise ValueError(f"{NO_FUNCTIONS}, so no message can be the answer of one")
        return value

    @model_validator(mode="after")
    def settle(self):
        if self.content is None and self.role != "assistant":
            raise ValueError("only an assistant's message may have no content")
        return self

    @property
    def parts(self) -> list[dict]:
        """Those that say something: an answer that ended at once comes back as nothing; instructions may be none."""
        if isinstance(self.content, str):
            return [{"type": "text", "text": self.content}] if self.content else []
        return [part.model_dump() for part in self.content or []]


class JsonSchema(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    name: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    description: Text | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def settle(self):
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and only there")
        return self

    def grammar(self, grammars: Grammars) -> Grammar | None:
        """What an answer of this format may say. Takes time if the schema is new. Refusal if it cannot be used."""
        if self.type == "text":
            return None
        try:
            return grammars.of_schema(self.json_schema.schema_ if self.json_schema else {"type": "object"})
        except (ValueError, RecursionError) as error:
            raise Refusal(f"response_format: {error}", "response_format") from error


class StreamOptions(BaseModel):
    include_usage: bool = False


class SamplingRequest(BaseModel):
    """What chat and plain completions have in common. A null is the same as nothing."""

    model_config = ConfigDict(protected_namespaces=())

    model: Text | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("max_tokens", "max_completion_tokens", "top_k", mode="before", check_fields=False)
    @classmethod
    def no_limit(cls, value, info):
        """-1, as vLLM and LM Studio have it: not what the server does by default."""
        return (0 if info.field_name == "top_k" else 2**31 - 1) if value == -1 else value

    def sampling(self, defaults: dict, vocab_size: int, **more) -> Sampling:
        """`defaults` fills what the client left open. Refusal if a token is not in the vocabulary."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p")
        names += ("repetition_penalty", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        bias = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
                raise Refusal(
                    f"logit_bias: {key[:20]!r} is not a token id; ids go from 0 to {vocab_size - 1}.", "logit_bias"
                )
            bias[int(key)] = value
        try:
            return Sampling(**{**defaults, **given}, stop=tuple(stop), logit_bias=bias, **more)
        except ValueError as error:
            raise Refusal(str(error)) from error

    def seeds(self) -> list[int | None]:
        """One for each of the n answers: with a seed they differ, and are the same the next time."""
        count = self.n or 1
        return [None] * count if self.seed is None else [(self.seed + i) % 2**63 for i in range(count)]


class ChatRequest(SamplingRequest):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tool_choice: Any = None
    function_call: Any = None
    """What tool_choice was called before."""
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    begin_with: Text | Annotated[list[TokenId], Field(max_length=2**20)] | None = None
    """What the answer begins with, whatever the model says: text, or token ids as `ids` beside logprobs gave them."""
    truncation: Literal["auto", "disabled"] | None = None
    """auto: a conversation that leaves less than a quarter of the context for the answer loses its oldest turns."""

    @field_validator("tool_choice", "function_call")
    @classmethod
    def refuse_calls(cls, value):
        if value not in (None, "none", "auto"):
            raise ValueError(NO_FUNCTIONS)
        return value

    @field_validator("tools", "functions")
    @classmethod
    def refuse_tools(cls, value, info):
        if value and "none" not in (info.data.get("tool_choice"), info.data.get("function_call")):
            raise ValueError(f'{NO_FUNCTIONS}. Leave them out, or send tool_choice: "none"')
        return value

    @model_validator(mode="after")
    def settle(self):
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    def turns(self) -> list[dict]:
        """The messages as the tokenizer takes them: at most one of the system, then user and assistant in turns. System
        text that comes later, or alone, is the user's: the tokenizer puts all of it there anyway."""
        turns: list[dict] = []
        for index, message in enumerate(self.messages):
            role = "system" if message.role == "developer" else message.role
            parts = message.parts
            if not parts and role != "user":
                continue
            if role != "assistant" and any(part["type"] != "text" for part in parts):
                raise Refusal(f"messages[{index}]: only an assistant's message may have tool parts.", "messages")
            if role == "system" and turns and turns[-1]["role"] != "system":
                role = "user"
            content = parts if role == "assistant" else "".join(part["text"] for part in parts)
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] = turns[-1]["content"] + (content if role == "assistant" else "\n\n" + content)
            else:
                turns.append({"role": role, "content": content})
        if not turns:
            raise Refusal("messages: there is nothing to answer.", "messages")
        if len(turns) == 1 and turns[0]["role"] == "system":
            turns[0]["role"] = "user"
        return turns

    def prompt_ids(self, tokenizer: Tokenizer, context: int = 0, begun: int = 0) -> tuple[list[int], int]:
        """What the model reads before its answer, and how many messages were left out to make room for it. If the last
        message is the assistant's, the answer goes on with it. Refusal if the conversation makes no sense."""
        turns, written, left_out = self.turns(), [], 0
        first = 1 if turns[0]["role"] == "system" else 0
        opened = turns[first]["role"] == "assistant"
        if opened:
            turns.insert(first, {"role": "user", "content": OPENING})
        conversation = {"messages": turns}
        try:
            ids = tokenizer.render_for_completion(conversation)
            if turns[-1]["role"] == "assistant":  # which that leaves out
                written = tokenizer.render_conversation(conversation)[0][len(ids) : -1].tolist()
            if self.truncation == "auto":
                ids, left_out = tokenizer.render_recent(conversation, context, begun + len(written))
        except ValueError as error:
            raise Refusal(f"messages: {error}", "messages") from error
        return ids.tolist() + written, max(0, left_out - opened)

    def begin_ids(self, tokenizer: Tokenizer) -> list[int]:
        """`begin_with` as tokens. Refusal if one of them is none, or ends an answer."""
        if self.begin_with is None or isinstance(self.begin_with, str):
            return tokenizer.encode(self.begin_with or "").tolist()
        ends = {tokenizer.bos_id, tokenizer.special["<|assistant_end|>"]}
        for id in self.begin_with:
            if id in ends or id >= tokenizer.vocab_size:
                raise Refusal(f"begin_with: {id} is no token within an answer.", "begin_with")
        return self.begin_with


class CompletionRequest(SamplingRequest):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @field_validator("echo", "suffix")
    @classmethod
    def refuse_option(cls, value):
        if value:
            raise ValueError("this server does not have it; leave it out")
        return value

    @model_validator(mode="after")
    def settle(self):
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not served")
        return self

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids; a text gets <|bos|> in front. Refusal if an id is not in the vocabulary."""
        many = (
            self.prompt if isinstance(self.prompt, list) and isinstance(self.prompt[0], str | list) else [self.prompt]
        )
        prompts = []
        for one in many:
            ids = [tokenizer.bos_id, *tokenizer.encode(one).tolist()] if isinstance(one, str) else one
            if max(ids) >= tokenizer.vocab_size:
                raise Refusal(
                    f"prompt: {max(ids)} is not a token id; they go from 0 to {tokenizer.vocab_size - 1}.", "prompt"
                )
            prompts.append(ids)
        return prompts


class TokenizeRequest(BaseModel):
    text: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def settle(self):
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self

    def prompt_ids(self, tokenizer: Tokenizer) -> list[int]:
        if self.messages is None:
            return tokenizer.encode(self.text).tolist()
        return ChatRequest.model_construct(messages=self.messages).prompt_ids(tokenizer)[0]


class RenderRequest(BaseModel):
    writing: bool = False
    """The last of the texts will go on."""
    texts: Annotated[list[Annotated[Text, Field(max_length=200_000)]], Field(max_length=200)]


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict:
    data = tokenizer.decode_bytes([id])
    text = data.decode("utf-8", "replace")
    return {"token": text, "bytes": list(data), "id": id, "logprob": max(logprob, -9999.0)}


def chat_logprobs(tokenizer: Tokenizer, entries: list[TokenLogprob]) -> dict:
    """Special tokens are left out: they stand for no text."""
    special = set(tokenizer.special.values())
    content = [
        _token(tokenizer, one.id, one.logprob)
        | {"top_logprobs": [_token(tokenizer, id, logprob) for id, logprob in one.top if id not in special]}
        for one in entries
        if one.id not in special
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, entries: list[TokenLogprob], offset: int = 0) -> dict:
    """The older form: four lists side by side. `offset` counts the characters before the first entry."""
    tokens = chat_logprobs(tokenizer, entries)["content"]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": offsets,
    }


class ChatShape:
    """/v1/chat/completions. Parts that used a tool come beside the text, in `part` and `parts`, where other clients do
    not look; with logprobs, so do the `ids` of all tokens since the chunk before, special ones and tools included."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    kinds = ("text",)  # the parts that are an answer's text

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def logprobs(self, entries) -> dict | None:
        return chat_logprobs(self.tokenizer, entries) if entries else None

    def start(self, index: int) -> dict | None:
        return self.piece(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, event: Delta) -> dict:
        ids = {"ids": list(event.ids)} if event.logprobs else {}
        if event.kind == "text":
            return self.piece(index, {"content": event.text, **ids}, self.logprobs(event.logprobs))
        return self.piece(index, {"part": {"type": event.kind, "text": event.text}, **ids})

    def end(self, index: int, reason: str) -> dict:
        return {**self.piece(index, {}), "finish_reason": reason}

    @staticmethod
    def piece(index: int, delta: dict, logprobs: dict | None = None) -> dict:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def choice(self, index: int, completion: Completion, entries: list, reason: str) -> dict:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        if any(part["type"] != "text" for part in completion.parts):
            message["parts"] = completion.parts
        if completion.logprobs:
            message["ids"] = completion.ids
        return {"index": index, "message": message, "logprobs": self.logprobs(entries), "finish_reason": reason}


class CompletionShape:
    """/v1/completions. All parts are text here."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"
    kinds = get_args(PartKind)

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.written: dict[int, int] = {}  # characters of each answer so far

    def start(self, index: int) -> dict | None:
        return None

    def delta(self, index: int, event: Delta) -> dict:
        offset = self.written.get(index, 0)
        self.written[index] = offset + len(event.text)
        logprobs = completion_logprobs(self.tokenizer, event.logprobs, offset) if event.logprobs else None
        return {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}

    def end(self, index: int, reason: str) -> dict:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def choice(self, index: int, completion: Completion, entries: list, reason: str) -> dict:
        logprobs = completion_logprobs(self.tokenizer, entries) if entries else None
        text = "".join(part["text"] for part in completion.parts)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
