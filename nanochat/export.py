"""A checkpoint as a folder that other people's tools read.

In: a loaded checkpoint. Out: a folder with nanochat_model.py (plain PyTorch), weights, config, tokenizer and a card.
For transformers there are also modeling_nanochat.py, a chat template and what generate() needs to know.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from nanochat import gpt, report
from nanochat.checkpoint_manager import Checkpoint
from nanochat.files import hidden, write_bytes, write_json
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

SOURCES = Path(__file__).parent / "exported"  # files that are copied, and run without this program
ASSISTANT_END, BOS = "<|assistant_end|>", "<|bos|>"
NO_GGUF = (
    "There is no --to=gguf: llama.cpp has no architecture that can express this model (value embeddings, a second look "
    "at the embedding in every layer, each token mixed with the one before it). A GGUF file of something similar would "
    "answer nonsense. --to=hf and --to=torch give the same answers as here; `python -m scripts.chat_web` serves the "
    "model through an OpenAI-compatible API."
)

# Roles and errors are those of tokenizer.checked_messages; what stands between {% generation %} tags is its mask.
# A special token's name in a message is broken by a word joiner, since transformers reads the rendered text as a whole.
CHAT_TEMPLATE = """\
{%- set names = NAMES %}
{%- macro inert(text) %}
{%- set safe = namespace(text=text) %}
{%- for name in names %}{% set safe.text = safe.text | replace(name, '<\\u2060' ~ name[1:]) %}{% endfor %}
{{- safe.text }}
{%- endmacro %}
{%- set turns = namespace(messages=messages, system='') %}
{%- if messages[0].role == 'system' %}
{%- set turns.messages = messages[1:] %}
{%- if messages[0].content %}{% set turns.system = messages[0].content ~ '\\n\\n' %}{% endif %}
{%- endif %}
{%- if not turns.messages %}{{ raise_exception('There must be a user message.') }}{% endif %}
{{- '<|bos|>' }}
{%- for message in turns.messages %}
{%- set role = 'assistant' if loop.index0 % 2 else 'user' %}
{%- if message.role != role %}
{{- raise_exception('Message ' ~ loop.index0 ~ ' has role ' ~ message.role ~ '; it must be ' ~ role ~ '.') }}
{%- endif %}
{%- if role == 'user' %}
{{- '<|user_start|>' ~ inert((turns.system if loop.first else '') ~ message.content) ~ '<|user_end|>' }}
{%- else %}
{{- '<|assistant_start|>' }}
{%- if message.content is string %}
{%- generation %}{{ inert(message.content) ~ '<|assistant_end|>' }}{% endgeneration %}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'python_output' %}
{{- '<|output_start|>' ~ inert(part.text) ~ '<|output_end|>' }}
{%- elif part.type == 'python' %}
{%- generation %}{{ '<|python_start|>' ~ inert(part.text) ~ '<|python_end|>' }}{% endgeneration %}
{%- elif part.type == 'text' and loop.previtem is defined and loop.previtem.type == 'text' %}
{{- raise_exception('Two parts of type text in a row: make one of them.') }}
{%- else %}
{%- generation %}{{ inert(part.text) }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- generation %}{{ '<|assistant_end|>' }}{% endgeneration %}
{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}
""".replace("NAMES", json.dumps(SPECIAL_TOKENS))


def export(checkpoint: Checkpoint, to: str, folder: Path) -> Path:
    """Write `folder`, whole or not at all. SystemExit for --to=gguf, or if the folder is there already."""
    if to == "gguf":
        raise SystemExit(NO_GGUF)
    if folder.exists():
        raise SystemExit(f"{folder} exists already. Give another --out, or delete it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden(folder, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        shutil.copy(SOURCES / "nanochat_model.py", temporary)
        save_file(weights(checkpoint), temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config(checkpoint))
        write_json(temporary / "tokenizer.json", tokenizer_json(checkpoint.tokenizer))
        if to == "hf":
            write_for_transformers(checkpoint, temporary)
        write_bytes(temporary / "README.md", card(checkpoint, to).encode())
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors makes its files readable by their owner only
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """By name, as in gpt.py. Rows of ids that the tokenizer does not have are left out: the engine never says them."""
    vocab_size, ids = checkpoint.tokenizer.vocab_size, checkpoint.model.config.vocab_size
    tensors = checkpoint.model.state_dict()
    tables = [name for name in tensors if name.startswith(("embedding.", "value_embeddings.", "head."))]
    assert all(len(tensors[name]) == ids for name in tables)
    return {name: (t[:vocab_size] if name in tables else t).contiguous() for name, t in tensors.items()}


def config(checkpoint: Checkpoint) -> dict:
    """config.json: the model's sizes, the constants of gpt.py, and what transformers looks for."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    sizes = asdict(model.config)
    del sizes["window"]  # said layer by layer
    return {
        "architectures": ["NanochatForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_nanochat.NanochatConfig",
            "AutoModelForCausalLM": "modeling_nanochat.NanochatForCausalLM",
        },
        "model_type": "nanochat_gpt",
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop_ids(tokenizer),
        "pad_token_id": tokenizer.bos_id,
        "tie_word_embeddings": False,
        "chat": checkpoint.stage != "base",
        **sizes,
        "vocab_size": tokenizer.vocab_size,
        "value_layers": [int(layer) for layer in model.value_embeddings],
        "softcap": gpt.SOFTCAP,
        "windows": [model.config.window_of(layer) or 0 for layer in range(model.config.n_layer)],
        "gate_channels": gpt.GATE_CHANNELS,
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """Ours, and <|bos|> before every text unless add_special_tokens=False: the model has seen nothing without it."""
    token = {"SpecialToken": {"id": BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    names = {BOS: {"id": BOS, "ids": [tokenizer.bos_id], "tokens": [BOS]}}
    template = {"single": [token, first], "pair": [token, first, second], "special_tokens": names}
    return tokenizer.to_json() | {"post_processor": {"type": "TemplateProcessing", **template}}


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """What ends an answer in our engine, too (answer.py)."""
    return [tokenizer.special[ASSISTANT_END], tokenizer.bos_id]


def write_for_transformers(checkpoint: Checkpoint, folder: Path) -> None:
    shutil.copy(SOURCES / "modeling_nanochat.py", folder)
    ids = stop_ids(checkpoint.tokenizer)
    generation = {"bos_token_id": ids[1], "eos_token_id": ids, "pad_token_id": ids[1], "do_sample": False}
    write_json(folder / "generation_config.json", generation)
    chat = checkpoint.stage != "base"
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": ASSISTANT_END if chat else BOS,
        "pad_token": BOS,  # never the end of an answer, which training would then not count
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": checkpoint.model.config.sequence_len,
    }
    write_json(folder / "tokenizer_config.json", tokenizer)
    if chat:
        write_bytes(folder / "chat_template.jinja", CHAT_TEMPLATE.encode())


# ---------------------------------------------------------------------------------------------------------------------
# The card: README.md

CARD = """\
---
library_name: {library}
tags: [nanochat]
pipeline_tag: text-generation
---

# {name}

A language model trained from scratch with nanochat: {about}.

{scores}
## Use

{use}
The context is {context:,} tokens. {warning}
"""

USE_TORCH = """\
    pip install torch safetensors tokenizers
    python nanochat_model.py "{question}"

`nanochat_model.py` is the whole model in plain PyTorch: the thing to read, and to port.
"""

USE_CHAT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
messages = [{{"role": "user", "content": "{question}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(answer[0, inputs["input_ids"].size(1):], skip_special_tokens=True))
```

`trust_remote_code` runs modeling_nanochat.py and nanochat_model.py of this folder, 350 lines that you can read first.
"""

USE_BASE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
inputs = tokenizer("{question}", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))
```

`trust_remote_code` runs modeling_nanochat.py and nanochat_model.py of this folder, 350 lines that you can read first.
"""

TOOL_WARNING = (
    "It was trained to ask a calculator and an encyclopedia between `<|python_start|>` and `<|python_end|>`; here "
    "nobody answers such a call, so a result that stands behind one is invented."
)


def card(checkpoint: Checkpoint, to: str) -> str:
    """README.md of the folder, with what the report says of this very checkpoint."""
    c, chat = checkpoint.model.config, checkpoint.stage != "base"
    use = USE_TORCH if to == "torch" else USE_CHAT if chat else USE_BASE
    parameters, last = sum(tensor.numel() for tensor in weights(checkpoint).values()), checkpoint.state.tokens
    return (
        CARD.format(
            library="transformers" if to == "hf" else "pytorch",
            name=f"{checkpoint.tag}-{checkpoint.stage}",
            about=f"{parameters:,} parameters, {c.n_layer} layers of {c.n_embd} channels, a vocabulary of "
            f"{checkpoint.tokenizer.vocab_size:,}, {last:,} tokens in its last stage ({checkpoint.stage})",
            scores=scores(checkpoint.path),
            use=use.format(folder=".", question="Why is the sky blue?" if chat else "The sky is"),
            context=c.sequence_len,
            warning=TOOL_WARNING if chat else "",
        ).rstrip()
        + "\n"
    )


def scores(path: Path) -> str:
    """What the report says of the checkpoint at `path`, as Markdown; "" if no section measured it."""
    metrics, rows = [], []
    for section in report.read_sections().values():
        if section.get("settings", {}).get("checkpoint") != str(path):
            continue
        for name, value in section.get("metrics", {}).items():
            metrics.append(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
        for score in section.get("scores", []):
            low, high = 100 * score["low"], 100 * score["high"]
            rows.append(
                f"| {score['name']} | {score['total']:,} | {100 * score['accuracy']:.1f}% | {low:.1f} to {high:.1f} "
                f"| {100 * score['chance']:.1f}% |"
            )
    if rows:
        rows = ["| task | items | accuracy | 95% interval | chance |", "|---|---|---|---|---|", *rows, ""]
    lines = ["## Measured\n", *(f"- {metric}" for metric in metrics), "", *rows, ""]
    return "\n".join(lines) if metrics or rows else ""
