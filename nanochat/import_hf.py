"""A published nanochat model becomes a checkpoint of ours: the class NanoChatForCausalLM of Hugging Face transformers.

In: a folder, or a name on the hub. Out: a GPT whose logits are the same, and a Tokenizer that gives the same ids. That
class is an earlier design; gpt.py expresses it with switches and neutral scales, term by term:

    no value embeddings                  value_embeddings=False
    scores by 1/sqrt(D)                  attention_sharpness=1
    x + f(norm(x)) in every layer        residual_scale 1, x0_scale 0
    no mixing of neighbours              smear_scale 0
    rotation by the negative angle       the halves of each query's and key's channels change places
    rotation first, then the norm        the same, since a rotation keeps the length
"""

import json

import numpy as np
import torch

from nanochat import bpe_chunks
from nanochat.gpt import GATE_CHANNELS, GPT, SOFTCAP, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer, byte_letters

# On it both tokenizers must agree before anything is believed.
SAMPLE = "Hello, World! It's 12345 naïve 你好 🙂\n\n\tdef f(x):\r\n  return x**2  # don't  "


def load(path: str) -> tuple[GPT, Tokenizer]:
    """SystemExit if transformers is missing, or if `path` holds no model or one that gpt.py cannot express."""
    try:
        from transformers import AutoConfig, AutoTokenizer, NanoChatForCausalLM
    except ImportError:
        raise SystemExit("This needs the package transformers: pip install transformers") from None
    try:
        config = read_config(AutoConfig.from_pretrained(path))
        tokenizer = AutoTokenizer.from_pretrained(path)
        ours = read_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))
        if ours.encode(SAMPLE).tolist() != tokenizer.encode(SAMPLE, add_special_tokens=False):
            raise ValueError("its tokenizer gives other ids than its merges do here")
        if ours.vocab_size > config.vocab_size:
            raise ValueError(f"its tokenizer has {ours.vocab_size} ids, and the model room for {config.vocab_size}")
        theirs = NanoChatForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path} cannot be imported: {error}.") from error
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(convert(theirs.state_dict(), config), assign=True)
    return model, ours


def read_config(c) -> GPTConfig:
    """ValueError that names what gpt.py has no term for."""
    if c.model_type != "nanochat":
        raise ValueError(f"it is a {c.model_type}; only transformers' class nanochat can be expressed here")
    head_dim = c.hidden_size // c.num_attention_heads
    expressible = {
        "hidden_act": "relu2",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": SOFTCAP,
        "intermediate_size": 4 * c.hidden_size,
        "head_dim": head_dim,
    }
    for name, value in expressible.items():
        if getattr(c, name, value) != value:
            raise ValueError(f"{name} is {getattr(c, name)!r}, and gpt.py can only express {value!r}")
    rope = c.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(f"its rotary positions are of type {rope['rope_type']!r}, and gpt.py only knows 'default'")
    return GPTConfig(
        vocab_size=c.vocab_size,
        sequence_len=c.max_position_embeddings,
        n_layer=c.num_hidden_layers,
        n_head=c.num_attention_heads,
        n_kv_head=c.num_key_value_heads,
        n_embd=c.hidden_size,
        attention_sharpness=1.0,
        value_embeddings=False,
        rope_base=float(rope["rope_theta"]),
    )


def convert(theirs: dict[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """Their weights under our names."""
    head_dim = config.n_embd // config.n_head

    def heads(name: str) -> torch.Tensor:
        return theirs[name].view(-1, head_dim, config.n_embd)

    ours = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "head.weight": theirs["lm_head.weight"],
        "residual_scale": torch.ones(config.n_layer),
        "x0_scale": torch.zeros(config.n_layer),
        "smear_scale": torch.zeros(1),
        "smear_gate.weight": torch.zeros(1, 2 * GATE_CHANNELS),
    }
    for layer in range(config.n_layer):
        there, here = f"model.layers.{layer}.", f"blocks.{layer}."
        turned = [heads(f"{there}self_attn.{name}_proj.weight").roll(head_dim // 2, dims=1) for name in "qk"]
        ours[f"{here}attention.qkv"] = torch.cat((*turned, heads(f"{there}self_attn.v_proj.weight")))
        ours[f"{here}attention.proj.weight"] = theirs[f"{there}self_attn.o_proj.weight"]
        ours[f"{here}mlp.fc.weight"] = theirs[f"{there}mlp.fc1.weight"]
        ours[f"{here}mlp.proj.weight"] = theirs[f"{there}mlp.fc2.weight"]
    return ours


def read_tokenizer(value: dict) -> Tokenizer:
    """From the content of a tokenizer.json. ValueError unless its ids are numbered and its text is cut as ours."""
    split = value["pre_tokenizer"].get("pretokenizers", [{}])[0]
    if split.get("pattern", {}).get("Regex") != bpe_chunks.PATTERN:
        raise ValueError(f"its tokenizer does not cut text by the pattern of bpe_chunks.py, but so: {split}")
    special = {token["content"]: token["id"] for token in value["added_tokens"]}
    letters = {letter: byte for byte, letter in byte_letters().items()}
    ids = {id: bytes(map(letters.__getitem__, t)) for t, id in value["model"]["vocab"].items() if t not in special}
    if any(ids.get(byte) != bytes([byte]) for byte in range(256)) or sorted(ids) != list(range(len(ids))):
        raise ValueError("its tokenizer does not number the bytes from 0 to 255 and the merges behind them")
    if special != {name: len(ids) + k for k, name in enumerate(SPECIAL_TOKENS)}:
        raise ValueError(f"its special tokens are not {', '.join(SPECIAL_TOKENS)}, behind all other ids: {special}")
    merges: dict[tuple[int, int], int] = {}
    for id in range(256, len(ids)):
        # A token is made of the two that the merges before it leave of its bytes. Files that come from tiktoken also
        # list other pairs that would give the same bytes.
        parts = merge_bytes(list(ids[id]), merges)
        if len(parts) != 2:
            raise ValueError(f"no merge makes the token {ids[id]!r} of its tokenizer")
        merges[tuple(parts)] = id
    return Tokenizer(np.array(list(merges), np.int32))


def merge_bytes(parts: list[int], merges: dict[tuple[int, int], int]) -> list[int]:
    """The bytes of one token after all merges, the earliest first. The slow, obvious way."""
    while pairs := [merges[pair] for pair in zip(parts, parts[1:]) if pair in merges]:
        first, merged, i = min(pairs), [], 0
        while i < len(parts):
            if merges.get((parts[i], parts[i + 1] if i + 1 < len(parts) else -1)) == first:
                merged.append(first)
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return parts
