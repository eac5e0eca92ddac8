"""A nanochat model for Hugging Face transformers: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).

The network itself is nanochat_model.py; this file gives it transformers' cache, masks, attention back-ends and
generate(). In: config.json and model.safetensors of an exported folder. Out: what any causal model of transformers is.

Its difference to other models is that each token's embedding is mixed with the one before it, so the cache also keeps
the last token, as the state of a convolution.
"""

import torch.nn.functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .nanochat_model import GPT


class NanochatConfig(PreTrainedConfig):
    """The keys of config.json; transformers' names for them are aliases."""

    model_type = "nanochat_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "max_position_embeddings": "sequence_len",
    }

    def __init__(
        self,
        vocab_size=32768,
        sequence_len=2048,
        n_layer=12,
        n_head=6,
        n_kv_head=6,
        n_embd=768,
        value_layers=(),
        rope_base=10_000.0,
        attention_sharpness=1.0,
        softcap=15.0,
        gate_channels=12,
        windows=(),
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size, self.sequence_len = vocab_size, sequence_len
        self.n_layer, self.n_head, self.n_kv_head, self.n_embd = n_layer, n_head, n_kv_head, n_embd
        self.value_layers, self.gate_channels = list(value_layers), gate_channels
        self.rope_base, self.attention_sharpness, self.softcap = rope_base, attention_sharpness, softcap
        self.windows, self.use_cache = list(windows) or [0] * n_layer, use_cache
        self.intermediate_size, self.head_dim = 4 * n_embd, n_embd // n_head
        # "hybrid": the first layer's cache holds keys and values, and the last token beside them.
        self.layer_types = ["hybrid"] + ["full_attention"] * (n_layer - 1)
        for derived in ("intermediate_size", "head_dim", "layer_types"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)


class NanochatForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NanochatConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config):
        super().__init__(config)
        self.model = GPT(config)
        for block in self.model.blocks:  # what transformers' attention functions read
            block.attention.num_key_value_groups = config.n_head // config.n_kv_head
            block.attention.is_causal = True
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embedding

    def get_output_embeddings(self):
        return self.model.head

    @staticmethod
    def create_masks_for_generate(attention_mask, **kwargs):
        """generate() would make the masks for a static cache; `forward` does it for any."""
        return attention_mask

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """input_ids (B, T) -> logits (B, T, V) float32, and the loss of `labels`, in which -100 does not count."""
        T = input_ids.size(1)
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = input_ids.new_ones(len(input_ids), start + T)
            if attention_mask is not None and attention_mask.dim() == 2:
                position_ids = attention_mask.long()
            position_ids = (position_ids.cumsum(dim=1) - 1).clamp(min=0)[:, -T:]

        seen = input_ids
        if past_key_values is not None:
            seen = past_key_values.update_conv_state(input_ids[:, None], 0, conv_kernel_size=1)[:, 0]
        previous = F.pad(seen, (1, 0))[:, -T - 1 : -1]
        masks = {
            window: create_causal_mask(
                config=self.config,
                inputs_embeds=self.model.embedding.weight.new_empty(*input_ids.shape, 1),  # its shape and type are read
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                and_mask_function=seen_by(window) if window else None,
            )
            for window in set(self.config.windows)
        }
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)

        def attend(attention, q, k, v):
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, attention.layer_idx)
            mask = masks[attention.window]
            return interface(attention, q, k, v, mask, dropout=0.0, scaling=attention.scaling, **kwargs)[0]

        x = self.model.features(input_ids, previous, position_ids, attend)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(x[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output if return_dict is not False else output.to_tuple()


def seen_by(window):
    """Further than this a token of such a layer does not look back."""
    return lambda batch, head, query, key: key > query - window


def eager_attention(module, q, k, v, mask, scaling, **kwargs):
    """attn_implementation="eager". q (B, H, T, D), mask (B, 1, T, S) is added -> (B, T, H, D) and the weights."""
    k, v = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (k, v))
    weights = q @ k.transpose(2, 3) * scaling
    weights = (weights if mask is None else weights + mask).float().softmax(dim=-1).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights
