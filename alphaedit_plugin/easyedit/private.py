"""A method of EasyEdit with globals of its own.

EasyEdit keeps context templates, covariances, P and the keys of earlier edits in globals of the method's module, which
all editors of a process share. For a flagged method on a model that module is executed once more.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from ..nullspace.covariance import Covariance

_CACHES = ("CONTEXT_TEMPLATES_CACHE", "COV_CACHE")


def private_module(function: Callable[..., Any]) -> ModuleType:
    """The module that defines `function`, executed anew; what it imports is shared."""
    spec = sys.modules[function.__module__].__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def another(module: ModuleType, function: Callable[..., Any]) -> ModuleType:
    """A private module that knows the same context templates and covariances."""
    made = private_module(function)
    for name in _CACHES:
        if name in vars(module):
            setattr(made, name, copy.copy(getattr(module, name)))
    return made


def lend(module: ModuleType, covariances: Mapping[int, Covariance], model: Any, template: str) -> None:
    """Puts C where the method looks first, so that it neither computes statistics nor downloads Wikipedia."""
    if "COV_CACHE" in vars(module):
        name = model.config._name_or_path.replace("/", "_")
        for layer, covariance in covariances.items():
            module.COV_CACHE[(name, template.format(layer))] = covariance.matrix.to("cpu", torch.float32)
