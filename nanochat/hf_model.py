"""A Hugging Face model in the place of ours, to be scored by CORE.

In: a folder (or a name on the hub) with a causal language model and its tokenizer. Out: a model and a tokenizer with as
much of our interfaces as core_eval uses. Nothing of a prompt is computed once for several candidates here.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch


class HFTokenizer:
    """Text -> ids without special tokens. `bos_id` is what stands before every prompt: <bos>, else the end of text."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.bos_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if self.bos_id is None:
            raise SystemExit("The tokenizer has neither a bos nor an eos token, and CORE puts one before every prompt.")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]


class HFModel(torch.nn.Module):
    """Takes what core_eval hands to GPT.forward; its cache keeps the tokens of the prefixes and not their keys."""

    def __init__(self, model, limit: int):
        super().__init__()
        self.model, self.config = model, SimpleNamespace(sequence_len=limit)

    def forward(self, idx, cache, at=None):
        """idx (B, T). With `at` (B,): the logits (B, V) of these columns. Else idx goes on behind the prefixes of a
        forked cache: logits (B, T, V)."""
        if cache.rows is None:
            cache.layers["prefixes"] = idx
            cache.advance(idx, at + 1)
            return self.logits(idx)[torch.arange(len(idx), device=idx.device), at]
        places = cache.pos[:, None] + torch.arange(idx.size(1), device=idx.device)  # (B, T)
        prefixes = cache.layers["prefixes"][cache.rows]
        whole = torch.cat((prefixes, torch.zeros_like(idx)), dim=1).scatter(1, places, idx)
        logits = self.logits(whole)
        return logits.gather(1, places[..., None].expand(-1, -1, logits.size(2)))

    def logits(self, idx):
        """What is right of a row's end is padding: causal attention never looks there."""
        return self.model(idx, use_cache=False).logits.float()


def load(path: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[HFModel, HFTokenizer]:
    """SystemExit if the package transformers is missing or `path` holds no model; no code from the folder is run."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise SystemExit("--hf_path needs the package transformers: pip install transformers") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is no model that transformers can load: {error}") from error
    limits = (getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions"))
    limit = next(filter(None, limits), 2048)
    return HFModel(model, limit), HFTokenizer(tokenizer)
