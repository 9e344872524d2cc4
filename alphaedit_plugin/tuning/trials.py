"""Trial edits: a pilot of facts is written with some settings, scored, and taken back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..editors.hyperparameters import Hyperparameters
from ..editors.keys import context_templates
from ..editors.layered import LayeredEditor
from ..editors.targets import Targets
from ..editors.variant import Variant
from ..errors import EditError, NullSpaceError, StatisticsError, TuningError
from ..evaluation.fact_scores import score
from ..evaluation.facts import Fact
from ..model.decoder import Decoder
from ..model.fingerprint import fingerprints
from ..model.snapshot import put_back
from ..model.trace import evaluating
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.projection import Criterion
from ..nullspace.statistics import Preparation, Statistics
from ..session.change import drift
from ..session.session import Session
from ..storage.files import write_text

PARTS = ("efficacy", "generalization", "specificity")
DRIFT_COST = 0.1
"""A drift of 10 % of a weight costs one point: the pilot's neighbours do not show what it does to other knowledge."""


@dataclass(frozen=True)
class Trial:
    """What some settings did to the pilot.

    `scores` holds the means of `PARTS`, shares from 0 to 1; one that the facts cannot show is missing. `drift` is the
    largest ‖ΔW‖/‖W‖ of a layer. A trial that failed has no scores, and says why in `failure`.
    """

    hyperparameters: Hyperparameters
    scores: Mapping[str, float] = field(default_factory=dict)
    drift: float = 0.0
    seconds: float = 0.0
    failure: str = ""

    @property
    def score(self) -> float:
        """The harmonic mean of `scores`, less `DRIFT_COST` · `drift`; −1 for a trial that failed."""
        values = list(self.scores.values())
        if self.failure or not values:
            return -1.0
        return (len(values) / sum(1 / value for value in values) if all(values) else 0.0) - DRIFT_COST * self.drift


