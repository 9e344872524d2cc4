"""Settings in a name: `memit@mom2_update_weight=0@v_lr=0.1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import HyperparameterError
from ..storage.yaml_file import parsed_yaml


def parse_changes(changed: Sequence[str], name: str) -> dict[str, Any]:
    """Read each `KEY=VALUE`; a value is YAML. Raises HyperparameterError naming the method and the wrong part."""
    changes = {}
    for change in changed:
        key, equals, value = change.partition("=")
        if not equals:
            raise HyperparameterError(f"in the method {name!r}, {change!r} must be KEY=VALUE")
        try:
            changes[key] = parsed_yaml(value)
        except ValueError as failure:
            raise HyperparameterError(f"in the method {name!r}, {change!r} has no value: {failure}") from failure
    return changes


def show_changes(changes: Mapping[str, Any]) -> str:
    """The changes as `parse_changes` reads them, an @ before each."""
    return "".join(f"@{key}={_yaml(value)}" for key, value in changes.items())


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...").strip()
