"""Run variants of an editor side by side: same start, same facts, same order."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from .. import __version__
from ..baselines.baseline import baseline
from ..baselines.baseline import identity as baseline_identity
from ..baselines.hyperparameters import hyperparameters as baseline_hyperparameters
from ..baselines.hyperparameters import layers_of
from ..baselines.names import is_baseline, parse_baseline
from ..editors.hyperparameters import Hyperparameters
from ..editors.keys import context_templates
from ..editors.layered import LayeredEditor
from ..editors.targets import Targets
from ..editors.variant import Variant
from ..errors import CompareError, EditError
from ..evaluation.facts import Fact
from ..evaluation.measure import Measure, Measured
from ..model.decoder import Decoder
from ..model.fingerprint import fingerprints, weights_digest
from ..model.snapshot import put_back
from ..model.trace import evaluating
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Statistics
from ..session.change import drift, leakage
from ..session.folder import is_session
from ..session.session import Session
from ..storage.store import Store
from .results import BEFORE, Comparison
from .run_folder import RunFolder, identity_of, measurement_identity, read_cell

log = logging.getLogger(__name__)

_SPECTRUM_POINTS = 200


@dataclass(frozen=True)
class Checkpoint:
    """Where a sequence is measured: after so many of its facts, which are so many batches and requests."""

    facts: int
    batches: int
    edits: int


def checkpoints_of(facts: Sequence[Fact], batch_size: int, every: int | None = None) -> list[Checkpoint]:
    """The end of the sequence, and before it the end of the first batch after each `every` facts."""
    wanted = {len(facts), *(range(every, len(facts), every) if every else ())}
    found = {}
    for count in sorted(wanted):
        batches = -(-count // batch_size)
        whole = min(batches * batch_size, len(facts))
        found[batches] = Checkpoint(whole, batches, sum(len(fact.requests) for fact in facts[:whole]))
    return list(found.values())


def canonical(name: str) -> str:
    """A variant's one name, as results have it. Raises HyperparameterError for what is none."""
    return str(parse_baseline(name) if is_baseline(name) else Variant.parse(name))


def compare(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    variants: Sequence[str],
    hyperparameters: Hyperparameters | Mapping[str, Hyperparameters],
    statistics: Statistics | Mapping[str, Statistics],
    *,
    batch_size: int,
    measures: Sequence[Measure],
    every: int | None = None,
    baseline_hparams: Mapping[str, Any] | None = None,
    store: Store | None = None,
    folder: Path | None = None,
    keep_sessions: bool = False,
    wait: bool = True,
    on_row: Callable[[Comparison], None] = lambda comparison: None,
    progress: bool = False,
    settings: dict[str, Any] | None = None,
) -> Comparison:
    """Edit `facts` in sequential batches with each of `variants` and measure; the model ends as it began.

    A batch holds `batch_size` facts (of MQuAKE's, which are several requests each, that many cases). What `measures`
    find is measured at the end and, on the facts written until then, after each `every` facts.

    `hyperparameters` and `statistics` are one for all, or by the variant's name; statistics are of all layers that
    are edited. Variants of EasyEdit ("easyedit:FT") take theirs from `baseline_hparams` (see `easyedit.settings`).
    What variants have in common is computed once, and its time counted for each: the targets of the first batch, and
    all edits where only PRUNE's damping at the end differs. `on_row` gets what there is after each row.

    With `folder` everything is written there as soon as it is known, and a run that was killed goes on after the last
    batch or measurement that it wrote; the result is that of a run without interruption. What the folder holds
    already is not done again. Several processes may run the same comparison in one folder and share the work; one
    that does not `wait` ends as soon as others work on all that is left. `keep_sessions` leaves the edits in the
    folder, so that other measures need no edits later.
    """
    cell = _Cell(
        model,
        tokenizer,
        list(facts),
        list(dict.fromkeys(map(canonical, variants))),
        hyperparameters,
        statistics,
        batch_size,
        list(measures),
        every,
        dict(baseline_hparams or {}),
        store,
        RunFolder(folder),
        keep_sessions,
        on_row,
        progress,
        settings or {},
    )
    return cell.run(wait)


