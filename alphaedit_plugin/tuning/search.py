"""The search for settings: layers by causal tracing, then one setting after the other by trial, while time is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..editors.hyperparameters import ADAM, Hyperparameters
from ..editors.registry import find_method
from ..editors.variant import Variant
from ..errors import TuningError
from ..evaluation.facts import Fact
from ..model.decoder import Decoder
from ..nullspace.projection import Criterion
from ..nullspace.statistics import Preparation
from ..progress import progress_bar
from .budget import Budget, BudgetOver
from .causal_trace import CausalTrace, causal_trace
from .trials import Trial, Trials

log = logging.getLogger(__name__)

PILOT, MINUTES = 20, 20.0
PILOTS = (20, 10, 5)
"""How many facts a slow model is tried with, so that `TARGETS` optimisations of their targets fit into the time."""
TARGETS = 8
MARGIN = 0.005
"""What a change has to win: less than about one prompt of the pilot is chance."""
WIDTHS = (1, 2, 3, 5, 8)
ENERGIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the keys' energy that a null space may hold (`Criterion.energy`): the rungs of the criterion's ladder."""
_TRACED, _SAMPLES = 10, 3
"""Facts and draws of noise for the trace: it proposes where to begin, and trials decide."""

Step = Callable[[Hyperparameters, int], Hyperparameters | None]


@dataclass(frozen=True)
class Knob:
    """One setting. `step` gives the settings one rung up (+1) or down (−1), or None at the ladder's end."""

    name: str
    step: Step


@dataclass(frozen=True)
class Tuning:
    """The best trial, and all that led to it. `finished`: no step of any knob improves on it."""

    best: Trial
    trials: Sequence[Trial]
    trace: CausalTrace | None
    facts: int
    seconds: float
    finished: bool


def tune(
    model: nn.Module,
    tokenizer: Any,
    facts: Sequence[Fact],
    method: str | Variant = "alphaedit",
    *,
    minutes: float = MINUTES,
    start: Hyperparameters | None = None,
    keep: Collection[str] = (),
    preparation: Preparation | None = None,
    ledger: str | Path | None = None,
    progress: bool = False,
) -> Tuning:
    """The best settings of `method` on this model that can be found in so many `minutes`, from a pilot of `facts`.

    It begins with `start`, or with the settings derived from the model, in the layers where a causal trace finds most
    of the recall. Then it climbs: layers, λ, criterion, clamp and learning rate in turn, each by one step as long as
    the pilot's score improves (`Trial.score`). Settings named in `keep`, and in the variant's own name, stay. When the
    time is over the best so far counts; the weights are what they were, as they are after each trial. `ledger` is a
    JSON file of the trials made: repeat the call with the same file to go on with a search that was stopped or whose
    time was over.

    Raises TuningError if not one trial succeeded.
    """
    variant = method if isinstance(method, Variant) else Variant.parse(method)
    if not facts:
        raise TuningError("there are no facts to tune with: give some")
    budget = Budget(60 * minutes)
    derived = start or Hyperparameters.derived(variant.method, model)
    derived = variant.hyperparameters(model, "", derived)
    preparation = preparation or Preparation(progress=progress)
    trials = Trials(model, tokenizer, variant, facts, preparation, Path(ledger) if ledger is not None else None)
    kept = {*keep, *(key for key, _ in variant.changes)}
    search = _Search(trials, variant, kept, budget, len(Decoder(model, derived.rewrite_module_tmp)), progress)
    finished = False
    try:
        with budget.enforced(model):
            search.run(derived)
            finished = True
    except BudgetOver:
        log.info("the budget of %g minutes is over", minutes)
    finally:
        search.bar.close()
    if search.best is None or search.best.failure:
        why = (
            search.best.failure if search.best is not None else f"{minutes:g} minutes were over before the first ended"
        )
        raise TuningError(
            f"no trial of {variant} succeeded: {why}; give it more --minutes, fewer facts, or other layers"
        )
    return Tuning(search.best, trials.made, search.trace, len(trials.facts), budget.spent, finished)


