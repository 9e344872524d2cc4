"""One cell of a run: contenders on one model, one data set and one order of its facts."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import nn

from .. import __version__
from ..editors.chat import chat_identity
from ..errors import CompareError, EditError, JudgeError, SessionInUseError
from ..evaluation.measure import Measure, Measured
from ..model.decoder import Decoder
from ..model.fingerprint import fingerprints
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.statistics import Statistics
from ..progress import progress_bar
from ..session.change import Change
from ..session.manifest import batches_in
from ..storage.tensors import tensor_digest
from .contender import Entry, Ground, Stop, Workplace
from .course import Checkpoint, Course
from .results import BEFORE, Comparison
from .run_folder import RunFolder, identity_of, measurement_identity, read_cell

log = logging.getLogger(__name__)

_SPECTRUM_POINTS = 200


@dataclass
class Cell:
    """All `entries` go through `course` from the same start, and `measures` measure the results.

    Invariant: the model ends as it began. What `folder` holds already is neither edited nor measured again; several
    processes may work on one folder. `described` holds further facts about the run, for the results.
    """

    ground: Ground
    entries: Sequence[Entry]
    course: Course
    measures: Sequence[Measure]
    folder: RunFolder
    keep_sessions: bool = False
    on_row: Callable[[Comparison], None] = lambda comparison: None
    progress: bool = False
    described: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [entry.name for entry in self.entries]
        if self.course.targets_once:
            others = [entry.name for entry in self.entries if not entry.takes_targets]
            if others:
                raise CompareError(
                    f"targets once: {', '.join(others)} finds its own targets as it edits: leave it out, or let "
                    "all find theirs on the model as it is"
                )
        self.place = Workplace(self.progress, self.start, self.folder)
        self.failed: dict[str, dict[str, str]] = {}

    # ---------------------------------------------------------------------------------------------- what is known

    @cached_property
    def start(self) -> dict[str, Any]:
        """What identities say of the model, and of how it is asked."""
        fingerprint = fingerprints(self.ground.model, [len(Decoder(self.ground.model)) - 1])
        return {"model": fingerprint, **chat_identity(self.ground.tokenizer)}

    @property
    def _once(self) -> dict[str, str]:
        return {"targets_found": "once"} if self.course.targets_once else {}

    @cached_property
    def trajectories(self) -> dict[str, str]:
        """The identity of each contender's edits, independent of the number of batches."""
        found = {}
        for entry in self.entries:
            # Only the contender's own layers: what others need makes no difference.
            statistics = entry.statistics.identity(entry.layers) if entry.layers else None
            found[entry.name] = identity_of(
                {
                    **self.start,
                    "batch_size": self.course.batch_size,
                    **self._once,
                    **entry.identity,
                    "statistics": statistics,
                }
            )
        return found

    @cached_property
    def points(self) -> dict[str, dict[int, str]]:
        """The identities of all points, by contender and number of edits."""
        order = self.course.order
        found = {BEFORE: {0: identity_of({**self.start, "facts": order})}}
        for name, trajectory in self.trajectories.items():
            found[name] = {
                at.edits: identity_of({"trajectory": trajectory, "variant": name, "facts": order[: at.facts]})
                for at in self.course.checkpoints
            }
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the results say of the cell, together with what the folder knows of its other contenders."""
        spaces = {entry.name: entry.null_spaces for entry in self.entries if entry.null_spaces is not None}
        statistics = {entry.name: entry.statistics for entry in self.entries}
        course, seed = self.course, self.described.get("seed")
        return self.folder.add_settings(
            {
                **self.described,
                **chat_identity(self.ground.tokenizer),
                "variants": self.names,
                "edits": course.checkpoints[-1].edits,
                "facts": len(course.facts),
                "batch_size": course.batch_size,
                "checkpoints": [at.edits for at in course.checkpoints],
                "hyperparameters": {entry.name: dict(entry.settings) for entry in self.entries},
                "statistics": next((of.provenance for of in statistics.values() if of.provenance), None),
                "null_spaces": {name: _described(of, statistics[name]) for name, of in spaces.items()},
                "spectra": _spectra(spaces),
                "environment": environment(),
                **self._once,
                "cell": identity_of({**self.start, "batch_size": course.batch_size, "seed": seed, **self._once}),
                "order": course.order,
                "trajectories": self.trajectories,
                "points": {
                    name: {str(edits): identity for edits, identity in of.items()} for name, of in self.points.items()
                },
                "measures": {measure.name: dict(measure.identity()) for measure in self.measures},
            }
        )

    def comparison(self) -> Comparison:
        """What is measured so far, for the requested contenders and checkpoints."""
        failed = {**self.settings.get("failed", {}), **self.failed}
        asked = {"variants": self.names, "points": self.points, "failed": failed}
        return read_cell(self.folder, {**self.settings, **asked})

    # -------------------------------------------------------------------------------------------------- the work

    def run(self, wait: bool = True) -> Comparison:
        """Do everything that is not done yet; without `wait`, only what no other process is working on."""
        _ = self.settings  # saved before anything is edited
        with progress_bar(total=self._left(), desc="before", unit="fact", shown=self.progress) as self.place.bar:
            self._run_all(wait)
        return self.comparison()

    def _left(self) -> int:
        """The facts that are still to be edited or measured, each as often as that."""
        before = Checkpoint(len(self.course.facts), 0, 0)
        left = 0 if self._is_measured(BEFORE, before) else before.facts
        for group in self._groups():
            missing = [
                at.facts for entry in group for at in self.course.checkpoints if not self._is_measured(entry.name, at)
            ]
            left += sum(missing) + (self.course.checkpoints[-1].edits if missing else 0)
        return left

    def _run_all(self, wait: bool) -> None:
        with self.folder.claim(BEFORE, wait=True):
            self._measure(BEFORE, Checkpoint(len(self.course.facts), 0, 0), self.ground.model)
        left = list(self._groups())
        for waiting in (False, True) if wait else (False,):
            postponed = []
            for group in left:
                with self.folder.claim(self.trajectories[group[0].name][:16], wait=waiting) as mine:
                    if not mine:
                        postponed.append(group)
                        continue
                    try:
                        self._edit(group)
                    except (EditError, SessionInUseError) as failure:
                        # A method that ruins its model is a result, and who has its session open loses that row.
                        names = ", ".join(entry.name for entry in group)
                        log.warning("%s: %s. Its row is left out", names, failure)
                        failed = {
                            entry.name: {"trajectory": self.trajectories[entry.name], "why": str(failure)}
                            for entry in group
                        }
                        self.failed |= failed
                        self.folder.add_failures(failed)
            left = postponed

    def _groups(self) -> Iterator[list[Entry]]:
        """Groups of entries with the same edits; entries that do something at the end come last."""
        seen: dict[str, list[Entry]] = {}
        for entry in self.entries:
            seen.setdefault(self.trajectories[entry.name], []).append(entry)
        for group in seen.values():
            yield sorted(group, key=lambda entry: entry.ends)

    def _edit(self, group: Sequence[Entry]) -> None:
        """Make the edits of one trajectory, and measure everything along it."""
        checkpoints, first = self.course.checkpoints, group[0]
        # A session is named after its edits, without what happens at the end.
        label = str(first.identity.get("variant", first.name))
        self.place.session = self.folder.session(label, self.trajectories[first.name])
        group = [entry for entry in group if not all(self._is_measured(entry.name, at) for at in checkpoints)]
        if group:
            self._run(group)
        if self.place.session is not None:
            if self.keep_sessions:
                self.folder.keep(self.place.session)
            elif group or batches_in(self.place.session) <= checkpoints[-1].batches:  # else it is a longer run's
                self.folder.finished(self.place.session)

    def _run(self, group: Sequence[Entry]) -> None:
        first = group[0]
        alike: dict[tuple[int, str], str] = {}
        with closing(first.run(self.course, group, self.place)) as stops:
            for stop in stops:
                like = stop.name
                if len(group) > 1:
                    digest = " ".join(tensor_digest(weight) for weight in stop.now.values())
                    like = alike.setdefault((stop.at.edits, digest), stop.name)
                try:
                    self._measure_stop(stop, first.statistics, like if like != stop.name else None)
                except (CompareError, JudgeError):
                    raise
                except Exception as failure:
                    if stop.model is self.ground.model:
                        raise
                    said = f"{type(failure).__name__}: {failure}"  # of a model that another's editor has made
                    raise EditError(f"what {stop.name} made of the model cannot be measured: {said}") from failure

    def _is_measured(self, name: str, at: Checkpoint) -> bool:
        point = self.points[name][at.edits]
        return self.folder.weights(name, at.edits, point) is not None and all(
            self.folder.load(name, at.edits, measure.name, measurement_identity(point, measure.identity())) is not None
            for measure in self.measures
        )

    def _measure_stop(self, stop: Stop, statistics: Statistics, like: str | None) -> None:
        if not self._is_measured(stop.name, stop.at):
            change = Change.between(stop.base, stop.now, statistics.covariances)
            weights = _weights(change, stop)
            self._measure(stop.name, stop.at, stop.model, stop.tokenizer, like=like, weights=weights)

    def _measure(
        self,
        name: str,
        at: Checkpoint,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        like: str | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure what is missing at one point, asking with `tokenizer` (by default the ground's), or copy it from the
        contender `like`, whose weights are equal.
        """
        if self._is_measured(name, at):
            return
        point = self.points[name][at.edits]
        for measure in self.measures:
            identity = measurement_identity(point, measure.identity())
            if self.folder.load(name, at.edits, measure.name, identity) is None:
                before = None if name == BEFORE else self._found(measure, BEFORE, 0)
                facts = self.course.facts[: at.facts]
                found = (
                    self._found(measure, like, at.edits)
                    if like is not None
                    else measure(model, tokenizer or self.ground.tokenizer, facts, before, progress=self.progress)
                )
                self.folder.save(name, at.edits, measure.name, identity, found)
        if self.folder.weights(name, at.edits, point) is None:
            self.folder.save_weights(name, at.edits, point, weights or _weights(Change()))
        self.place.bar.update(at.facts)
        self.on_row(self.comparison())

    def _found(self, measure: Measure, name: str, edits: int) -> Measured:
        identity = measurement_identity(self.points[name][edits], measure.identity())
        found = self.folder.load(name, edits, measure.name, identity)
        if found is None:
            raise CompareError(f"what {measure.name} found of {name} is gone from {self.folder.path}: run again")
        return found


