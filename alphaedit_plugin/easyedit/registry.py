"""Where a flagged method's state is kept: with the model, for one hyperparameter object and one method."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Run = TypeVar("Run")

_ATTRIBUTE = "_alphaedit_runs"


class Runs:
    """The runs of one model, by method, for each hyperparameter object (an editor has its own).

    They go when either goes: a run may hold its model, so the model holds the run, and the hyperparameters nothing.
    A copy of the model begins without runs.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Any], dict[str, Any]]] = {}

    def by_method(self, hparams: Any) -> dict[str, Any]:
        key = id(hparams)
        if key not in self._of:
            self._of[key] = (weakref.ref(hparams, lambda _: self._of.pop(key, None)), {})
        return self._of[key][1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        return Runs()

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, ()


def run_of(model: nn.Module, hparams: Any, name: str, make: Callable[[], Run]) -> Run:
    """The run of this method, made if it is the first call."""
    by_method = _runs(model).by_method(hparams)
    if name not in by_method:
        by_method[name] = make()
    return by_method[name]


def put_run(model: nn.Module, hparams: Any, name: str, run: Any) -> None:
    _runs(model).by_method(hparams)[name] = run


def _runs(model: nn.Module) -> Runs:
    found: Runs = vars(model).setdefault(_ATTRIBUTE, Runs())
    return found
