"""Null-space constrained knowledge editing (AlphaEdit, ICLR 2025) for the editors people already run.

Everything that users need is here, and is imported at first use: `import alphaedit_plugin` alone loads neither torch
nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison.compare import compare
    from .editors.chat import Chat
    from .editors.constrained import null_space_constrained
    from .editors.hyperparameters import Hyperparameters
    from .editors.layered import LayeredEditor
    from .editors.registry import method, modifier
    from .editors.sparing import sparing
    from .editors.update import Site, Update
    from .editors.variant import Variant
    from .editors.verdict import Verdict
    from .errors import AlphaEditError
    from .evaluation.datasets import load_facts
    from .evaluation.fact_scores import score
    from .model.loading import load
    from .nullspace.guard import guard
    from .nullspace.kronecker import LowCurvature
    from .nullspace.null_spaces import NullSpaces
    from .nullspace.projection import Criterion
    from .nullspace.statistics import Preparation
    from .report.page import write_report
    from .report.tables import table
    from .session.patch import apply_patch, revert_patch
    from .session.session import Session
    from .storage.shipped import shipped

__version__ = "0.1.0"

_HOME = {
    "AlphaEditError": "errors",
    "Chat": "editors.chat",
    "Criterion": "nullspace.projection",
    "Hyperparameters": "editors.hyperparameters",
    "LayeredEditor": "editors.layered",
    "LowCurvature": "nullspace.kronecker",
    "NullSpaces": "nullspace.null_spaces",
    "Preparation": "nullspace.statistics",
    "Session": "session.session",
    "Site": "editors.update",
    "Update": "editors.update",
    "Variant": "editors.variant",
    "Verdict": "editors.verdict",
    "apply_patch": "session.patch",
    "compare": "comparison.compare",
    "guard": "nullspace.guard",
    "load": "model.loading",
    "load_facts": "evaluation.datasets",
    "method": "editors.registry",
    "modifier": "editors.registry",
    "null_space_constrained": "editors.constrained",
    "revert_patch": "session.patch",
    "score": "evaluation.fact_scores",
    "shipped": "storage.shipped",
    "sparing": "editors.sparing",
    "table": "report.tables",
    "write_report": "report.page",
}
"""name → the module that defines it."""

__all__ = [
    "AlphaEditError",
    "Chat",
    "Criterion",
    "Hyperparameters",
    "LayeredEditor",
    "LowCurvature",
    "NullSpaces",
    "Preparation",
    "Session",
    "Site",
    "Update",
    "Variant",
    "Verdict",
    "apply_patch",
    "compare",
    "guard",
    "load",
    "load_facts",
    "method",
    "modifier",
    "null_space_constrained",
    "revert_patch",
    "score",
    "shipped",
    "sparing",
    "table",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found  # from now on it is an ordinary attribute
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