def _weights(change: Change, stop: Stop | None = None) -> dict[str, Any]:
    """What a run folder keeps of the weights themselves."""
    return {
        "seconds": stop.seconds if stop else 0.0,
        "drift": change.drift,
        "leakage": change.leakage,
        "capacity": {layer: asdict(of) for layer, of in stop.capacity().items()} if stop else {},
    }


def _described(null_spaces: NullSpaces, statistics: Statistics) -> dict[str, Any]:
    return {
        "criterion": null_spaces.provenance.get("criterion"),
        "nullity": {str(layer): space.nullity for layer, space in null_spaces.items()},
        "leakage": {str(layer): space.leakage(statistics.covariances[layer]) for layer, space in null_spaces.items()},
    }


def _spectra(spaces: Mapping[str, NullSpaces]) -> dict[str, list[float]]:
    """layer → eigenvalues of C, ascending, evenly thinned to the number that a curve needs."""
    found: dict[str, list[float]] = {}
    for of in spaces.values():
        for layer, space in of.items():
            values = space.eigenvalues
            chosen = torch.linspace(0, len(values) - 1, min(_SPECTRUM_POINTS, len(values))).round().long()
            found.setdefault(str(layer), values[chosen].tolist())
    return found


def environment() -> dict[str, Any]:
    """Versions and machine, if they can change a number."""
    return {
        "alphaedit_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
