"""The types in which a GGUF file holds numbers, and the names that it gives to a model's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelStructureError
from ..storage.gguf_file import GgufFile, gguf_library

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""The types that can be written: those that the package `gguf` quantises to, and llama.cpp reads everywhere."""

_WIDE = ("F32", "BF16")
"""Those with the range of float32. All others hold 16-bit floats: numbers, or a scale for each block of them."""


def kind_of(number: int) -> str:
    """The name of the type that has this number in files."""
    return str(_types()(number).name)


def number_of(kind: str) -> int:
    return int(_types()[kind])


def check_kind(kind: str) -> None:
    """Raises ModelStructureError for a type that cannot be written."""
    if kind not in KINDS:
        raise ModelStructureError(f"{kind!r} is no type that can be written: choose one of {', '.join(KINDS)}")


def bits(kind: str) -> float:
    """How many bits a number takes."""
    block, size = _library().GGML_QUANT_SIZES[_types()[kind]]
    return 8 * size / block


def holds(kind: str, weight: Tensor) -> bool:
    """Whether the weight can be written in this type: its rows are whole blocks, and no number is too large."""
    block = _library().GGML_QUANT_SIZES[_types()[kind]][0]
    in_range = kind in _WIDE or float(weight.abs().max()) <= torch.finfo(torch.float16).max
    return kind in KINDS and weight.shape[-1] % block == 0 and in_range


def written(weight: Tensor, kind: str) -> bytes:
    """A float32 weight, d_out × d_in on the CPU, as the bytes of a file."""
    return _library().quantize(weight.numpy(), _types()[kind]).tobytes()


def read(content: bytes, kind: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 numbers that these bytes stand for, as transformers reads them."""
    rows = np.frombuffer(content, np.uint8).reshape(*shape[:-1], -1)
    return torch.from_numpy(np.array(_library().dequantize(rows, _types()[kind]), np.float32).reshape(shape))


def tensor_name(file: GgufFile, module: str) -> str | None:
    """The name that the file has for a module's weight; None if it holds none that is known to be this."""
    library, architecture = _library(), file.metadata.get("general.architecture")
    known = next((key for key, name in library.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if known is None:
        return None
    blocks = file.metadata.get(f"{architecture}.block_count", 0)
    name = f"{library.get_tensor_name_map(known, blocks).get_name(module)}.weight"
    return name if name in file.tensors else None


def _library() -> Any:
    return gguf_library(ModelStructureError)


def _types() -> Any:
    return _library().GGMLQuantizationType
