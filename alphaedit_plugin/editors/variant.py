"""A method by name: a solver, then what happens to its updates."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import HyperparameterError
from .changes import parse_changes, show_changes
from .editor import Editor, Preserved
from .hyperparameters import Hyperparameters
from .registry import GRAMMAR, Modifier, check_names, find_method, find_modifier, is_modifier, own_settings, split
from .update import Site, Write


@dataclass(frozen=True)
class Variant:
    """`rome`, `memit+P`, `rect`, `alphaedit+prune`, `memit@mom2_update_weight=0+P`.

    A solver, with some of its hyperparameters changed; modifiers of each update, then those that act at the end of a
    sequence; projection of all that is written (`projected`). What a solver makes of null spaces ends in them too.
    """

    solver: str
    modifiers: tuple[str, ...] = ()
    projected: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Raises HyperparameterError for a name that is no variant."""
        check_names(name)
        head, *suffixes = split(name)
        solver, *changed = head.split("@")
        solver, marks = solver.strip().lower(), [suffix.lower() for suffix in suffixes]
        if is_modifier(solver):
            alone = find_modifier(solver).alone
            if alone is None:
                raise HyperparameterError(f"{solver} modifies what a solver does: name one, as in memit+{solver}")
            solver, marks = alone, [solver, *marks]
        found = find_method(solver)
        modifiers = [find_modifier(mark) for mark in marks if mark != "p"]
        if len(set(marks)) != len(marks):
            raise HyperparameterError(f"in the method {name!r} a mark stands twice: a method is {GRAMMAR}")
        modifiers.sort(key=lambda each: each.acts == "end")
        changes = parse_changes(changed, name)
        projected = "p" in marks or found.solver.needs_null_spaces
        variant = cls(solver, tuple(each.name for each in modifiers), projected, tuple(changes.items()))
        variant._check(name)
        return variant

    def _check(self, name: str) -> None:
        """Raises HyperparameterError for a change of a setting that none of its parts has."""
        changes = dict(self.changes)
        Hyperparameters(layers=(0,)).changed(changes, f"the method {name!r}")
        own = [find_method(self.solver).settings, *(each.settings for each in self._modifiers)]
        have = [key for settings in own for key in settings]
        for key in changes.keys() & own_settings().keys() - set(have):
            near = difflib.get_close_matches(key, have, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(have) or 'none'}"
            raise HyperparameterError(f"the method {name!r} has no setting {key!r} of its own; {hint}")

    def __str__(self) -> str:
        marks = list(self.modifiers)
        head = self.solver
        if marks and find_modifier(marks[0]).alone == head:
            head = marks.pop(0)
        if self.projected and not find_method(self.solver).solver.needs_null_spaces:
            marks.append("P")
        return "+".join([head + show_changes(dict(self.changes)), *marks])

    @property
    def _modifiers(self) -> list[Modifier]:
        return [find_modifier(name) for name in self.modifiers]

    @property
    def method(self) -> str:
        """Whose hyperparameter file it reads: the solver's, or that of a modifier that has one in its place."""
        folder = find_method(self.solver).folder
        for each in self._modifiers:
            if each.folder is not None and each.alone is not None and find_method(each.alone).folder == folder:
                return each.name
        return self.solver

    @property
    def ends(self) -> bool:
        """Whether something is to be done at the end of a sequence."""
        return self.trajectory != self

    @property
    def trajectory(self) -> Variant:
        """The variant whose weights are the same until the end of the sequence."""
        return replace(self, modifiers=tuple(each.name for each in self._modifiers if each.acts == "update"))

    @property
    def in_factors(self) -> bool:
        """Whether what is written is known in factors, until the end of the sequence."""
        return all(each.in_factors for each in self._modifiers if each.acts == "update")

    @property
    def needs_covariances(self) -> bool:
        needs: bool = find_method(self.solver).solver.needs_covariances
        return needs

    def hyperparameters(self, model: nn.Module, name: str, base: Hyperparameters | None = None) -> Hyperparameters:
        """`base`, or those of this method for the model called `name`, with the changes in the variant's own name."""
        found = base or Hyperparameters.for_model(self.method, model, name)
        return found.changed(dict(self.changes), f"the method {str(self)!r}")

    def editor(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        preserved: Preserved,
        *,
        base: Mapping[int, Tensor] | None = None,
        contexts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Editor:
        """The editor that this variant is, but for what it does at the end of a sequence.

        `base` is W before the first edit, by layer; by default W as it is now.
        """
        solver: type[Editor] = find_method(self.solver).solver
        modify = tuple(_bound(each, hyperparameters) for each in self._modifiers if each.acts == "update")
        inside = solver.needs_null_spaces and not modify
        editor = solver(model, tokenizer, hyperparameters, preserved, contexts=contexts, progress=progress)
        editor.write = Write(
            modify,
            preserved.null_spaces if self.projected and not inside else None,
            base or {layer: projection.matrix.clone() for layer, projection in editor.projections.items()},
            self.in_factors,
        )
        return editor

    def end(self, accumulated: Tensor, site: Site, hyperparameters: Hyperparameters) -> Tensor:
        """What becomes of ΔW, d_out × d_in, float64, at the end of a sequence; the very same if nothing does."""
        for each in self._modifiers:
            if each.acts == "end":
                accumulated = _bound(each, hyperparameters)(accumulated, site)
        return accumulated


def _bound(modifier: Modifier, hyperparameters: Hyperparameters) -> Any:
    """The modifier's function with its settings."""
    given = {key: value for key, value in hyperparameters.own if key in modifier.settings}
    return partial(modifier.function, **given)