@dataclass
class _Cell:
    """One model, one order of facts: everything that its trajectories share."""

    model: Any
    tokenizer: Any
    facts: list[Fact]
    variants: list[str]
    given: Hyperparameters | Mapping[str, Hyperparameters]
    statistics: Statistics | Mapping[str, Statistics]
    batch_size: int
    measures: list[Measure]
    every: int | None
    baseline_hparams: dict[str, Any]
    store: Store | None
    folder: RunFolder
    keep_sessions: bool
    on_row: Callable[[Comparison], None]
    progress: bool
    described: dict[str, Any]

    def __post_init__(self) -> None:
        self.checkpoints = checkpoints_of(self.facts, self.batch_size, self.every)
        size = self.batch_size
        self.batches = [
            [request for fact in self.facts[i : i + size] for request in fact.requests]
            for i in range(0, len(self.facts), size)
        ]
        self.parsed = {name: Variant.parse(name) for name in self.variants if not is_baseline(name)}
        self.baselines = {
            name: (named, baseline_hyperparameters(named, self.model, self.baseline_hparams.get(name)))
            for name, named in ((name, parse_baseline(name)) for name in self.variants if is_baseline(name))
        }
        self.identities = {name: baseline_identity(*of) for name, of in self.baselines.items()}
        self.hyperparameters = {
            name: variant.hyperparameters(self.model, "", self._given(name)) for name, variant in self.parsed.items()
        }
        self.spaces = {
            name: self._spaces(name, values)
            for name, values in self.hyperparameters.items()
            if self.parsed[name].projected
        }
        for null_spaces in self.spaces.values():
            null_spaces.check(self.model)
        self.contexts: dict[Any, tuple[str, ...]] = {}
        self.first: dict[Any, tuple[Targets, float]] = {}

    # ---------------------------------------------------------------------------------------------- what is known

    def statistics_of(self, name: str) -> Statistics:
        return self.statistics if isinstance(self.statistics, Statistics) else self.statistics[name]

    def _given(self, name: str) -> Hyperparameters:
        return self.given if isinstance(self.given, Hyperparameters) else self.given[name]

    def _spaces(self, name: str, values: Hyperparameters) -> NullSpaces:
        return null_spaces_of(self.statistics_of(name).of_layers(values.layers), values.null_space, store=self.store)

    @cached_property
    def fingerprint(self) -> Any:
        return fingerprints(self.model, [len(Decoder(self.model)) - 1])

    @cached_property
    def order(self) -> list[str]:
        """The identities of the facts."""
        return [identity_of(asdict(fact)) for fact in self.facts]

    @cached_property
    def trajectories(self) -> dict[str, str]:
        """The identities of the variants' edits, however many batches are made."""
        return {name: self._trajectory(name) for name in self.variants}

    def _trajectory(self, name: str) -> str:
        if name in self.parsed:
            layers: Sequence[int] = self.hyperparameters[name].layers
            trajectory = self.parsed[name].trajectory
            values = trajectory.hyperparameters(self.model, "", self.hyperparameters[name]).as_dict()
            made = {"variant": str(trajectory), "hyperparameters": values}
        else:
            layers = layers_of(self.baselines[name][1])
            made = {"baseline": self.identities[name], "criterion": str(self._given(name).null_space)}
        # Of the variant's own layers: what other variants need besides makes no difference.
        statistics = self.statistics_of(name).identity(layers) if layers else None
        return identity_of({"model": self.fingerprint, "batch_size": self.batch_size, **made, "statistics": statistics})

    @cached_property
    def points(self) -> dict[str, dict[int, str]]:
        """The identities of all points, by variant and edits."""
        found = {BEFORE: {0: identity_of({"model": self.fingerprint, "facts": self.order})}}
        for name in self.variants:
            trajectory = self.trajectories[name]
            found[name] = {
                at.edits: identity_of({"trajectory": trajectory, "variant": name, "facts": self.order[: at.facts]})
                for at in self.checkpoints
            }
        return found

    @cached_property
    def _settings(self) -> dict[str, Any]:
        statistics = {name: self.statistics_of(name) for name in self.parsed}
        any_statistics = next(iter(statistics.values()), None)
        return self.folder.add_settings(
            {
                **self.described,
                "variants": self.variants,
                "edits": self.checkpoints[-1].edits,
                "facts": len(self.facts),
                "batch_size": self.batch_size,
                "checkpoints": [at.edits for at in self.checkpoints],
                "hyperparameters": {name: values.as_dict() for name, values in self.hyperparameters.items()}
                | self.identities,
                "statistics": any_statistics.provenance if any_statistics is not None else None,
                "null_spaces": {name: _described(of, statistics[name]) for name, of in self.spaces.items()},
                "spectra": _spectra(self.spaces),
                "environment": environment(),
                "cell": identity_of(
                    {
                        "model": self.fingerprint,
                        "batch_size": self.batch_size,
                        "seed": self.described.get("seed"),
                    }
                ),
                "order": self.order,
                "trajectories": self.trajectories,
                "points": {
                    name: {str(edits): identity for edits, identity in of.items()} for name, of in self.points.items()
                },
                "measures": {measure.name: dict(measure.identity()) for measure in self.measures},
            }
        )

    def comparison(self) -> Comparison:
        """What is measured so far of the variants and checkpoints asked for."""
        return read_cell(self.folder, {**self._settings, "variants": self.variants, "points": self.points})

    # -------------------------------------------------------------------------------------------------- the work

    def run(self, wait: bool) -> Comparison:
        _ = self._settings  # saved before anything is edited
        with self.folder.claim(BEFORE, wait=True):
            self.measure(BEFORE, Checkpoint(len(self.facts), 0, 0), self.model)
        left = list(self.groups())
        for waiting in (False, True) if wait else (False,):
            postponed = []
            for names in left:
                with self.folder.claim(self.trajectories[names[0]][:16], wait=waiting) as mine:
                    if not mine:
                        postponed.append(names)
                        continue
                    missing = [name for name in names if not all(self.is_measured(name, at) for at in self.checkpoints)]
                    try:
                        if missing:
                            (self.edit if missing[0] in self.parsed else self.edit_baseline)(missing)
                    except EditError as failure:  # a method that ruins its model is a result: the others go on
                        log.warning("%s: %s. Its row is left out", ", ".join(missing), failure)
            left = postponed
        return self.comparison()

    def groups(self) -> Iterator[list[str]]:
        """Variants whose edits are the same, together; those that do something at the end last."""
        seen: dict[str, list[str]] = {}
        for name in self.variants:
            seen.setdefault(self.trajectories[name], []).append(name)
        for names in seen.values():
            yield sorted(names, key=lambda name: name in self.parsed and self.parsed[name].ends)

    def is_measured(self, name: str, at: Checkpoint) -> bool:
        point = self.points[name][at.edits]
        return self.folder.weights(name, at.edits, point) is not None and all(
            self.folder.load(name, at.edits, measure.name, measurement_identity(point, measure.identity())) is not None
            for measure in self.measures
        )

    def edit(self, names: list[str]) -> None:
        """The edits of one trajectory, then everything that is to be measured along it."""
        name = names[0]
        values, variant = self.hyperparameters[name], self.parsed[name].trajectory
        statistics = self.statistics_of(name)
        projections = Decoder(self.model, values.rewrite_module_tmp).out_projections(values.layers)
        last = self.checkpoints[-1]
        underway = self.folder.session(str(variant), self.trajectories[name])
        with (
            put_back(projections),
            tqdm(total=last.edits, desc=" ".join(names), unit="fact", disable=not self.progress) as bar,
        ):
            session, spent = self.session(name, underway)
            targets, shared = (None, 0.0) if session.batches else self.first_targets(session)
            bar.update(len(session.facts))
            for batch in self.batches[len(session.batches) : last.batches]:
                started = time.perf_counter()
                session.edit(batch, None if session.batches else targets)
                spent.append((spent[-1] if spent else shared) + time.perf_counter() - started)
                if underway is not None:
                    RunFolder.keep_spent(underway, spent)
                bar.update(len(batch))
            for at in self.checkpoints:
                alike: dict[str, str] = {}
                for each in names:
                    end = self.parsed[each].at_end(self.hyperparameters[each])
                    with session.at(at.batches, end=end) as ending:
                        first = alike.setdefault(weights_digest(session.projections), each)
                        covariances = statistics.covariances  # a resumed session need not hold any
                        now = {layer: projection.matrix for layer, projection in session.projections.items()}
                        self.measure(
                            each,
                            at,
                            self.model,
                            like=first if first != each else None,
                            seconds=spent[at.batches - 1] + ending,
                            drifts={layer: drift(session.base[layer], weight) for layer, weight in now.items()},
                            leakages={
                                layer: leakage(session.base[layer], weight, covariances[layer])
                                for layer, weight in now.items()
                            },
                        )
        if underway is not None and not self.keep_sessions:
            self.folder.finished(underway)

    def session(self, name: str, underway: Path | None) -> tuple[Session, list[float]]:
        """A session of the variant, as far as its edits are made already, and its seconds after each batch."""
        values, variant = self.hyperparameters[name], self.parsed[name].trajectory
        if underway is not None and is_session(underway):
            session = Session.resume(underway, self.model, self.tokenizer, check_model=False, progress=self.progress)
            made = [list(batch.requests) for batch in session.batches]
            differ = (i for i, (a, b) in enumerate(zip(made, self.batches, strict=False)) if a != b)
            same = next(differ, len(made))
            if len(made) > same:
                session.undo(len(made) - same)
            spent = RunFolder.spent(underway)[: len(session.batches)]
            return session, spent + [spent[-1] if spent else 0.0] * (len(session.batches) - len(spent))
        lengths = values.context_template_length_params
        if lengths not in self.contexts:
            with evaluating(self.model):
                self.contexts[lengths] = context_templates(self.model, self.tokenizer, lengths)
        session = Session(
            self.model,
            self.tokenizer,
            variant,
            self.spaces.get(name),
            hyperparameters=values,
            covariances=self.statistics_of(name).covariances,
            contexts=self.contexts[lengths],
            autosave=underway,
            check_model=False,
            progress=self.progress,
        )
        return session, []

    def first_targets(self, session: Session) -> tuple[Targets | None, float]:
        """The targets of the first batch, which are the same for all who begin alike, and the seconds they took."""
        if not isinstance(session.editor, LayeredEditor):
            return None, 0.0
        values = session.hyperparameters
        key = (max(values.layers), values.target_settings, values.context_template_length_params)
        if key not in self.first:
            started = time.perf_counter()
            self.first[key] = session.editor.targets(self.batches[0]), time.perf_counter() - started
        return self.first[key]

    def edit_baseline(self, names: list[str]) -> None:
        """One of EasyEdit's methods. It cannot be replayed: it is measured as it goes, and starts anew if killed."""
        (name,) = names
        by_batch = {at.batches: at for at in self.checkpoints}
        named, settings = self.baselines[name]
        layers = layers_of(settings)
        statistics = self.statistics_of(name).of_layers(layers)
        spaces = null_spaces_of(statistics, self._given(name).null_space, store=self.store) if named.projected else None
        with (
            baseline(
                named,
                self.model,
                self.tokenizer,
                hparams=self.baseline_hparams.get(name),
                statistics=statistics if layers else None,
                null_spaces=spaces,
            ) as editor,
            tqdm(total=self.checkpoints[-1].edits, desc=name, unit="fact", disable=not self.progress) as bar,
        ):
            base = _out_projections(self.model, statistics)
            base = {layer: weight.clone() for layer, weight in base.items()}
            seconds = 0.0
            for index, batch in enumerate(self.batches, 1):
                started = time.perf_counter()
                model = editor.edit(batch)
                seconds += time.perf_counter() - started
                bar.update(len(batch))
                if index not in by_batch or self.is_measured(name, by_batch[index]):
                    continue
                now = _out_projections(model, statistics)
                self.measure(
                    name,
                    by_batch[index],
                    model,
                    seconds=seconds,
                    drifts={layer: drift(base[layer], weight) for layer, weight in now.items()},
                    leakages={
                        layer: leakage(base[layer], weight, statistics.covariances[layer])
                        for layer, weight in now.items()
                    },
                )

    def measure(
        self,
        name: str,
        at: Checkpoint,
        model: nn.Module,
        *,
        like: str | None = None,
        seconds: float = 0.0,
        drifts: Mapping[int, float] | None = None,
        leakages: Mapping[int, float] | None = None,
    ) -> None:
        """Everything that is not measured yet of one point; what is measured of a variant `like` it is taken over."""
        if self.is_measured(name, at):
            return
        point = self.points[name][at.edits]
        for measure in self.measures:
            identity = measurement_identity(point, measure.identity())
            if self.folder.load(name, at.edits, measure.name, identity) is None:
                before = None if name == BEFORE else self.found(measure, BEFORE, 0)
                found = (
                    self.found(measure, like, at.edits)
                    if like is not None
                    else measure(model, self.tokenizer, self.facts[: at.facts], before, progress=self.progress)
                )
                self.folder.save(name, at.edits, measure.name, identity, found)
        if self.folder.weights(name, at.edits, point) is None:
            weights = {"seconds": seconds, "drift": dict(drifts or {}), "leakage": dict(leakages or {})}
            self.folder.save_weights(name, at.edits, point, weights)
        self.on_row(self.comparison())

    def found(self, measure: Measure, name: str, edits: int) -> Measured:
        identity = measurement_identity(self.points[name][edits], measure.identity())
        found = self.folder.load(name, edits, measure.name, identity)
        if found is None:
            raise CompareError(f"what {measure.name} found of {name} is gone from {self.folder.path}: run again")
        return found


