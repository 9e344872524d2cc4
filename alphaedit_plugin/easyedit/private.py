"""A method of EasyEdit with globals of its own.

EasyEdit keeps context templates, covariances, P and the keys of earlier edits in globals of the method's module, which
all editors of a process share. A flagged run executes that module once more, for itself alone.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def private_module(function: Callable[..., Any]) -> ModuleType:
    """The module that defines `function`, executed anew; what it imports is shared."""
    spec = sys.modules[function.__module__].__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
