"""Settings in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import HyperparameterError


def yaml_mapping(path: str | Path, example: str = "layers: [4, 5, 6]") -> Mapping[str, Any]:
    """The keys of a YAML file. Raises HyperparameterError where it holds none, with the file's name and an example."""
    try:
        values = parsed_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise HyperparameterError(f"cannot read {path}: {failure}") from failure
    if not isinstance(values, Mapping):
        raise HyperparameterError(f"{path} holds no keys: it must be a YAML mapping such as {example!r}")
    return values


def parsed_yaml(text: str) -> Any:
    """The value of YAML text. Raises ValueError for text that has none: bad syntax, `!!int x`, nested too deeply, …"""
    try:
        return yaml.safe_load(text)
    except Exception as failure:  # yaml's own, and whatever int, float and datetime raise inside of its constructors
        raise ValueError(str(failure) or type(failure).__name__) from failure
