"""The names of EasyEdit's own methods among variants, `easyedit:METHOD` and `easyedit:METHOD+P`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..errors import CompareError, HyperparameterError
from .edition import PACKAGE, easyedit_module
from .methods import COVERED, check_covered

PREFIX = "easyedit:"

_UNFIT = {
    "IKE": "it edits the prompt and not the model, as in-context does",
    "ICE": "it edits the prompt and not the model, as in-context does",
    "FT-Api": "its model is behind an API",
    "DeepEdit-Api": "its model is behind an API",
    "SERAC": "a second model with tokens of its own answers for the edited one, so positions are not those scored here",
    "MELO": "it finds its adapters by a row's last token, which in its training is the target's and here the prompt's",
    "WISE": "it trains on unrelated prompts of its own data sets (loc_prompt), which facts here do not have",
    "KN": "it needs the old object of every fact, which an edit request does not carry",
    "DINM": "it edits the answers to questions about safety, not facts",
    "DEFER": "its wrapper around the model looks at one prompt at a time",
    "DPO": "it trains on pairs of answers (target_neg), which facts here do not have",
    "QLoRA": "it quantises the model that is to be compared",
    "SimIE": "it wraps a method of another file: name that method",
}
"""Methods of EasyEdit that a comparison cannot run, with the reason."""


@dataclass(frozen=True)
class Named:
    """`easyedit:METHOD`, with `+P` if what it writes is `projected`."""

    method: str
    projected: bool = False

    def __str__(self) -> str:
        return f"{PREFIX}{self.method}{'+P' if self.projected else ''}"


def is_baseline(variant: str) -> bool:
    return variant.strip().lower().startswith(PREFIX)


def parse_baseline(variant: str) -> Named:
    """Raises HyperparameterError for a method that EasyEdit lacks, that a comparison cannot run, or that +P cannot
    cover.

    If EasyEdit is not installed every name is accepted, and `baseline` raises the error.
    """
    method, *marks = (part.strip() for part in variant.strip()[len(PREFIX) :].split("+"))
    if not is_baseline(variant) or [mark.lower() for mark in marks] not in ([], ["p"]):
        raise HyperparameterError(f"there is no method {variant!r}: write {PREFIX}METHOD or {PREFIX}METHOD+P")
    try:
        known = list(functions())
    except CompareError:
        known = [*COVERED, method]
    method = next((name for name in known if name.lower() == method.lower()), method)
    if method in _UNFIT:
        raise HyperparameterError(f"{variant!r} cannot be compared: {_UNFIT[method]}")
    if method not in known:
        able = ", ".join(name for name in known if name not in _UNFIT)
        raise HyperparameterError(f"there is no method {variant!r}: this EasyEdit has {able}")
    if marks:
        try:
            check_covered(SimpleNamespace(alg_name=method))
        except HyperparameterError as failure:
            raise HyperparameterError(f"{variant!r}: +P means the flag null_space, and {failure}") from failure
    return Named(method, bool(marks))


def functions() -> dict[str, Callable[..., Any]]:
    """EasyEdit's own editing functions by method, without what the flag adds to its table or wraps around them.

    Raises CompareError if there is no EasyEdit.
    """
    table = easyedit_module("util.alg_dict").ALG_DICT
    return {
        name: inspect.unwrap(function)
        for name, function in table.items()
        if function.__module__.startswith(f"{PACKAGE}.")
    }
