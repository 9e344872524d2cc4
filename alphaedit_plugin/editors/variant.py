"""A method by name: a solver, then what happens to its updates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import HyperparameterError
from ..nullspace.covariance import Covariance
from ..nullspace.projection import NullSpace
from .alphaedit import AlphaEdit
from .changes import parse_changes, show_changes
from .editor import Editor
from .hyperparameters import Hyperparameters
from .memit import MEMIT, MEMITSequential
from .rect import PAPER_KEEP
from .rome import ROME
from .update import Write

SOLVERS: dict[str, type[Editor]] = {
    "rome": ROME,
    "memit": MEMIT,
    "memit-seq": MEMITSequential,
    "alphaedit": AlphaEdit,
}

GRAMMAR = (
    f"SOLVER[@KEY=VALUE…][+rect][+prune][+P] with SOLVER one of {', '.join(SOLVERS)}; rect and prune alone are memit's"
)


@dataclass(frozen=True)
class Variant:
    """`rome`, `memit+P`, `rect`, `alphaedit+prune`, `memit@mom2_update_weight=0+P`.

    A solver, with some of its hyperparameters changed; RECT's sparsification of each update (`rect`); PRUNE's
    damping at the end of a sequence (`prune`); projection of both (`projected`). Whatever AlphaEdit solves ends in
    the null space too.
    """

    solver: str
    rect: bool = False
    prune: bool = False
    projected: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Raises HyperparameterError for a name that is no variant."""
        head, *suffixes = (part.strip() for part in re.split(r"\+(?!\d)", name))  # 1e+3 is a number
        solver, *changed = head.split("@")
        solver, marks = solver.lower(), [suffix.lower() for suffix in suffixes]
        if solver in ("rect", "prune"):
            solver, marks = "memit", [solver, *marks]
        if solver not in SOLVERS or not set(marks) <= {"rect", "prune", "p"} or len(set(marks)) != len(marks):
            raise HyperparameterError(f"there is no method {name!r}: a method is {GRAMMAR}")
        changes = parse_changes(changed, name)
        variant = cls(
            solver, "rect" in marks, "prune" in marks, "p" in marks or solver == "alphaedit", tuple(changes.items())
        )
        Hyperparameters(layers=(0,)).changed(changes, f"the method {name!r}")
        return variant

    def __str__(self) -> str:
        marks = ["rect"] * self.rect + ["prune"] * self.prune + ["P"] * (self.projected and self.solver != "alphaedit")
        head = self.solver
        if head == "memit" and marks and marks[0] != "P":
            head = marks.pop(0)
        return "+".join([head + show_changes(dict(self.changes)), *marks])

    @property
    def method(self) -> str:
        """Whose hyperparameter file it reads: a key of `hparams.METHODS`."""
        if self.solver in ("rome", "alphaedit"):
            return self.solver
        return "rect" if self.rect else "prune" if self.prune else "memit"

    @property
    def trajectory(self) -> Variant:
        """The variant whose weights are the same until the end of the sequence: PRUNE acts only then."""
        return replace(self, prune=False)

    @property
    def needs_covariances(self) -> bool:
        return SOLVERS[self.solver].needs_covariances

    @property
    def needs_null_spaces(self) -> bool:
        return self.projected

    def hyperparameters(self, model: nn.Module, name: str, base: Hyperparameters | None = None) -> Hyperparameters:
        """`base`, or those of this method for the model called `name`, with the changes in the variant's own name."""
        found = base or Hyperparameters.for_model(self.method, model, name)
        return found.changed(dict(self.changes), f"the method {str(self)!r}")

    def editor(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        covariances: Mapping[int, Covariance],
        null_spaces: Mapping[int, NullSpace],
        *,
        contexts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Editor:
        """The editor that this variant is, but for PRUNE."""
        solver: Any = SOLVERS[self.solver]
        inside = solver.needs_null_spaces and not self.rect
        write = Write(PAPER_KEEP if self.rect else None, null_spaces if self.projected and not inside else None)
        source = null_spaces if solver.needs_null_spaces else covariances
        return solver(model, tokenizer, hyperparameters, source, contexts=contexts, write=write, progress=progress)
