"""Tiny random models of every architecture that `decoder.py` promises to understand."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from support.tokenizer import VOCABULARY

_LLAMA = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": 128,
    "n_embd": 16,
    "n_inner": 24,
    "n_layer": 4,
    "n_head": 2,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD_DIM = {"head_dim": 8}

# architecture -> (settings of its config, name of the out-projection in a block, transposed?, name of the final norm)
ARCHITECTURES: dict[str, tuple[dict, str, bool, str]] = {
    "gpt2": (_GPT2, "transformer.h.{}.mlp.c_proj", True, "transformer.ln_f"),
    "gptj": ({**_GPT2, "rotary_dim": 4}, "transformer.h.{}.mlp.fc_out", False, "transformer.ln_f"),
    "gpt_neox": (_LLAMA, "gpt_neox.layers.{}.mlp.dense_4h_to_h", False, "gpt_neox.final_layer_norm"),
    "gpt_neo": (
        {
            **_LLAMA,
            "num_layers": 4,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 64,
        },
        "transformer.h.{}.mlp.c_proj",
        False,
        "transformer.ln_f",
    ),
    "opt": (
        {**_LLAMA, "ffn_dim": 24, "word_embed_proj_dim": 16},
        "model.decoder.layers.{}.fc2",
        False,
        "model.decoder.final_layer_norm",
    ),
    "llama": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "mistral": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "qwen2": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "qwen3": ({**_LLAMA, **_HEAD_DIM}, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "gemma": ({**_LLAMA, **_HEAD_DIM}, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "gemma2": ({**_LLAMA, **_HEAD_DIM}, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "gemma3_text": ({**_LLAMA, **_HEAD_DIM}, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "phi": (_LLAMA, "model.layers.{}.mlp.fc2", False, "model.final_layernorm"),
    "phi3": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "falcon": ({**_LLAMA, "ffn_hidden_size": 24}, "transformer.h.{}.mlp.dense_4h_to_h", False, "transformer.ln_f"),
    "bloom": ({**_LLAMA, "n_layer": 4, "n_head": 2}, "transformer.h.{}.mlp.dense_4h_to_h", False, "transformer.ln_f"),
    "olmo2": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "stablelm": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "starcoder2": (_LLAMA, "model.layers.{}.mlp.c_proj", False, "model.norm"),
    "cohere": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "smollm3": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
    "granite": (_LLAMA, "model.layers.{}.mlp.down_proj", False, "model.norm"),
}
NAMES = list(ARCHITECTURES)

MORE: dict[str, dict] = {
    **{
        name: {**_LLAMA, **_HEAD_DIM}
        for name in ("ministral", "arcee", "apertus", "nanochat", "glm", "exaone4", "olmo", "olmo3", "glm4", "helium")
    },
    **{name: {**_LLAMA, **_HEAD_DIM} for name in ("nemotron", "persimmon", "ernie4_5", "gpt_bigcode", "bitnet")},
    "granite": {**_LLAMA, "residual_multiplier": 0.22},
}
"""Settings of architectures that only learned models have, or have with other settings: see `learned.py`."""


def tiny(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 0.3, **changes: object
) -> PreTrainedModel:
    """A 4-layer random model; weights of this `scale`, so that layers really depend on each other."""
    settings = ARCHITECTURES[name][0] if name in ARCHITECTURES else MORE.get(name, _LLAMA)
    config = AutoConfig.for_model(name, **{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * scale)
    return model.eval().requires_grad_(False)


def model_of(name: str = "llama", dtype: torch.dtype = torch.float64, **changes: object) -> PreTrainedModel:
    """A tiny model that the tests' tokenizers can feed, with the attention that its authors wrote down: one truth."""
    model = tiny(name, dtype=dtype, **{"vocab_size": VOCABULARY, **changes})
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def always(model: PreTrainedModel, scores: dict[int, float]) -> PreTrainedModel:
    """The model with the same logits everywhere: those given, and -100 for all other tokens."""
    head = model.get_output_embeddings()
    head.weight.zero_()
    head.bias = torch.nn.Parameter(torch.full((model.config.vocab_size,), -100.0, dtype=head.weight.dtype))
    for token, score in scores.items():
        head.bias[token] = score
    return model
