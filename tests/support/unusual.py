"""Tiny decoders that are built otherwise than those of `tiny.py`: no cache, ALiBi, side paths, several streams."""

from __future__ import annotations

from transformers import PreTrainedModel

from support.tiny import model_of

_PER_LAYER_INPUTS = {
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 4,
}

# architecture -> (its config, as far as it is not that of `tiny.py`, and the out-projection)
UNUSUAL: dict[str, tuple[dict, str]] = {
    "rwkv": ({"attention_hidden_size": 16, "context_length": 128}, "rwkv.blocks.{}.feed_forward.value"),
    "gemma3n_text": (
        {
            **_PER_LAYER_INPUTS,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        "model.layers.{}.mlp.down_proj",
    ),
    "gemma4_text": (_PER_LAYER_INPUTS, "model.layers.{}.mlp.down_proj"),
    "recurrent_gemma": (
        {"head_dim": 8, "lru_width": 16, "attention_window_size": 128},
        "model.layers.{}.mlp_block.down_proj",
    ),
    "openai-gpt": ({"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 128}, "transformer.h.{}.mlp.c_proj"),
    "mpt": (
        {"d_model": 16, "n_heads": 2, "n_layers": 4, "expansion_ratio": 2, "max_seq_len": 128},
        "transformer.blocks.{}.ffn.down_proj",
    ),
}
PREFIXES_RUN_AGAIN = ("rwkv", "recurrent_gemma", "openai-gpt", "mpt")
"""Those whose cache does not give what whole sequences give, or that have none."""


def unusual(name: str, **options) -> PreTrainedModel:
    return model_of(name, **{**UNUSUAL[name][0], **options})
