"""JSON objects in files, with a checksum inside: one that was altered, cut short or is no JSON is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AlphaEditError
from .files import atomic

CHECKSUM = "sha256"
"""The key of the checksum: over the canonical JSON of all other keys."""


def write_json(path: Path, values: Mapping[str, Any], error: type[AlphaEditError]) -> None:
    """Write `values`, in JSON's types and without a key "sha256", and their checksum; the file is whole or absent.

    Raises `error`, naming the file, if it cannot be written.
    """
    plain = json.loads(json.dumps(values))  # keys as text, as they will be read
    text = json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=1, ensure_ascii=False) + "\n"
    with atomic(path, error) as temporary:
        temporary.write_bytes(json_bytes(text))


def read_json(path: Path, error: type[AlphaEditError]) -> dict[str, Any]:
    """The values that `write_json` wrote, without the checksum; a file without one (of 0.1.0) is read as it is.

    Raises `error`, naming the file, if it is absent, no JSON object, or not what was written.
    """
    values = load_json(path, error)
    if not isinstance(values, dict):
        raise error(f"{path} holds no JSON object: it is damaged, or another file")
    try:
        if CHECKSUM in values:
            whole = values.pop(CHECKSUM) == _checksum(values)
        else:  # the damage may be in the name of the checksum
            whole = not any(_vouches(values, key) for key in values)
    except RecursionError as failure:
        raise error(f"cannot read {path}: {failure}") from failure
    if not whole:
        raise error(f"{path} is damaged: its checksum does not match")
    return values


def load_json(path: Path, error: type[AlphaEditError]) -> Any:
    """What a JSON file holds. Raises `error`, naming the file, if it cannot be read: no UTF-8, nested too deeply, …"""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise error(f"cannot read {path}: {failure}") from failure


def json_bytes(text: str) -> bytes:
    """JSON text as UTF-8; halves of characters, as names of files may hold, in JSON's own escapes."""
    return text.encode("utf-8", "backslashreplace")


def _vouches(values: Mapping[str, Any], key: str) -> bool:
    """Whether the value of this key is the checksum of all others."""
    value = values[key]
    if not isinstance(value, str) or len(value) != 64:
        return False
    return value == _checksum({other: each for other, each in values.items() if other != key})


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
