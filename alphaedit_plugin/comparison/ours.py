"""One of our methods in a comparison: its session can be resumed, and looked at as it was at any checkpoint."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..editors.hyperparameters import Hyperparameters
from ..editors.keys import context_templates
from ..editors.layered import LayeredEditor
from ..editors.registry import find_method
from ..editors.targets import Targets
from ..editors.variant import Variant
from ..errors import SessionDamagedError
from ..model.branch import branch_is_identity
from ..model.decoder import Decoder
from ..model.snapshot import put_back
from ..model.trace import evaluating
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.statistics import Statistics
from ..session.manifest import is_session
from ..session.session import Session
from ..visible import visible
from .contender import Contender, Entry, Ground, Needs, Stop, Workplace
from .course import Course
from .run_folder import identity_of, keep_spent, spent_in

log = logging.getLogger(__name__)


class OurMethod(Contender):
    """A `Variant`: `memit`, `rect+P`, `alphaedit@L2=1`."""

    def __init__(self, variant: Variant) -> None:
        self.variant, self.name = variant, str(variant)

    def needs(self, ground: Ground) -> Needs:
        values = ground.hyperparameters_of(self.name, self.variant)
        return Needs(values, values.layers)

    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        projected = self.variant.projected
        spaces = ground.null_spaces(needs.values, needs.layers, statistics) if projected else None
        return _OurEntry(ground, self.variant, needs.values, statistics, spaces)


@dataclass
class _OurEntry(Entry):
    ground: Ground
    variant: Variant
    hyperparameters: Hyperparameters
    statistics: Statistics
    null_spaces: NullSpaces | None

    def __post_init__(self) -> None:
        self.name = str(self.variant)
        self.layers = self.watched = self.hyperparameters.layers
        self.ends = self.variant.ends
        self.takes_targets = issubclass(find_method(self.variant.solver).editor, LayeredEditor)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        trajectory = self.variant.trajectory
        values = trajectory.hyperparameters(self.ground.model, self.ground.name, self.hyperparameters)
        found = {"variant": str(trajectory), "hyperparameters": values.as_dict()}
        if not branch_is_identity(Decoder(self.ground.model, values.rewrite_module_tmp), values.layers):
            found["targets"] = "one for each layer"  # results from before each layer had its own are of no use
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that repeats the run, also what `as_dict` leaves out."""
        return {**self.hyperparameters.as_dict(), "target_optimiser": self.hyperparameters.target_optimiser}

    def run(self, course: Course, together: Sequence[_OurEntry], place: Workplace) -> Generator[Stop, None, None]:
        model, values = self.ground.model, self.hyperparameters
        projections = Decoder(model, values.rewrite_module_tmp).out_projections(values.layers)
        label, last = " ".join(entry.name for entry in together), course.checkpoints[-1]
        place.bar.set_description(visible(label))
        with put_back(projections):
            session, spent = self._session(course, place)
            with session:
                left = range(len(session.batches), last.batches)
                found = self._found_before(session, course, left, place)
                place.bar.update(len(session.facts))
                for number in left:
                    batch, (targets, shared) = course.batches[number], found.get(number, (None, 0.0))
                    started = time.perf_counter()
                    session.edit(batch, targets, on_failure="ignore")
                    spent.append((spent[-1] if spent else 0.0) + shared + time.perf_counter() - started)
                    if place.session is not None:
                        keep_spent(place.session, spent)
                    place.bar.update(len(batch))
                for at in course.checkpoints:
                    capacity = partial(session.editor.capacity, at.edits)
                    for entry in together:
                        with session.at(at.batches, end=entry.variant.at_end(entry.hyperparameters)) as ending:
                            now = {layer: projection.matrix for layer, projection in session.projections.items()}
                            seconds = spent[at.batches - 1] + ending
                            yield Stop(entry.name, at, model, seconds, session.base, now, capacity)

    def _session(self, course: Course, place: Workplace) -> tuple[Session, list[float]]:
        """A session of the variant with the edits that were made already, and its seconds after each batch."""
        if place.session is not None and is_session(place.session):
            try:
                return self._resumed(place.session, course, place.progress)
            except SessionDamagedError as failure:
                log.warning("%s. Its edits are made anew", failure)
                shutil.rmtree(place.session, ignore_errors=True)
        return self._begun(place), []

    def _begun(self, place: Workplace) -> Session:
        model, tokenizer = self.ground.model, self.ground.tokenizer
        lengths = self.hyperparameters.context_template_length_params
        if lengths not in place.contexts:
            with evaluating(model):
                place.contexts[lengths] = context_templates(model, tokenizer, lengths)
        return Session(
            model,
            tokenizer,
            self.variant.trajectory,
            self.null_spaces,
            hyperparameters=self.hyperparameters,
            covariances=self.statistics.covariances,
            contexts=place.contexts[lengths],
            autosave=place.session,
            check_model=False,
            progress=place.progress,
        )

    def _resumed(self, folder: Path, course: Course, progress: bool) -> tuple[Session, list[float]]:
        ground = self.ground
        session = Session.resume(folder, ground.model, ground.tokenizer, check_model=False, progress=progress)
        made = [list(batch.requests) for batch in session.batches]
        differ = (i for i, (a, b) in enumerate(zip(made, course.batches, strict=False)) if a != b)
        same = next(differ, len(made))
        if len(made) > same:
            session.undo(len(made) - same)
        spent = spent_in(folder)[: len(session.batches)]
        return session, spent + [spent[-1] if spent else 0.0] * (len(session.batches) - len(spent))

    def _found_before(
        self, session: Session, course: Course, left: Sequence[int], place: Workplace
    ) -> dict[int, tuple[Targets, float]]:
        """batch → its targets, which contenders share, and the seconds they took: of the first batch, which all that
        begin in the same way write into the same model; or of all that are left, if targets are found once.
        """
        if not isinstance(session.editor, LayeredEditor):
            return {}
        if course.targets_once:
            return self._found_once(session.editor, session, course, left, place)
        if 0 not in left:
            return {}
        values = self.hyperparameters
        key = (session.editor.target_layers, session.editor.target_settings, values.context_template_length_params)
        if key not in place.targets:
            started = time.perf_counter()
            place.targets[key] = session.editor.targets(course.batches[0]), time.perf_counter() - started
        return {0: place.targets[key]}

    def _found_once(
        self, editor: LayeredEditor, session: Session, course: Course, left: Sequence[int], place: Workplace
    ) -> dict[int, tuple[Targets, float]]:
        """Those that other processes are at work on come last: then they are there."""
        begun = {
            **place.start,
            "layers": editor.target_layers,
            "module": self.hyperparameters.rewrite_module_tmp,
            "settings": asdict(editor.target_settings),
            "contexts": editor.contexts,
        }
        identities = {
            number: identity_of({**begun, "requests": [asdict(request) for request in course.batches[number]]})
            for number in left
        }
        found: dict[int, tuple[Targets, float]] = {}
        with session.at(0):
            for waiting in (False, True):
                for number in (number for number in left if number not in found):
                    identity = identities[number]
                    with place.folder.claim(f"targets-{identity[:16]}", wait=waiting) as mine:
                        if not mine:
                            continue
                        known = place.folder.targets(identity)
                        if known is None:
                            started = time.perf_counter()
                            targets = editor.fixed_targets(course.batches[number])
                            known = targets, time.perf_counter() - started
                            place.folder.save_targets(identity, *known)
                        found[number] = known
        return found