class Trials:
    """Tries settings of one variant on one model.

    Invariant: between trials the weights are what they were, bit for bit. What trials have in common is made once:
    covariances per layer, context templates, and the targets z* of those that share the layers which have one and the
    settings of the optimiser. Each finished trial is kept in `ledger`, a JSON file, and is not made again by a later
    run on the same model, facts and statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        variant: Variant,
        facts: Sequence[Fact],
        preparation: Preparation,
        ledger: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.variant = model, tokenizer, variant
        self.facts, self.preparation, self.ledger = list(facts), preparation, ledger
        self.made: list[Trial] = []
        self._statistics: Statistics | None = None
        self._eigenvalues: dict[int, Tensor] = {}
        self._contexts: dict[Any, tuple[str, ...]] = {}
        self._targets: dict[Any, Targets] = {}
        self._known = _read(ledger) if ledger is not None else {}
        top = len(Decoder(model)) - 1
        self._model_print = fingerprints(model, [top])[top]

    def __call__(self, hyperparameters: Hyperparameters) -> Trial:
        """The trial of these settings; one that was made before is not repeated."""
        for trial in self.made:
            if trial.hyperparameters == hyperparameters:
                return trial
        identity = self._identity(hyperparameters)
        if identity in self._known:
            trial = Trial(hyperparameters, **self._known[identity])
        else:
            trial = self._made(hyperparameters, self.facts)
            if self.ledger is not None:
                values = asdict(trial)
                del values["hyperparameters"]
                self._known[identity] = values
                write_text(self.ledger, json.dumps(self._known, indent=1), TuningError)
        self.made.append(trial)
        return trial

    def seconds_per_fact(self, hyperparameters: Hyperparameters) -> float:
        """How long a trial with one fact takes, statistics apart."""
        self.statistics(hyperparameters)
        return self._made(hyperparameters, self.facts[:1]).seconds

    def statistics(self, hyperparameters: Hyperparameters, more: Iterable[int] = ()) -> Statistics:
        """Covariances of the layers; those of `more` layers are made in the same pass over the text."""
        known = self._statistics
        have = known.covariances if known is not None else {}
        missing = sorted({*hyperparameters.layers, *more} - set(have))
        if missing:
            tokens, template = hyperparameters.tokens, hyperparameters.rewrite_module_tmp
            found = self.preparation.statistics(self.model, self.tokenizer, missing, tokens=tokens, template=template)
            prints = known.provenance["fingerprints"] if known is not None else {}
            provenance = {**found.provenance, "fingerprints": {**prints, **found.provenance["fingerprints"]}}
            known = self._statistics = Statistics({**have, **found.covariances}, provenance)
        assert known is not None
        return known.of_layers(hyperparameters.layers)

    def null_spaces(self, hyperparameters: Hyperparameters) -> NullSpaces:
        """Raises NullSpaceError if nothing, or everything, is null."""
        criterion: Criterion = hyperparameters.null_space
        return null_spaces_of(self.statistics(hyperparameters), criterion, store=self.preparation.store)

    def spectrum(self, hyperparameters: Hyperparameters) -> Tensor:
        """The eigenvalues of all the layers' covariances together, ascending, without the largest of each layer."""
        for layer, covariance in self.statistics(hyperparameters).covariances.items():
            if layer not in self._eigenvalues:
                self._eigenvalues[layer] = torch.linalg.eigvalsh(covariance.matrix).clamp_min(0)
        return torch.cat([self._eigenvalues[layer][:-1] for layer in hyperparameters.layers]).sort().values

    def _made(self, hyperparameters: Hyperparameters, facts: Sequence[Fact]) -> Trial:
        started = time.perf_counter()
        try:
            scores, moved = self._edited(hyperparameters, facts)
        except (EditError, NullSpaceError, StatisticsError) as failure:
            return Trial(hyperparameters, failure=str(failure), seconds=time.perf_counter() - started)
        return Trial(hyperparameters, scores, moved, time.perf_counter() - started)

    def _edited(self, hyperparameters: Hyperparameters, facts: Sequence[Fact]) -> tuple[dict[str, float], float]:
        """(scores, largest drift) after writing the facts as one batch."""
        statistics = self.statistics(hyperparameters)
        session = Session(
            self.model,
            self.tokenizer,
            self.variant,
            self.null_spaces(hyperparameters) if self.variant.projected else None,
            hyperparameters=hyperparameters,
            covariances=statistics.covariances,
            contexts=self._contexts_of(hyperparameters),
            check_model=False,
        )
        with put_back(session.projections) as before:
            requests = [request for fact in facts for request in fact.requests]
            session.edit(requests, self._targets_of(session, requests), on_failure="ignore")
            session.finish()
            moved = max(drift(before[layer], each.matrix) for layer, each in session.projections.items())
            means = score(self.model, self.tokenizer, facts).means()
        return {part: means[part] for part in PARTS if part in means}, moved

    def _contexts_of(self, hyperparameters: Hyperparameters) -> tuple[str, ...]:
        lengths = hyperparameters.context_template_length_params
        if lengths not in self._contexts:
            with evaluating(self.model):
                self._contexts[lengths] = context_templates(self.model, self.tokenizer, lengths)
        return self._contexts[lengths]

    def _targets_of(self, session: Session, requests: Sequence[Any]) -> Targets | None:
        """z* of the pilot, on the model as it is before the edit; None for a method that finds them as it goes."""
        if not isinstance(session.editor, LayeredEditor):
            return None
        values = session.hyperparameters
        lengths = values.context_template_length_params
        key = (session.editor.target_layers, session.editor.target_settings, lengths, len(requests))
        if key not in self._targets:
            self._targets[key] = session.editor.targets(requests)
        return self._targets[key]

    def _identity(self, hyperparameters: Hyperparameters) -> str:
        preparation = self.preparation
        recipe = {
            "model": self._model_print,
            "variant": str(self.variant),
            "hyperparameters": hyperparameters.as_dict(),
            "facts": [asdict(fact) for fact in self.facts],
            "statistics": [str(preparation.corpus), str(preparation.stats_dir), preparation.tokens],
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(ledger: Path) -> dict[str, dict[str, Any]]:
    """Raises TuningError if the file is there and is no ledger."""
    if not ledger.exists():
        return {}
    try:
        values = json.loads(ledger.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise TuningError(f"cannot read {ledger}: {failure}; remove it to begin anew") from failure
    keys = set(Trial.__dataclass_fields__) - {"hyperparameters"}
    if not isinstance(values, dict) or any(not isinstance(each, dict) or set(each) != keys for each in values.values()):
        raise TuningError(f"{ledger} holds no trials: remove it, or choose another place")
    return values
