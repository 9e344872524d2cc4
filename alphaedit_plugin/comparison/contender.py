"""What a comparison requires: a contender has a name and, on a model, an identity, layers, and edits batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..editors.capacity import Capacity
from ..editors.hyperparameters import Hyperparameters
from ..editors.targets import Targets
from ..editors.variant import Variant
from ..errors import HyperparameterError
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Preparation, Statistics
from ..progress import progress_bar
from .course import Checkpoint, Course
from .run_folder import RunFolder


@dataclass(frozen=True)
class Ground:
    """The model that all contenders start from, and what determines how they are prepared for it.

    `name` selects the hyperparameter files. `layers` and `hyperparameters` (one for all, or by the contender's name)
    override those of each method; `statistics`, in the same two forms, are used instead of preparing any.
    `baseline_hparams` are those of EasyEdit's methods, by the contender's name (a mapping, or the path of a YAML).
    """

    model: Any
    tokenizer: Any
    name: str = ""
    preparation: Preparation = field(default_factory=Preparation)
    layers: tuple[int, ...] | None = None
    hyperparameters: Hyperparameters | Mapping[str, Hyperparameters] | None = None
    statistics: Statistics | Mapping[str, Statistics] | None = None
    baseline_hparams: Mapping[str, Any] = field(default_factory=dict)

    def hyperparameters_of(self, name: str, variant: Variant) -> Hyperparameters:
        """Hyperparameters of the contender called `name`, which is `variant` or is prepared like it."""
        given = self.hyperparameters
        if isinstance(given, Mapping):
            if name not in given:
                raise HyperparameterError(f"there are no hyperparameters of {name}, only of {', '.join(given)}")
            given = given[name]
        base = given or Hyperparameters.for_model(variant.method, self.model, self.name)
        base, criterion = base.with_layers(self.layers), self.preparation.criterion
        if criterion is not None:  # what the contender's own name says goes before it
            base = replace(base, null_space=criterion)
        return variant.hyperparameters(self.model, self.name, base)

    def null_spaces(self, values: Hyperparameters, layers: Sequence[int], statistics: Statistics) -> NullSpaces:
        """Of these layers, by the criterion in `values`.

        Raises NullSpaceError if nothing, or everything, is null; WrongModelError for statistics of another model.
        """
        found = null_spaces_of(statistics.of_layers(layers), values.null_space, store=self.preparation.store)
        found.check(self.model)
        return found

    def usual_layers(self) -> tuple[int, ...]:
        """The layers that AlphaEdit edits on this model, unless others were given."""
        given = self.hyperparameters if isinstance(self.hyperparameters, Hyperparameters) else None
        usual = given or Hyperparameters.shipped_for("alphaedit", self.name)
        return (usual or Hyperparameters.derived("alphaedit", self.model)).with_layers(self.layers).layers


@dataclass(frozen=True)
class Needs:
    """What a contender needs before it can begin: statistics of `layers` (of none, where there are none), prepared with
    the settings in `values`.

    `values` are our method's hyperparameters; another editor gets statistics and criterion as if it had these.
    """

    values: Hyperparameters
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Stop:
    """A contender at a checkpoint. Measure it now: afterwards `model` is edited further, or restored.

    `base` and `now` are its out-projections before the first edit and now, layer → W, d_out × d_in; `seconds` is the
    time that editing took so far; `capacity` finds the room that is left by layer, where that is known. `tokenizer`
    asks the model, if it is asked otherwise than with the ground's.
    """

    name: str
    at: Checkpoint
    model: nn.Module
    seconds: float
    base: Mapping[int, Tensor]
    now: Mapping[int, Tensor]
    capacity: Callable[[], Mapping[int, Capacity]] = dict
    tokenizer: Any = None


@dataclass
class Workplace:
    """What the contenders of one comparison share, and the place where one of them saves its edits.

    `start` is what identities say of the model, `folder` the run's. `session` is a folder for edits that can be
    resumed, or None. `contexts` and `targets` hold what is the same for all contenders that begin in the same way:
    context templates, and the first batch's targets with their seconds. `bar` is the run's progress, in facts edited
    and facts measured.
    """

    progress: bool = False
    start: Mapping[str, Any] = field(default_factory=dict)
    folder: RunFolder = field(default_factory=RunFolder)
    session: Path | None = None
    contexts: dict[Any, tuple[str, ...]] = field(default_factory=dict)
    targets: dict[Any, tuple[Targets, float]] = field(default_factory=dict)
    bar: Any = field(default_factory=lambda: progress_bar(shown=False))


class Contender(ABC):
    """Anything that edits facts in a comparison: our methods, EasyEdit's, a user's function, or what the model is told.

    Invariant: `name` is canonical: two contenders of the same name are the same contender.
    """

    name: str

    @abstractmethod
    def needs(self, ground: Ground) -> Needs:
        """What it needs on this model. Raises HyperparameterError if its settings do not fit the model."""

    @abstractmethod
    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        """The contender on this model. Raises NullSpaceError if it projects and nothing, or everything, is null."""


class Entry(ABC):
    """A contender on one model.

    Invariant: `run` leaves the model, and everything that others may read, as it found them. Two entries with equal
    `identity`, statistics and batches make the same edits, except for what is done at the end (`ends`).
    """

    name: str
    statistics: Statistics
    layers: tuple[int, ...]
    """The layers whose statistics it gets; its identity depends on these statistics and no others."""
    watched: tuple[int, ...]
    """Those of its hyperparameters: the highest of all contenders is where representations are watched."""
    null_spaces: NullSpaces | None
    """The null spaces of P, if it acts on its edits, else None."""
    ends: bool = False
    takes_targets: bool = False
    """Whether its edits can begin from targets that were found before."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that determines the edits besides model, statistics, facts and batches, in JSON's types."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Its hyperparameters for a reader of the results, in JSON's types."""

    @abstractmethod
    def run(self, course: Course, together: Sequence[Any], place: Workplace) -> Generator[Stop, None, None]:
        """Edit batch after batch and stop at the checkpoints. Close the iterator if it is not run to its end.

        `together` are the entries with the same edits, including this one: each stops at every checkpoint. Raises
        EditError if the method fails.
        """
