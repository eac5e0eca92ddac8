"""The tokenizer: a vocabulary, its special tokens, one JSON file, and how a conversation becomes tokens.

In: text, or a conversation. Out: numpy arrays of ids (uint16 where the vocabulary has at most 65,536 ids, else uint32),
and which of them an assistant must learn to say. Text never becomes a special token, whatever it says.
"""

import base64
import codecs
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nanochat import bpe, bpe_chunks, bpe_train
from nanochat.files import BadFile, write_bytes

VERSION = 1
SPECIAL_TOKENS = (
    "<|bos|>",  # starts every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls a tool
    "<|python_end|>",
    "<|output_start|>",  # and this is what the tool said
    "<|output_end|>",
)
TASK_BYTES = 1 << 20  # text that a thread encodes in one go


class Tokenizer:
    """Ids 0 to 255 are bytes, then come the merges, then the special tokens."""

    def __init__(self, merges: np.ndarray):
        """merges: (n, 2) ids; row k makes id 256 + k of two ids smaller than itself."""
        self.merges = np.ascontiguousarray(merges, np.int32).reshape(-1, 2)
        n = 256 + len(self.merges)
        self.special = {name: n + k for k, name in enumerate(SPECIAL_TOKENS)}
        self.bos_id = self.special["<|bos|>"]
        self.vocab_size = n + len(SPECIAL_TOKENS)
        self.dtype = np.uint16 if self.vocab_size <= 65536 else np.uint32

    # -----------------------------------------------------------------------------------------------------------------
    # Make, save, load

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, **options) -> "Tokenizer":
        """Learn `vocab_size` ids, special tokens included, from documents. Options: see `bpe_train.train`.

        It comes out smaller if the text is too short to have that many pairs. ValueError for an impossible size."""
        least = 256 + len(SPECIAL_TOKENS)
        if not least <= vocab_size <= 1 << 20:
            raise ValueError(
                f"vocab_size is {vocab_size}; it must be from {least} (bytes and special tokens) to 1048576."
            )
        return cls(bpe_train.train(texts, vocab_size - least, **options))

    def save(self, path: str | Path) -> None:
        """Write one JSON file, which Hugging Face `tokenizers` reads as well (`Tokenizer.from_file`)."""
        write_bytes(Path(path), (json.dumps(self.to_json(), ensure_ascii=False, indent=0) + "\n").encode())

    def save_tiktoken(self, path: str | Path) -> None:
        """Write tiktoken's table of ranks (`tiktoken.load.load_tiktoken_bpe`); its pattern is `bpe_chunks.PATTERN`."""
        tokens = self.vocabulary[: -len(SPECIAL_TOKENS)]
        lines = [f"{base64.b64encode(token).decode()} {id}\n" for id, token in enumerate(tokens)]
        Path(path).write_text("".join(lines), encoding="ascii")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. SystemExit with the command to run if there is no such file, BadFile if it
        is damaged or of another kind."""
        path = Path(path)
        if not path.exists():
            raise SystemExit(f"There is no tokenizer at {path}. Train one: python -m scripts.tok_train")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            stamp, vocab = value["model"]["nanochat"], value["model"]["vocab"]
            if stamp["version"] != VERSION:
                raise ValueError(f"its version is {stamp['version']!r}, this program reads version {VERSION}")
            merges = np.array([(vocab[a], vocab[b]) for a, b in value["model"]["merges"]], np.int32).reshape(-1, 2)
            if len(merges) and (merges.max(axis=1) >= np.arange(256, 256 + len(merges))).any():
                raise ValueError("a merge uses an id that does not exist yet")
            tokenizer = cls(merges)
            if tokenizer.hash != stamp["hash"]:
                raise ValueError("its hash does not match its merges")
            if [token["content"] for token in value["added_tokens"]] != list(SPECIAL_TOKENS):
                raise ValueError("its special tokens are not those of this program")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BadFile(f"{path} is not a tokenizer that this program can use: {error}.") from error
        return tokenizer

    @functools.cached_property
    def hash(self) -> str:
        """Names the vocabulary: equal for two tokenizers that give equal ids for every text."""
        facts = json.dumps([VERSION, bpe_chunks.PATTERN, SPECIAL_TOKENS]).encode()
        return hashlib.sha256(facts + self.merges.astype("<i4").tobytes()).hexdigest()

    def to_json(self) -> dict:
        """The file's content: a Hugging Face tokenizer.json, with our version and hash in its "model"."""
        names = ["".join(map(byte_letters().__getitem__, token)) for token in self.vocabulary[: -len(SPECIAL_TOKENS)]]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": bpe_chunks.PATTERN}, "behavior": "Isolated", "invert": False}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id, "content": name, **flags} for name, id in self.special.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "nanochat": {"version": VERSION, "hash": self.hash},
                "vocab": {name: id for id, name in enumerate(names)},
                "merges": [[names[a], names[b]] for a, b in self.merges.tolist()],
            },
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Text to ids and back

    @functools.cached_property
    def encoder(self) -> bpe.Encoder:
        return bpe.Encoder(self.merges)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, never a special one. Halves of surrogate pairs that stand alone count as U+FFFD."""
        return self.encode_bytes(bpe_chunks.to_bytes(text))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of any bytes; `decode_bytes` gives back the same bytes even if they are not UTF-8."""
        ids, _ = self.encoder.encode_many([data])
        return ids.astype(self.dtype)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """`encode` of each text, on all cores or `threads`. They are views of larger arrays: copy what you keep."""
        threads = threads or bpe_chunks.cpu_count()
        tasks, size = [[]], 0
        for text in texts:
            if size + len(text) > TASK_BYTES and tasks[-1]:
                tasks.append([])
                size = 0
            tasks[-1].append(text)
            size += len(text)
        if threads == 1 or len(tasks) == 1:
            groups = map(self._encode_task, tasks)
            return [ids for group in groups for ids in group]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for group in pool.map(self._encode_task, tasks) for ids in group]

    def _encode_task(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids, bounds = self.encoder.encode_many(list(map(bpe_chunks.to_bytes, texts)))
        ids, bounds = ids.astype(self.dtype), bounds.tolist()
        return [ids[i:j] for i, j in zip(bounds, bounds[1:])]

    @functools.cached_property
    def vocabulary(self) -> list[bytes]:
        """The bytes of every id; a special token has its name."""
        tokens = [bytes([byte]) for byte in range(256)]
        for a, b in self.merges.tolist():
            tokens.append(tokens[a] + tokens[b])
        return tokens + [name.encode() for name in SPECIAL_TOKENS]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; a special token stands for its name. ValueError if there is no such id."""
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        if len(ids) and not (0 <= ids.min() and ids.max() < self.vocab_size):
            raise ValueError(f"ids must be from 0 to {self.vocab_size - 1}, but are from {ids.min()} to {ids.max()}.")
        return b"".join(map(self.vocabulary.__getitem__, ids.tolist()))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(V,) int64: how many bytes of text each id stands for; 0 for special tokens."""
        lengths = np.array([len(token) for token in self.vocabulary], np.int64)
        lengths[-len(SPECIAL_TOKENS) :] = 0
        return lengths

    # -----------------------------------------------------------------------------------------------------------------
    # Conversations

    def render_conversation(self, conversation: dict) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask), each (T,): the whole conversation, and True where the assistant must learn to say the id.

        Never cut short: that is up to the caller. ValueError that names the message if it is malformed."""
        segments = [(self.bos_id, False)]
        for role, parts in checked_messages(conversation):
            learn = role == "assistant"
            segments.append((self.special[f"<|{role}_start|>"], False))
            for kind, text in parts:
                segments += self._render_part(kind, text, learn)
            segments.append((self.special[f"<|{role}_end|>"], learn))
        ids = [np.array([s], self.dtype) if isinstance(s, int) else self.encode(s) for s, _ in segments]
        mask = np.repeat([learn for _, learn in segments], [len(part) for part in ids])
        return np.concatenate(ids), mask

    def _render_part(self, kind: str, text: str, learn: bool) -> list[tuple[int | str, bool]]:
        if kind == "text":
            return [(text, learn)]
        name, learn = ("python", learn) if kind == "python" else ("output", False)
        return [(self.special[f"<|{name}_start|>"], learn), (text, learn), (self.special[f"<|{name}_end|>"], learn)]

    def render_for_completion(self, conversation: dict) -> np.ndarray:
        """(T,) ids up to and with <|assistant_start|>, where the next answer begins. A last message of the assistant's
        is left out: it is the reference answer."""
        messages = conversation.get("messages") if isinstance(conversation, dict) else None
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            if messages[-1].get("role") == "assistant":
                conversation = {"messages": messages[:-1]}
        ids, _ = self.render_conversation(conversation)
        return np.append(ids, np.array(self.special["<|assistant_start|>"], self.dtype))

    def render_recent(self, conversation: dict, context: int, begun: int = 0) -> tuple[np.ndarray, int]:
        """`render_for_completion` without its oldest turns, as few as leave a quarter of the context to the answer
        beyond the `begun` ids that it begins with; and how many messages were left out. A system message and the last
        question always stay, however long they are."""
        ids, messages = self.render_for_completion(conversation), conversation["messages"]
        system = messages[:1] if messages[0]["role"] == "system" else []
        again = len(self.encode(system[0]["content"] + "\n\n")) if system else 0  # it moves to what is first then
        limit = 3 * context // 4 - begun
        questions = np.flatnonzero(ids == self.special["<|user_start|>"])
        if len(ids) <= limit or len(questions) == 1:
            return ids, 0
        short = np.flatnonzero(len(ids) - questions[1:] + 1 + again <= limit)
        left_out = 2 * (int(short[0]) + 1 if len(short) else len(questions) - 1)
        return self.render_for_completion({"messages": [*system, *messages[len(system) + left_out :]]}), left_out


def checked_messages(conversation: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """(role, [(kind, text), ...]) of every turn, a system message made part of the first user message.

    ValueError that names the message unless roles are user, assistant, user, ... after at most one system message,
    no user message is empty, and contents have the right types."""
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError('A conversation must be {"messages": [...]} with at least one message.')
    turns, system = [], ""
    for index, message in enumerate(messages):
        wrong = functools.partial(malformed, index)
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise wrong('must be {"role": ..., "content": ...}')
        role, content = message["role"], message["content"]
        if index == 0 and role == "system":
            if not isinstance(content, str):
                raise wrong("is a system message, so its content must be a string")
            system = content + "\n\n" if content else ""
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            raise wrong(f"has role {role!r}; it must be {expected!r}")
        if isinstance(content, str):
            parts = [("text", content)]
        elif role == "assistant" and isinstance(content, list):
            parts = [checked_part(part, wrong) for part in content]
        else:
            raise wrong(
                f"has content of type {type(content).__name__}; it must be a string"
                + (" or a list of parts" if role == "assistant" else "")
            )
        if not any(text for _, text in parts):
            raise wrong("is empty")
        if not turns:
            parts = [("text", system + parts[0][1])]
        turns.append((role, parts))
    if not turns:
        raise malformed(0, "is a system message with no user message after it")
    return turns


def malformed(index: int, problem: str) -> ValueError:
    return ValueError(f"Message {index} of the conversation {problem}.")


def checked_part(part: dict, wrong: Callable[[str], ValueError]) -> tuple[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise wrong('has a part that is not {"type": ..., "text": ...} with a string as text')
    if part.get("type") not in ("text", "python", "python_output"):
        raise wrong(f'has a part of type {part.get("type")!r}; it must be "text", "python" or "python_output"')
    return part["type"], part["text"]


class StreamDecoder:
    """Text of ids that come one by one. Bytes of a character that is not complete yet are held back."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, id: int) -> str:
        """The text that is certain now; "" if a character is incomplete."""
        return self.decoder.decode(self.tokenizer.decode_bytes([id]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character stayed incomplete."""
        return self.decoder.decode(b"", final=True)


@functools.cache
def byte_letters() -> dict[int, str]:
    """The letter that Hugging Face files use for each byte: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}
