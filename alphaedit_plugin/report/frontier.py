"""The frontier of what a method writes against what it keeps, over all its settings, and the height between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.measure import RESAMPLES, SEED, Estimate

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


def gain(of: Frontier, over: Frontier) -> tuple[Estimate, tuple[float, float]] | None:
    """How much more one writes than the other while it keeps as much: the area between the frontiers, divided by its
    width; with its 95 % bootstrap interval, paired by fact, and the range of what is kept.

    The range goes from the model before any edit down to where the first of the two writes as much as it ever does.
    With many settings a frontier is a little too high, since it takes the best of them on the facts that it is judged
    by: compare frontiers of as many settings. None if neither writes anything.
    """
    high = float(of.mean[1][0])
    low = min(high, *(float(each.mean[1][each.on_it[-1]]) for each in (of, over)))
    if not low < high:
        return None
    count = len(of.written)
    drawn = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    counts = np.stack([np.bincount(sample, minlength=count) for sample in drawn]).astype(float)

    def difference(weights: Values) -> Values:
        one, other = (_height(*each.resampled(weights), low, high) for each in (of, over))
        return one - other

    value, found = float(difference(np.ones((1, count)))[0]), difference(counts)
    ends = np.quantile(found, [0.025, 0.975]) if np.isfinite(found).all() else (None, None)
    return Estimate(value, *(None if end is None else float(end) for end in ends)), (low, high)


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


def values(records: Sequence[dict[str, Any]], name: str) -> Values:
    """A metric of each fact; nan where it has none."""
    return np.asarray([np.nan if (of := record.get(name)) is None else float(of) for record in records])
