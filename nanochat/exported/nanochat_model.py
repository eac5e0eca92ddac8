"""A nanochat model in one file of plain PyTorch: to read it, to port it, to run it where nothing else is installed.

It lies in an exported folder beside config.json, model.safetensors and tokenizer.json, and needs torch, safetensors and
tokenizers:  python nanochat_model.py "Why is the sky blue?"

B batch, T tokens, C channels (n_embd), H heads, D channels of a head, V vocabulary, S stored positions.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


def norm(x):
    """RMSNorm without gain."""
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + D/2]) by its position's angle. x (B, T, H, D); cos, sin (B, T, 1, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.window = config.windows[layer]  # tokens, its own among them, that a token sees; 0: all
        self.head_dim = config.n_embd // config.n_head
        self.scaling = config.attention_sharpness / math.sqrt(self.head_dim)
        # A matrix (D, C) for each head: those of the queries, then of the keys, then of the values.
        self.qkv = nn.Parameter(torch.empty(config.n_head + 2 * config.n_kv_head, self.head_dim, config.n_embd))
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        gated = layer in config.value_layers
        self.value_gate = nn.Linear(config.gate_channels, config.n_kv_head, bias=False) if gated else None

    def forward(self, x, rotary, value_embedding, attend):
        B, T, _ = x.shape
        heads = F.linear(x, self.qkv.flatten(0, 1)).view(B, T, -1, self.head_dim)
        n = self.config.n_head, self.config.n_kv_head, self.config.n_kv_head
        q, k, v = heads.split(n, dim=2)
        q, k = rotate(norm(q), *rotary), rotate(norm(k), *rotary)
        if self.value_gate is not None:
            gate = 3 * self.value_gate(x[..., : self.config.gate_channels]).sigmoid()
            v = v + gate[..., None] * value_embedding.view(v.shape)
        y = attend(self, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, T, H, D)
        return self.proj(y.reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x, rotary, value_embedding, attend):
        x = x + self.attention(norm(x), rotary, value_embedding, attend)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """`config` has the names and values of config.json."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        V, C, kv_channels = config.vocab_size, config.n_embd, config.n_kv_head * config.n_embd // config.n_head
        self.embedding = nn.Embedding(V, C)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.value_embeddings = nn.ModuleDict({str(i): nn.Embedding(V, kv_channels) for i in config.value_layers})
        self.residual_scale = nn.Parameter(torch.empty(config.n_layer))
        self.x0_scale = nn.Parameter(torch.empty(config.n_layer))
        self.smear_gate = nn.Linear(2 * config.gate_channels, 1, bias=False)
        self.smear_scale = nn.Parameter(torch.empty(1))
        self.head = nn.Linear(C, V, bias=False)

    def features(self, ids, previous, positions, attend):
        """What the head reads, (B, T, C). All in (B, T): the tokens, those before them, and where they stand, from 0
        on. attend(layer's Attention, q, k, v) -> (B, T, H, D), from q (B, H, T, D) and k, v (B, H of them, T, D)."""
        dtype = self.embedding.weight.dtype
        x = norm(self.embedding(ids))
        # Smear: each token's embedding is mixed with the one before it; the first has none before it.
        gate = self.smear_scale * self.smear_gate(x[..., : 2 * self.config.gate_channels]).sigmoid()
        x = x0 = x + gate * (positions > 0)[..., None] * norm(self.embedding(previous))

        head_dim = self.config.n_embd // self.config.n_head
        channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=ids.device)
        angles = positions[..., None, None].float() * self.config.rope_base ** (-channel / head_dim)
        rotary = angles.cos().to(dtype), angles.sin().to(dtype)
        for layer, block in enumerate(self.blocks):
            value_embedding = self.value_embeddings[str(layer)](ids) if str(layer) in self.value_embeddings else None
            x = self.residual_scale[layer] * x + self.x0_scale[layer] * x0
            x = block(x, rotary, value_embedding, attend)
        return norm(x)

    def logits(self, x):
        """(B, T, C) -> (B, T, V) float32, smoothly bound to +-softcap."""
        return self.config.softcap * torch.tanh(self.head(x).float() / self.config.softcap)

    def forward(self, ids, cache=None):
        """ids (B, T) -> logits (B, T, V). `cache` is a dict, {} at first: ids go on behind what it has seen."""
        cache = {} if cache is None else cache
        seen = torch.cat((cache.get("ids", ids[:, :0]), ids), dim=1)
        S, T = seen.size(1), ids.size(1)
        positions = torch.arange(S, device=ids.device).expand_as(seen)
        causal = torch.ones(T, S, dtype=torch.bool, device=ids.device).tril(S - T)

        def attend(attention, q, k, v):
            mask = causal.triu(S - T - attention.window + 1) if attention.window else causal
            if attention.layer_idx in cache:
                k, v = (torch.cat(pair, dim=2) for pair in zip(cache[attention.layer_idx], (k, v)))
            cache[attention.layer_idx] = k, v
            y = F.scaled_dot_product_attention(q, k, v, mask, scale=attention.scaling, enable_gqa=True)
            return y.transpose(1, 2)

        previous = F.pad(seen, (1, 0))[:, S - T : S]
        cache["ids"] = seen
        return self.logits(self.features(ids, previous, positions[:, S - T :], attend))


def load(folder) -> GPT:
    """The model in an exported folder."""
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = GPT(SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text())))
    weights = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()}, assign=True)
    return model.eval()


@torch.inference_mode()
def generate(model: GPT, ids: list[int], max_tokens=256, temperature=1.0, top_k=50, stop=()) -> Iterator[int]:
    """The tokens of an answer, one by one, until it says one of `stop`. Temperature 0 takes the likeliest."""
    cache, new = {}, torch.tensor([ids])
    for _ in range(min(max_tokens, model.config.sequence_len - len(ids))):
        logits = model(new, cache)[0, -1]
        if temperature > 0:
            likeliest = logits.topk(min(top_k, len(logits)) if top_k else len(logits))
            choice = torch.multinomial((likeliest.values / temperature).softmax(dim=0), 1)
            id = likeliest.indices[choice].item()
        else:
            id = logits.argmax().item()
        if id in stop:
            return
        yield id
        new = torch.tensor([[id]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the model in this folder, or, if it is a base model, go on.")
    parser.add_argument("text")
    parser.add_argument("--max_tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_k", type=int, default=50)
    args = parser.parse_args()

    from tokenizers import Tokenizer

    folder = Path(__file__).parent
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # text never becomes a special token
    special = tokenizer.token_to_id
    ids = tokenizer.encode(args.text, add_special_tokens=False).ids
    if model.config.chat:
        ids = [special("<|user_start|>"), *ids, special("<|user_end|>"), special("<|assistant_start|>")]
    ids = [special("<|bos|>"), *ids]
    stop = special("<|assistant_end|>"), special("<|bos|>")
    answer = list(generate(model, ids, args.max_tokens, args.temperature, args.top_k, stop))
    print(tokenizer.decode(answer, skip_special_tokens=False))


if __name__ == "__main__":
    main()
