"""Which of EasyEdit's methods the flag covers, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import HyperparameterError


@dataclass(frozen=True)
class Method:
    """A method whose ΔW can be projected.

    `standard_targets`: its `compute_z` is MEMIT's, so that ours can stand in. `remembers`: it keeps P and the keys of
    its own edits (Kp Kpᵀ) in globals named P and cache_c.
    """

    standard_targets: bool = False
    remembers: bool = False


COVERED = {
    "ROME": Method(),
    "R-ROME": Method(),
    "MEMIT": Method(standard_targets=True),
    "MEMIT-FE": Method(),
    "PMET": Method(),
    "EMMET": Method(standard_targets=True),
    "EAMET": Method(),
    "CORE": Method(),
    "AlphaEdit": Method(standard_targets=True, remembers=True),
    "SPHERE": Method(standard_targets=True, remembers=True),
    "FT": Method(),
    "DINM": Method(),
    "SimIE": Method(),
}

ADDED = {"RECT": "rect", "PRUNE": "prune", "AlphaEdit": "alphaedit"}
"""Entries for methods that an edition lacks, and what our `variant` calls them."""

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


def check_covered(hparams: Any) -> None:
    """Raises HyperparameterError, saying why, for hyperparameters of a method that the flag can do nothing for."""
    name = getattr(hparams, "alg_name", None)
    base = getattr(hparams, "base_method", None)  # SimIE's
    for each in [name] if base is None else [name, base]:
        if each not in COVERED and each not in ADDED:
            why = next((reason for reason, names in _WHY_NOT.items() if each in names), "it is not known to write one")
            raise HyperparameterError(
                f"null_space does nothing for {each}: {why}. Remove it, or use one of {', '.join({**COVERED, **ADDED})}"
            )


def templates(hparams: Any) -> list[str]:
    """Names of the modules that are written, with "{}" for the layer."""
    several: Sequence[str] | None = getattr(hparams, "rewrite_module_tmps", None)
    base = getattr(hparams, "base_method", None)
    if base is not None:
        return templates(hparams.base_hparams)
    named = several or [hparams.rewrite_module_tmp]
    return [name.removesuffix(".weight") for name in named]  # FT's files name the weight itself


def layers(hparams: Any) -> list[int]:
    if getattr(hparams, "base_method", None) is not None:
        return layers(hparams.base_hparams)
    return list(hparams.layers)
