"""A method by name: a solver, then what happens to its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..errors import HyperparameterError
from .changes import parse_changes, show_changes
from .editor import Editor
from .hyperparameters import Hyperparameters, known_keys
from .preserved import Preserved
from .registry import ACTS, Method, Modifier, check_names, find, find_method, find_modifier, split, unknown_in
from .update import Write


@dataclass(frozen=True)
class Variant:
    """`rome`, `memit+P`, `rect`, `alphaedit+prune`, `memit@mom2_update_weight=0+P` (`registry.GRAMMAR`).

    A solver, with some of its hyperparameters changed; the modifiers of its updates; projection of what they leave.
    Invariant: modifiers of each update come first, in the order given, then those that act between updates, then those
    at the end; what solves in the null space is projected.
    """

    solver: str
    modifiers: tuple[str, ...] = ()
    projected: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.modifiers, key=lambda name: ACTS.index(find_modifier(name).acts))
        object.__setattr__(self, "modifiers", tuple(ordered))
        object.__setattr__(self, "projected", self.projected or self._method.editor.needs_null_spaces)

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Raises HyperparameterError for a name that is no variant."""
        check_names(name)
        solver, changed, marks = split(name)
        try:
            head, *found = [find(word) for word in (solver, *(mark for mark in marks if mark != "p"))]
            if isinstance(head, Modifier):
                if head.alone is None:
                    raise HyperparameterError(f"{solver} is no method but a modifier: write it as in memit+{solver}")
                found, head = [head, *found], find_method(head.alone)
            modifiers = tuple(find_modifier(each.name).name for each in found)
            if len(set(modifiers)) != len(modifiers):
                raise HyperparameterError(f"{solver} comes twice")
        except HyperparameterError as failure:
            raise unknown_in(name, failure) from failure
        changes = parse_changes(changed, name)
        variant = cls(head.name, modifiers, "p" in marks, tuple(changes.items()))
        variant.hyperparameters_of(Hyperparameters(layers=(0,)), f"the method {name!r}")
        return variant

    def __str__(self) -> str:
        marks = list(self.modifiers)
        head = self.solver
        if marks and find_modifier(marks[0]).alone == head:
            head = marks.pop(0)
        marks += ["P"] * (self.projected and not self._method.editor.needs_null_spaces)
        return "+".join([head + show_changes(dict(self.changes)), *marks])

    @property
    def _method(self) -> Method:
        return find_method(self.solver)

    def _acting(self, acts: str) -> list[Modifier]:
        return [each for each in map(find_modifier, self.modifiers) if each.acts == acts]

    @property
    def method(self) -> str:
        """Whose hyperparameter file it reads: the first modifier's that has files together with such a solver, or
        the solver's.
        """
        for each in map(find_modifier, self.modifiers):
            if each.folder and each.alone and find_method(each.alone).folder == self._method.folder:
                return each.name
        return self.solver

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that only its solver and its modifiers know, and their defaults.

        Raises HyperparameterError where two of them call a setting the same.
        """
        found: dict[str, Any] = {}
        known: list[Method | Modifier] = [self._method, *map(find_modifier, self.modifiers)]
        for each in known:
            if both := sorted((found.keys() | known_keys()) & each.settings.keys()):
                raise HyperparameterError(f"{self}: two of these have a setting {both[0]}, so they cannot be combined")
            found |= each.settings
        return found

    @property
    def ends(self) -> bool:
        """Whether there is something to do at the end of a sequence."""
        return bool(self._acting("end"))

    @property
    def trajectory(self) -> Variant:
        """The variant whose weights are the same until the end of the sequence."""
        ending = {key for each in self._acting("end") for key in each.settings}
        return replace(
            self,
            modifiers=tuple(each.name for acts in ("update", "between") for each in self._acting(acts)),
            changes=tuple((key, value) for key, value in self.changes if key not in ending),
        )

    @property
    def needs_covariances(self) -> bool:
        return bool(self._method.editor.needs_covariances)

    @property
    def needs_null_spaces(self) -> bool:
        return self.projected

    def hyperparameters(self, model: nn.Module, name: str, base: Hyperparameters | None = None) -> Hyperparameters:
        """`base`, or those of this method for the model called `name`, with the changes in the variant's own name.

        Of `base.own` only what this variant knows is kept: a file may serve several methods.
        """
        found = base or Hyperparameters.for_model(self.method, model, name)
        return self.hyperparameters_of(found, f"the method {str(self)!r}")

    def hyperparameters_of(self, base: Hyperparameters, name: str) -> Hyperparameters:
        """`base` with this variant's changes, as its solver uses them. Raises HyperparameterError, naming `name`."""
        changed = base.changed(dict(self.changes), name, self.settings)
        adapted: Hyperparameters = self._method.editor.adapted(changed, name)
        return adapted

    def at_end(self, hyperparameters: Hyperparameters) -> tuple[Modifier, ...]:
        """What acts at the end of a sequence, set to these hyperparameters."""
        return tuple(each.set_to(hyperparameters.own) for each in self._acting("end"))

    def editor(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        preserved: Preserved,
        *,
        base: Mapping[int, Tensor],
        contexts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Editor:
        """The editor that this variant is, but for what acts at the end.

        `base` is W before the first edit, by layer, d_out × d_in. What a solver leaves in the null space by itself is
        projected only where something modifies it.

        Raises HyperparameterError for a modifier that acts between updates with a solver that does not carry over.
        """
        solver = self._method.editor
        modifiers = tuple(each.set_to(hyperparameters.own) for each in self._acting("update"))
        between = tuple(each.set_to(hyperparameters.own) for each in self._acting("between"))
        if between and not solver.carries_over:
            raise HyperparameterError(
                f"{self}: {self.solver} does not ask for what earlier updates owe: leave {between[0].name} out, or "
                "take a solver that goes layer by layer, such as memit-seq"
            )
        projects = self.projected and (bool(modifiers) or not solver.needs_null_spaces)
        write = Write(modifiers, projects, preserved.null_spaces, base, between)
        editor: Editor = solver(
            model, tokenizer, hyperparameters, preserved, contexts=contexts, write=write, progress=progress
        )
        return editor
