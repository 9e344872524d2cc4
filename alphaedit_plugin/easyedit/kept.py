"""Where a flagged method's state is kept between calls: with the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

State = TypeVar("State")

_ATTRIBUTE = "_alphaedit_methods"


class States:
    """The states of one model's flagged methods: by hyperparameter object (an editor has its own), then by method.

    Invariant: a state is dropped with its model or with its hyperparameters. A state may refer to its model, so the
    model holds the state, and the hyperparameters hold nothing. A copy of the model begins without states.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Any], dict[str, Any]]] = {}

    def by_method(self, hparams: Any) -> dict[str, Any]:
        key = id(hparams)
        if key not in self._of:
            self._of[key] = (weakref.ref(hparams, lambda _: self._of.pop(key, None)), {})
        return self._of[key][1]

    def __deepcopy__(self, memo: dict[int, Any]) -> States:
        return States()

    def __reduce__(self) -> tuple[Any, ...]:
        return States, ()


def kept(model: nn.Module, hparams: Any, name: str, make: Callable[[], State]) -> State:
    """The state of the method `name`, made if this is its first call."""
    by_method = _states(model).by_method(hparams)
    if name not in by_method:
        by_method[name] = make()
    return by_method[name]


def keep(model: nn.Module, hparams: Any, name: str, state: Any) -> None:
    _states(model).by_method(hparams)[name] = state


def _states(model: nn.Module) -> States:
    found: States = vars(model).setdefault(_ATTRIBUTE, States())
    return found
