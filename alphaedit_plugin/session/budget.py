"""Edits that stay within bounds: what may be spent, what has been, and which part of a batch still fits.

    drift    ‖ΔW‖ / ‖W‖ of the edited layer where it is largest
    leakage  ‖ΔW K0‖ / ‖W K0‖ of the edited layer where it is largest
    kl       KL(unedited ‖ edited) of the next token, in nats: the mean over 200 places of the held-out text that ships

All three are of the model as it is now against the unedited one, whatever moved it there: a session's edits spend one
budget. KL is between the models as they run: in 16 bits their own rounding is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from ..editors.chat import plain
from ..editors.targets import Targets
from ..errors import EditError
from ..model.continuation import positions
from ..model.decoder import Decoder, OutProjection
from ..model.divergence import Divergence
from ..model.snapshot import copy_into, put_back
from ..nullspace.corpus import windows
from ..nullspace.covariance import Covariance
from ..storage.shipped import shipped
from .change import drift, leakage

HELD_OUT = "examples/heldout.txt"
PLACES, EVERY, WINDOW = 200, 8, 64
"""KL is taken at every 8th of the text's first 1,600 tokens; the model sees 64 at a time."""


@dataclass(frozen=True)
class Budget:
    """The largest values that are allowed; infinite where nothing is bounded."""

    drift: float = math.inf
    leakage: float = math.inf
    kl: float = math.inf

    def __post_init__(self) -> None:
        """Raises EditError for a bound that is no number, or negative."""
        for name, bound in vars(self).items():
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not bound >= 0:
                raise EditError(f"the budget's {name} must be a number from 0 up, not {bound!r}")

    @classmethod
    def of(cls, given: Mapping[str, float] | Budget | None) -> Budget | None:
        """From names and numbers; None if nothing is bounded. Raises EditError for anything else."""
        if given is None:
            return None
        if not isinstance(given, Budget):
            names = [field.name for field in fields(cls)]
            if not isinstance(given, Mapping):
                raise EditError(f"a budget maps names ({', '.join(names)}) to numbers; {given!r} does not")
            if unknown := [name for name in given if name not in names]:
                raise EditError(f"a budget has no {unknown[0]!r}: it may name {', '.join(names)}")
            given = cls(**given)
        return None if all(bound == math.inf for bound in vars(given).values()) else given


@dataclass(frozen=True)
class Excess:
    """What is above its bound: the largest such value of the first of drift, leakage and KL that is."""

    what: str
    value: float
    bound: float
    unit: str = ""

    def said(self, verb: str) -> str:
        """Such as "drift of layer 7 would be 0.231, above 0.2"; in as many digits as tell the two numbers apart."""
        bound = f"{self.bound:.6g}"
        digits = next((n for n in range(3, 17) if float(f"{self.value:.{n}g}") > float(bound)), 17)
        return f"{self.what} {verb} {self.value:.{digits}g}{self.unit}, above {bound}"


class Gauge:
    """Measures how far a model is from its `base`, in what a budget bounds.

    It keeps what KL needs of the unedited model: for the time of one call that edits.
    """

    def __init__(
        self,
        budget: Budget,
        decoder: Decoder,
        tokenizer: Any,
        projections: Mapping[int, OutProjection],
        base: Mapping[int, Tensor],
        covariances: Mapping[int, Covariance],
    ) -> None:
        """`projections` are the edited ones, `base` is layer → W before any edit, d_out × d_in.

        Raises EditError if leakage is bounded and a layer has no covariance.
        """
        self.budget, self.decoder, self.tokenizer = budget, decoder, plain(tokenizer)
        self.projections, self.base, self.covariances = projections, base, covariances
        if budget.leakage < math.inf and (missing := sorted(set(projections) - set(covariances))):
            raise EditError(
                f"a budget of leakage needs covariances, and there are none of layers {missing}: give them to the "
                "session, or leave leakage out (a resumed session has those that its method needs)"
            )

    def excess(self) -> Excess | None:
        """What is above its bound, on the weights as they are now; what costs least is measured first."""
        now = {layer: projection.matrix for layer, projection in self.projections.items()}
        moved = {layer: drift(self.base[layer], weight) for layer, weight in now.items()}
        if found := _worst("drift", moved, self.budget.drift):
            return found
        if not any(moved.values()):  # the unedited model itself: no rounding shall make it differ
            return None
        if self.budget.leakage < math.inf:
            leaked = {layer: leakage(self.base[layer], now[layer], self.covariances[layer]) for layer in now}
            if found := _worst("leakage", leaked, self.budget.leakage):
                return found
        if self.budget.kl < math.inf and not (kl := self._divergence.now()) <= self.budget.kl:
            return Excess("KL", kl, self.budget.kl, " nats")
        return None

    @cached_property
    def _divergence(self) -> Divergence:
        """From the unedited model, whose weights are put in for the time of a pass."""
        text = shipped(HELD_OUT).read_text(encoding="utf-8")
        size = int(min(WINDOW, positions(self.decoder.model)))
        pieces = windows([text], self.tokenizer, PLACES * EVERY, window=size)
        with put_back(self.projections):
            copy_into(self.base, self.projections)
            return Divergence(self.decoder, pieces, every=EVERY)


def _worst(what: str, by_layer: Mapping[int, float], bound: float) -> Excess | None:
    """The layer that is farthest above the bound. One that is not a number is."""
    above = {layer: value for layer, value in by_layer.items() if not value <= bound}
    if not above:
        return None
    layer = max(above, key=lambda layer: math.inf if math.isnan(above[layer]) else above[layer])
    return Excess(f"{what} of layer {layer}", above[layer], bound)


class OverBudget(Exception):
    """Ends a transaction that would not fit, so that it is taken back. The message says which bound it is above."""


def parts_that_fit(count: int, attempt: Callable[[Sequence[int]], str]) -> dict[int, str]:
    """Tries all of `count` facts together, then by halves what did not fit, in order; returns what was left out.

    `attempt` writes the facts at these places, or leaves everything as it was and returns why. A single fact that does
    not fit is left out, with that reason.
    """
    left_out: dict[int, str] = {}
    waiting: list[Sequence[int]] = [range(count)]
    while waiting:
        part = waiting.pop()
        why = attempt(part)
        if why and len(part) == 1:
            left_out[part[0]] = why
        elif why:
            middle = (len(part) + 1) // 2
            waiting += [part[middle:], part[:middle]]
    return left_out


class Reused:
    """Targets that belong to the model as it is, of which a part is asked for again when a whole did not fit.

    `forget` them when something was written. Those that are `fixed` stay valid.
    """

    def __init__(self, count: int, given: Targets | None, find: Callable[[Sequence[int]], Targets | None]) -> None:
        """`given` are those of all `count` facts; `find` makes those of some, or None if the method takes none."""
        self._rows: Sequence[int] = range(count)
        self._targets, self._find = given, find

    def of(self, rows: Sequence[int]) -> Targets | None:
        """Of the facts at these places. All those that are known are given as they are, not copied."""
        if self._targets is None or not set(rows) <= set(self._rows):
            self._rows, self._targets = rows, self._find(rows)
        if self._targets is None or len(rows) == len(self._rows):
            return self._targets
        place = {row: at for at, row in enumerate(self._rows)}
        return self._targets.of([place[row] for row in rows])

    def forget(self) -> None:
        if self._targets is not None and not self._targets.fixed:
            self._targets = None
