"""The header of our safetensors files: what it says is read at once, without the tensors and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import AlphaEditError


def stored_checksum(path: Path, error: type[AlphaEditError]) -> str | None:
    """The checksum that the file's header holds; whether it is right, `read_tensors` says."""
    return _header(path, error).get("sha256")


def stored_metadata(path: Path, error: type[AlphaEditError]) -> dict[str, Any]:
    """The metadata alone, at once however large the file is. Whether it is as it was written, `read_tensors` says.

    Raises `error`, naming the file, if there is none.
    """
    return parsed_metadata(path, metadata_text(path, _header(path, error), error), error)


def _header(path: Path, error: type[AlphaEditError]) -> dict[str, str]:
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as failure:
        raise error(f"cannot read {path}: {failure}. Is it complete? Delete it and make it again") from failure


def metadata_text(path: Path, header: Mapping[str, str], error: type[AlphaEditError]) -> str:
    """Our metadata, as text. Raises `error` if the header is that of another program's file."""
    if "alphaedit" not in header or "sha256" not in header:
        raise error(f"{path} was not written by alphaedit-plugin: it lacks our metadata")
    return header["alphaedit"]


def parsed_metadata(path: Path, text: str, error: type[AlphaEditError]) -> dict[str, Any]:
    """Raises `error` for what is no JSON mapping."""
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} holds metadata that cannot be read: {failure}. Delete it and make it again") from failure
    if not isinstance(metadata, dict):
        raise error(f"{path} was not written by alphaedit-plugin: its metadata is no mapping")
    return metadata
