"""Which of EasyEdit's methods can be projected, by +P and by the flag, and why not the others."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import HyperparameterError
from .edition import PACKAGE


@dataclass(frozen=True)
class Method:
    """A method whose ΔW can be projected.

    `standard_targets`: its `compute_z` is MEMIT's, so that ours can stand in. `remembers`: it keeps P and the keys of
    its own edits (Kp Kpᵀ) in globals named P and cache_c. `by_substring`: it writes every parameter whose name holds
    the template. `returns_no_weights`: it does not return the original weights even when asked to.
    """

    standard_targets: bool = False
    remembers: bool = False
    by_substring: bool = False
    returns_no_weights: bool = False


COVERED = {
    "ROME": Method(),
    "R-ROME": Method(),
    "MEMIT": Method(standard_targets=True),
    "MEMIT-FE": Method(),
    "PMET": Method(),
    "EMMET": Method(standard_targets=True, returns_no_weights=True),
    "EAMET": Method(),
    "CORE": Method(),
    "AlphaEdit": Method(standard_targets=True, remembers=True),
    "SPHERE": Method(standard_targets=True, remembers=True),
    "FT": Method(by_substring=True),
    "DINM": Method(by_substring=True, returns_no_weights=True),
    "SimIE": Method(),
}

ADDED = {"RECT": "rect", "PRUNE": "prune", "AlphaEdit": "alphaedit"}
"""Methods that an edition lacks, and the names of our variants for them."""

_WHY_NOT = {
    "it leaves the weights alone and answers from a prompt or a memory": ("IKE", "ICE", "SERAC", "GRACE", "DEFER"),
    "it adds parameters of its own instead of writing ΔW into a feed-forward out-projection": (
        "LoRA",
        "QLoRA",
        "DPO",
        "MELO",
        "WISE",
    ),
    "a hypernetwork chooses what it writes, into other matrices too": ("MEND", "MALMEN", "ULTRAEDIT"),
    "it suppresses single neurons instead of writing a ΔW": ("KN",),
    "the model is behind an API": ("FT-Api", "DeepEdit-Api"),
}


def effective(hparams: Any) -> Any:
    """The hyperparameters of the method that writes: for SimIE its base method's, otherwise the given ones."""
    return hparams.base_hparams if getattr(hparams, "base_method", None) is not None else hparams


def check_covered(hparams: Any) -> None:
    """Raises HyperparameterError, saying why, for hyperparameters of a method that cannot be projected."""
    name = getattr(hparams, "alg_name", type(hparams).__name__)
    for each in filter(None, [name, getattr(hparams, "base_method", None)]):
        if each not in COVERED and each not in ADDED:
            why = next((reason for reason, names in _WHY_NOT.items() if each in names), "it is not known to write one")
            raise HyperparameterError(
                f"null_space does nothing for {each}: {why}. Remove it, or use one of {', '.join({**COVERED, **ADDED})}"
            )


def templates(hparams: Any) -> list[str]:
    """Names of the modules that are written, with "{}" for the layer."""
    settings = effective(hparams)
    several: Sequence[str] | None = getattr(settings, "rewrite_module_tmps", None)
    named = several or [settings.rewrite_module_tmp]
    return [name.removesuffix(".weight") for name in named]  # FT's files name the weight itself


def restores_by_itself() -> bool:
    """Whether `sequential_edit`, not `keep_original_weight`, tells this edition's editor what to restore."""
    editor = importlib.import_module(f"{PACKAGE}.editors.editor").BaseEditor
    return "sequential_edit" in inspect.signature(editor.edit).parameters
