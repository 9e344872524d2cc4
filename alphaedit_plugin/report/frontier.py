"""The frontier of what a method writes against what it keeps, over all its settings, and the height between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import CompareError
from ..evaluation.paired import LEVEL, draws

FRONTIER = "frontier"
"""The study's name, and the section's."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Frontier:
    """The settings of one method, as facts × settings: what is `written` and what is `kept`, both better if larger.

    The model before any edit is the first of the settings: to write nothing is always possible. `kept` may be 1 ×
    settings, for what is not measured fact by fact. nan is a fact without a value.
    """

    written: Values
    kept: Values

    @cached_property
    def mean(self) -> tuple[Values, Values]:
        """What is written and what is kept with each setting, over all facts."""
        everything = np.ones((1, len(self.written)))
        written, kept = self.resampled(everything)
        return written[0], kept[0]

    def resampled(self, counts: Values) -> tuple[Values, Values]:
        """The means over facts that come as often as `counts` says, samples × facts: both samples × settings."""
        written, kept = _means(self.written, counts), _means(self.kept, counts)
        return written, np.broadcast_to(kept, written.shape)

    @property
    def on_it(self) -> list[int]:
        """The settings that no other beats in both, from what keeps most to what writes most."""
        written, kept = (np.round(of, 12) for of in self.mean)  # equal settings are equal, whatever their place
        found: list[int] = []
        for each in np.lexsort((-written, -kept)):
            if not found or written[each] > written[found[-1]]:
                found.append(int(each))
        return found


@dataclass(frozen=True)
class Gain:
    """How much more one frontier writes than another while it keeps as much, on `items` facts; shares from 0 to 1.

    `value` is the area between them divided by its width, which goes from `kept_most` to `kept_least`; `low` and `high`
    are the ends of its 95 % bootstrap interval, paired by fact, and `p` is twice the share of resamples on the other
    side of 0.
    """

    value: float
    low: float
    high: float
    p: float
    items: int
    kept_most: float
    kept_least: float


def gain(of: Frontier, over: Frontier) -> Gain | None:
    """The range goes from the model before any edit down to where the first of the two writes as much as it ever does.

    A frontier takes the best of its settings on the facts that it is judged by, and is the higher for having more of
    them: both need as many. None if neither writes anything, or if a number is not finite.

    Raises CompareError for frontiers of different numbers of settings.
    """
    if of.written.shape[1] != over.written.shape[1]:
        raise CompareError("a frontier of more settings is the higher one: compare those of as many")
    high = float(of.mean[1][0])
    low = min(high, *(float(each.mean[1][each.on_it[-1]]) for each in (of, over)))
    if not low < high:
        return None
    count = len(of.written)

    def difference(weights: Values) -> Values:
        one, other = (_height(*each.resampled(weights), low, high) for each in (of, over))
        return one - other

    value, found = float(difference(np.ones((1, count)))[0]), difference(draws(count)[0].astype(float))
    if not np.isfinite(found).all():
        return None
    ends = np.quantile(found, [LEVEL / 2, 1 - LEVEL / 2])
    aside = min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0))
    p = min(1.0, 2 * (1 + aside) / (1 + len(found)))
    return Gain(value, float(ends[0]), float(ends[1]), p, count, high, low)


def _means(values: Values, counts: Values) -> Values:
    """Samples × settings; with one row of values, that row."""
    if len(values) == 1:
        return values
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Values = (counts @ np.where(known, values, 0.0)) / (counts @ known)
    return means


def _height(written: Values, kept: Values, low: float, high: float) -> Values:
    """The mean over what is kept, from `low` to `high`, of the most that is written by whatever keeps so much."""
    order = np.argsort(-kept, axis=1, kind="stable")
    most = np.maximum.accumulate(np.take_along_axis(written, order, 1), 1)
    edges = np.clip(np.take_along_axis(kept, order, 1), low, high)
    edges[:, 0] = high
    below = np.concatenate([edges[:, 1:], np.full((len(edges), 1), low)], 1)
    height: Values = (most * (edges - below)).sum(1) / (high - low)
    return height