def _out_projections(model: nn.Module, statistics: Statistics) -> dict[int, torch.Tensor]:
    """The weights that a method writes; none where it writes no out-projections."""
    if not statistics.covariances:
        return {}
    decoder = Decoder(model, statistics.provenance.get("template"))
    return {layer: of.matrix for layer, of in decoder.out_projections(list(statistics.covariances)).items()}


def _described(null_spaces: NullSpaces, statistics: Statistics) -> dict[str, Any]:
    return {
        "criterion": null_spaces.provenance.get("criterion"),
        "nullity": {str(layer): space.nullity for layer, space in null_spaces.items()},
        "leakage": {str(layer): space.leakage(statistics.covariances[layer]) for layer, space in null_spaces.items()},
    }


def _spectra(spaces: Mapping[str, NullSpaces]) -> dict[str, list[float]]:
    """layer → eigenvalues of C, ascending, evenly thinned to as many as a curve needs."""
    found: dict[str, list[float]] = {}
    for of in spaces.values():
        for layer, space in of.items():
            values = space.eigenvalues
            chosen = torch.linspace(0, len(values) - 1, min(_SPECTRUM_POINTS, len(values))).round().long()
            found.setdefault(str(layer), values[chosen].tolist())
    return found


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a number."""
    return {
        "alphaedit_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
