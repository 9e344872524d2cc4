"""Settings in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import HyperparameterError


def yaml_mapping(path: str | Path) -> Mapping[str, Any]:
    """The keys of a YAML file. Raises HyperparameterError, naming the file, if it cannot be read or holds none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        raise HyperparameterError(f"cannot read {path}: {failure}") from failure
    if not isinstance(values, Mapping):
        raise HyperparameterError(f"{path} holds no keys: it must be a YAML mapping such as 'layers: [4, 5, 6]'")
    return values
