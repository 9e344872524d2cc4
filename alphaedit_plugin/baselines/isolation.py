"""Run a method of EasyEdit in isolation: model, module globals, random states and working directory."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..model.gradients import gradients
from ..restoring import restoring, swapping
from .edition import PACKAGE
from .methods import templates

# Globals that EasyEdit's modules keep between calls of any user, with their values before the first call.
_FRESH: dict[str, Any] = {
    "CONTEXT_TEMPLATES_CACHE": None,
    "COV_CACHE": {},
    "inv_mom2_cache": {},
    "P_loaded": False,
    "cache_c_new": False,
}
_MADE = ("P", "cache_c")  # these do not exist before the first call


@restoring
def model_restored(model: Any, settings: Any) -> Iterator[None]:
    """Restore the model when the block ends: the weights that the method writes, gradients, flags, attributes."""
    written = [template.format(layer) for template in templates(settings) for layer in settings.layers]
    parameters = dict(model.named_parameters())
    before = {
        name: parameter.detach().clone()
        for name, parameter in parameters.items()
        if any(name.startswith(f"{module}.") for module in written)
    }
    recorded = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}
    training = [(module, module.training) for module in model.modules()]
    attributes = set(vars(model))
    try:
        yield
    finally:
        for name, (requires, gradient) in recorded.items():
            parameters[name].requires_grad_(requires)
            parameters[name].grad = gradient
        with gradients(False):
            for name, weight in before.items():
                parameters[name].copy_(weight)
        for module, flag in training:
            module.training = flag
        for added in set(vars(model)) - attributes:
            delattr(model, added)


class ModuleGlobals:
    """The globals of EasyEdit's modules for one user; while `in_place` they replace everybody else's.

    Invariant: outside `in_place` the modules hold what they would without us. The first block begins with the globals
    before any call and with those `given`, (module, name) → value; each further block begins as the last one ended.
    """

    def __init__(self, given: Mapping[tuple[str, str], Any] | None = None) -> None:
        self._ours: dict[tuple[str, str], Any] = dict(given or {})

    @swapping
    def in_place(self) -> Iterator[None]:
        theirs = self._current()
        for (module, name), _ in theirs.items():
            if name in _MADE:
                delattr(sys.modules[module], name)
            else:
                setattr(sys.modules[module], name, copy.copy(_FRESH[name]))
        self._install(self._ours)
        try:
            yield
        finally:
            self._ours = self._current()
            for module, name in self._ours:
                if name in _MADE:
                    delattr(sys.modules[module], name)
            self._install(theirs)

    @staticmethod
    def _current() -> dict[tuple[str, str], Any]:
        return {
            (module, name): vars(sys.modules[module])[name]
            for module in list(sys.modules)
            if module.startswith(f"{PACKAGE}.models.")
            for name in (*_FRESH, *_MADE)
            if name in vars(sys.modules[module])
        }

    @staticmethod
    def _install(values: Mapping[tuple[str, str], Any]) -> None:
        for (module, name), value in values.items():
            setattr(sys.modules[module], name, value)


@restoring
def working_in(folder: Path) -> Iterator[None]:
    """Change the working directory for the block: AlphaEdit saves its P there, regardless of P_loc."""
    before = Path.cwd()
    try:
        os.chdir(folder)
        yield
    finally:
        os.chdir(before)
