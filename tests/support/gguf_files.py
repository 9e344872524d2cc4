"""GGUF files made with the package `gguf`: of tiny models that transformers can load, and of nothing but numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

from support.tiny import tiny

WIDTH = 64
"""Of a key: a whole number of blocks in every type that `gguf` writes."""

KEYS = {
    "llama": {
        "llama.block_count": 4,
        "llama.context_length": 128,
        "llama.embedding_length": 16,
        "llama.feed_forward_length": WIDTH,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 8,
    },
    "gpt2": {
        "gpt2.block_count": 4,
        "gpt2.context_length": 1024,  # transformers takes no other from a GPT-2 file
        "gpt2.embedding_length": 16,
        "gpt2.feed_forward_length": WIDTH,
        "gpt2.attention.head_count": 2,
    },
}
SETTINGS = {"llama": {"intermediate_size": WIDTH}, "gpt2": {"n_inner": WIDTH, "n_positions": 1024}}
_EPSILONS = {"llama": "llama.attention.layer_norm_rms_epsilon", "gpt2": "gpt2.attention.layer_norm_epsilon"}


def write_model(
    path: Path,
    tokenizer: Any,
    architecture: str = "llama",
    *,
    down: str = "F32",
    alignment: int = 32,
    keys: Mapping[str, int] = {},
) -> PreTrainedModel:
    """Write a tiny model, out-projections in the type `down`, as llama.cpp's converter lays it out; returns the model.

    Numbers in `keys` are added to the metadata.
    """
    model = tiny(architecture, vocab_size=512, **SETTINGS[architecture])
    writer = gguf.GGUFWriter(path, architecture)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("tiny")
    for key, value in {**KEYS[architecture], **keys}.items():
        writer.add_uint32(key, value)
    writer.add_float32(_EPSILONS[architecture], 1e-6 if architecture == "llama" else 1e-5)
    if architecture == "llama":
        writer.add_float32("llama.rope.freq_base", 10000.0)
    _add_tokenizer(writer, tokenizer)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 4)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module, _, suffix = name.rpartition(".")
        written = names.get_name(module)
        weight, kind = _laid_out(architecture, written, tensor.numpy()), "F32"
        if written.endswith("ffn_down") and suffix == "weight":
            kind = down
        _add(writer, f"{written}.{suffix}", weight, kind)
    _close(writer)
    return model


def _laid_out(architecture: str, name: str, weight: np.ndarray) -> np.ndarray:
    """As llama.cpp wants it: the halves of each rotary pair side by side, and no matrix transposed."""
    if architecture == "llama" and name.endswith(("attn_q", "attn_k")):
        heads = 2 if name.endswith("attn_q") else 1
        return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
    transposed = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    if architecture == "gpt2" and name.endswith(transposed) and weight.ndim == 2:
        return weight.T
    return weight


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(described["vocab"], key=described["vocab"].get)
    special = {"<pad>", "<s>", "</s>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in described["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def write_tensors(path: Path, tensors: Mapping[str, tuple[np.ndarray, str]], alignment: int) -> None:
    """A file of these tensors, name → (numbers, type), and a bit of metadata of every kind."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_array("some.names", ["one", "two", "three"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_bool("some.flag", True)
    writer.add_string("some.text", "Ünïcode")
    for name, (numbers, kind) in tensors.items():
        _add(writer, name, numbers, kind)
    _close(writer)


def _add(writer: gguf.GGUFWriter, name: str, numbers: np.ndarray, kind: str) -> None:
    kind = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(numbers, np.float32), kind), raw_dtype=kind)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""name → (type, shape, bytes)."""


def contents_of(path: Path) -> tuple[dict[str, Any], Tensors]:
    """(metadata, tensors), by the package `gguf`."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