class _Search:
    """Coordinate ascent on the pilot's score. `best` is the best trial so far, `kept` are the settings that stay."""

    def __init__(
        self, trials: Trials, variant: Variant, kept: set[str], budget: Budget, depth: int, progress: bool
    ) -> None:
        self.trials, self.variant, self.budget, self.depth = trials, variant, budget, depth
        self.kept = kept | ({"null_space"} if "nullspace_threshold" in kept else set())
        self.best: Trial | None = None
        self.trace: CausalTrace | None = None
        self.bar = progress_bar(total=round(budget.seconds), desc="tune", unit="s", shown=progress)

    def _trace(self, settings: Hyperparameters) -> None:
        requests = [fact.request for fact in self.trials.facts[:_TRACED]]
        try:
            self.trace = causal_trace(
                self.trials.model,
                self.trials.tokenizer,
                requests,
                every_position=False,
                samples=_SAMPLES,
                template=settings.rewrite_module_tmp,
            )
        except TuningError as failure:
            log.warning("layers are found by trial alone: %s", failure)

    def run(self, settings: Hyperparameters) -> None:
        """Climb until no knob improves. Raises BudgetOver."""
        windows = [settings.layers]
        if "layers" not in self.kept:
            self._trace(settings)
        if self.trace is not None:
            windows.insert(0, self.trace.best_layers(len(settings.layers)))
        self.trials.statistics(settings, more={layer for window in windows for layer in window})
        candidates = [self._to_scale(settings.with_layers(window)) for window in dict.fromkeys(windows)]
        self._choose_pilot(candidates[0])
        for candidate in candidates:
            self._try(candidate)
        knobs = self._knobs(settings)
        improved = True
        while improved:
            improved = sum(map(self._climb, knobs)) > 0  # all of them, each time

    def _try(self, settings: Hyperparameters) -> bool:
        """Whether these settings are the best so far, by more than chance."""
        trial = self.trials(settings)
        better = self.best is None or trial.score > self.best.score + MARGIN
        if better:
            self.best = trial
        self.bar.update(min(round(self.budget.spent), self.bar.total) - self.bar.n)
        assert self.best is not None
        self.bar.set_postfix_str(f"trial {len(self.trials.made)}, best {100 * self.best.score:.1f}")
        return better

    def _climb(self, knob: Knob) -> bool:
        """Whether going up or down this ladder improves; it goes on in the direction that does."""
        for direction in (-1, 1):
            moved = False
            while True:
                assert self.best is not None
                settings = knob.step(self.best.hyperparameters, direction)
                if settings is None or not self._try(settings):
                    break
                moved = True
            if moved:
                return True
        return False

    def _knobs(self, settings: Hyperparameters) -> list[Knob]:
        """Of the settings that the method has, those that its name leaves open."""
        knobs = [Knob("layers", self._shifted)]
        if len(settings.layers) > 1 and "layers" not in self.kept:
            knobs.append(Knob("width", self._widened))
        if (key := self._regularised_by) is not None:
            knobs.append(Knob(key, _scaled(key, 10**0.5)))
        if self.variant.projected:
            knobs.append(Knob("null_space", self._criterion))
        knobs.append(Knob("clamp_norm_factor", _scaled("clamp_norm_factor", 1.5)))
        if settings.target_optimiser == ADAM:
            knobs.append(Knob("v_lr", _scaled("v_lr", 2.0)))
        return [knob for knob in knobs if knob.name not in self.kept]

    @property
    def _regularised_by(self) -> str | None:
        found: str | None = find_method(self.variant.solver).editor.regularised_by
        return found

    def _shifted(self, settings: Hyperparameters, direction: int) -> Hyperparameters | None:
        """All layers further up or down, by a fifteenth of the depth."""
        by = direction * max(1, self.depth // 15)
        layers = tuple(layer + by for layer in settings.layers)
        return settings.with_layers(layers) if layers[0] >= 0 and layers[-1] < self.depth else None

    def _widened(self, settings: Hyperparameters, direction: int) -> Hyperparameters | None:
        """More or fewer layers below the highest one, whose targets can be used again."""
        top, width = settings.layers[-1], len(settings.layers)
        rungs = [each for each in WIDTHS if (each > width if direction > 0 else each < width) and each <= top + 1]
        if not rungs:
            return None
        return settings.with_layers(tuple(range(top + 1 - (min if direction > 0 else max)(rungs), top + 1)))

    def _criterion(self, settings: Hyperparameters, direction: int) -> Hyperparameters | None:
        """The next threshold of those at which the null spaces together hold a share of `ENERGIES`."""
        now = settings.null_space.threshold
        ladder = [_threshold(self.trials.spectrum(settings), share) for share in ENERGIES]
        if now is None:  # an energy or a nullity that somebody chose: as the threshold that comes nearest
            shares = self.trials.null_spaces(settings)
            now = max(float(space.eigenvalues[space.nullity - 1]) for space in shares.values())
        rungs = [each for each in ladder if (each > 1.1 * now if direction > 0 else each < now / 1.1)]
        if not rungs:
            return None
        return replace(settings, null_space=Criterion(threshold=(min if direction > 0 else max)(rungs)))

    def _to_scale(self, settings: Hyperparameters) -> Hyperparameters:
        """The same settings in this model's units, where the paper's are those of its models.

        A threshold that calls (nearly) nothing or everything null becomes the one that holds a fifth of the energy. L2
        becomes the energy that a key has in the null space, tr(PCP): what the paper's 10 is there, and as λ = d_in is
        the energy of a whitened key.
        """
        if not self.variant.projected:
            return settings
        spectrum = self.trials.spectrum(settings)
        threshold = settings.null_space.threshold
        if threshold is not None and "null_space" not in self.kept:
            share = float(spectrum[spectrum < threshold].sum() / spectrum.sum())
            if not ENERGIES[0] <= share <= ENERGIES[-1]:
                settings = replace(settings, null_space=Criterion(threshold=_threshold(spectrum, 0.2)))
        threshold = settings.null_space.threshold
        if threshold is not None and self._regularised_by == "L2" and "L2" not in self.kept:
            energy = float(spectrum[spectrum < threshold].sum()) / len(settings.layers)
            settings = replace(settings, L2=_rounded(energy))
        return settings

    def _choose_pilot(self, settings: Hyperparameters) -> None:
        """Fewer facts where the model is so slow that the time would be over after a few trials."""
        most = [count for count in PILOTS if count < len(self.trials.facts)]
        if not most:
            return
        affordable = self.budget.left / TARGETS / self.trials.seconds_per_fact(settings)
        chosen = next((count for count in (len(self.trials.facts), *most) if count <= affordable), most[-1])
        if chosen < len(self.trials.facts):
            log.warning("trials are made with %d facts instead of %d, for want of time", chosen, len(self.trials.facts))
            del self.trials.facts[chosen:]


def _scaled(key: str, factor: float) -> Step:
    def step(settings: Hyperparameters, direction: int) -> Hyperparameters | None:
        value = getattr(settings, key)
        changes: dict[str, Any] = {key: _rounded(value * factor**direction)}
        return replace(settings, **changes) if value else None

    return step


def _threshold(spectrum: Tensor, share: float) -> float:
    """The threshold below which the ascending eigenvalues hold this share of their sum."""
    held = spectrum.cumsum(0) / spectrum.sum()
    return _rounded(float(spectrum[min(int((held <= share).sum()), len(spectrum) - 1)]))


def _rounded(value: float) -> float:
    """To two digits: no more are known, and a file is read by people."""
    return float(f"{value:.2g}")
