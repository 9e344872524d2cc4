"""Files that ship with the package: facts, held-out text, hyperparameters."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def shipped(name: str) -> Path:
    """The path of `examples/…` or `hparams/…`: inside an installed wheel, or beside the package in a checkout."""
    return (_PACKAGE if (_PACKAGE / "examples").is_dir() else _PACKAGE.parent) / name
