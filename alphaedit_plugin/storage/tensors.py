"""safetensors files with a checksum and JSON metadata. A damaged file, or one that is not ours, is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AlphaEditError
from ..restoring import swapping
from .files import atomic
from .tensor_header import metadata_text, parsed_metadata


def tensor_digest(tensor: Tensor) -> str:
    """sha256 over type, shape and every byte."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    digest.update(data.data)
    return digest.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], error: type[AlphaEditError]
) -> str:
    """Write a safetensors file whose header holds `metadata` as JSON and a sha256 of everything, which is returned.

    Raises `error`, naming the file, if it cannot be written.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        seen = {other.data_ptr() for other in plain.values()}
        plain[name] = value.clone() if value.data_ptr() in seen else value  # safetensors refuses shared memory
    text = json.dumps(metadata, sort_keys=True)
    checksum = _checksum(plain, text)
    with atomic(path, error) as temporary:
        save_file(plain, temporary, metadata={"alphaedit": text, "sha256": checksum})
    return checksum


def read_tensors(path: Path, error: type[AlphaEditError]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata). A file that is absent, cut short, altered or not ours raises `error`, naming it."""
    with _opened(path, error) as (header, tensors):
        pass
    text = metadata_text(path, header, error)
    if _checksum(tensors, text) != header["sha256"]:
        raise error(f"{path} is damaged: its checksum does not match. Delete it and make it again")
    return tensors, parsed_metadata(path, text, error)


@swapping
def _opened(path: Path, error: type[AlphaEditError]) -> Iterator[tuple[dict[str, str], dict[str, Tensor]]]:
    """(header, tensors), read while Ctrl-C waits: safetensors makes another error of one that comes while it reads."""
    try:
        with safe_open(path, framework="pt") as file:
            # copies: tensors read from a file may start at any address, and alignment changes how kernels round
            found = file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as failure:
        raise error(f"cannot read {path}: {failure}. Is it complete? Delete it and make it again") from failure
    yield found


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    lines = [text, *(f"{name} {tensor_digest(tensors[name])}" for name in sorted(tensors))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
