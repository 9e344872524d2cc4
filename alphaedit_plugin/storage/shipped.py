"""Files that ship with the package: facts, held-out text, hyperparameters."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def shipped(name: str) -> Path:
    """The path of `examples/…` or `hparams/…`: inside an installed wheel, or beside the package in a checkout."""
    package = Path(str(resources.files("alphaedit_plugin")))
    return (package if (package / "examples").is_dir() else package.parent) / name
