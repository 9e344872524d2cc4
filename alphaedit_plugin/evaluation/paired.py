"""Two variants asked about the same items: their difference, how sure it is, and how many items would tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isfinite
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .measure import SEED

DRAWS = 4999
"""With the data themselves these make 5,000, so that the least p-value is 0.0002."""
LEVEL, POWER = 0.05, 0.8

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One side's number less the other's over `items` that both were asked about.

    `low` and `high` are the ends of the 95 % paired bootstrap interval, `error` is the bootstrap's standard error.
    `p` is that of the two-sided paired randomisation test: how often a difference as large comes about if, item by
    item, it is tossed up which side is which. Exchanging the sides changes the signs and nothing else.
    """

    value: float
    low: float
    high: float
    p: float
    error: float
    items: int

    def needed(self, tests: int = 1) -> int | None:
        """The items that would tell a difference of this size and spread with a power of 0.8, when it is one of `tests`
        (Bonferroni, so no fewer than Holm needs): n ((z_α/2 + z_β) · error / value)². None for no difference but what
        rounding leaves of equal means.
        """
        if abs(self.value) <= 1e-9 * max(1.0, self.error):
            return None
        z = NormalDist().inv_cdf(1 - LEVEL / (2 * tests)) + NormalDist().inv_cdf(POWER)
        return ceil(self.items * (z * self.error / self.value) ** 2)


def first(means: Numbers) -> Numbers:
    """… × k → …: the statistic of items that have one value each."""
    return means[..., 0]


def difference(
    one: Mapping[int, Sequence[float]],
    other: Mapping[int, Sequence[float]],
    statistic: Callable[[Numbers], Numbers] = first,
) -> Difference | None:
    """`statistic` of one less that of the other, over the items that both have.

    Items have k values each, nan where there is none; a value that either lacks counts for neither. `statistic` turns
    means over items, … × k, into … numbers. None if the two share no item, or if a number is not finite. The order of
    items does not matter, and the result is always the same.
    """
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    sides = np.asarray([[one[item] for item in shared], [other[item] for item in shared]], dtype=np.float64)
    known = np.asarray(~np.isnan(sides).any(0))
    asked = np.asarray(known.any(1))
    if not np.all(known.any(0)):
        return None
    a, b = (np.where(known, side, 0)[asked] for side in sides)
    known = known[asked]
    drawn, tossed = draws(len(a))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):

        def less(sums: Numbers, of_other: Numbers, counts: Numbers) -> Numbers:
            return statistic(sums / counts) - statistic(of_other / counts)

        value = float(less(a.sum(0), b.sum(0), known.sum(0)))
        resampled = less(_times(drawn, a), _times(drawn, b), _times(drawn, known))
        moved = _times(tossed, b - a)
        exchanged = less(a.sum(0) + moved, b.sum(0) - moved, known.sum(0))
    resampled = resampled[np.isfinite(resampled)]
    if not isfinite(value) or not len(resampled):
        return None
    low, high = np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2])
    as_large = np.count_nonzero(~(np.abs(exchanged) < abs(value) * (1 - 1e-9)))
    p = float(1 + as_large) / (1 + DRAWS)
    return Difference(value, float(low), float(high), p, float(resampled.std()), len(a))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several (Holm 1979), in their order: what is at most α then is rejected, and the
    chance that any true hypothesis is among those is at most α.
    """
    adjusted, least = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = least
    return adjusted


@lru_cache(maxsize=2)
def draws(items: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """DRAWS × items each: how often every item is drawn in a resample, and which items change sides."""
    random = np.random.default_rng(SEED)
    drawn = np.zeros((DRAWS, items), np.uint8)
    for row in drawn:
        row[:] = np.bincount(random.integers(0, items, items), minlength=items)
    tossed = random.integers(0, 2, (DRAWS, items), np.uint8)
    for each in (drawn, tossed):
        each.flags.writeable = False
    return drawn, tossed


def _times(draws: NDArray[np.uint8], values: NDArray[Any]) -> Numbers:
    """draws · values, some rows at a time, so that a long sequence of facts does not fill the memory."""
    rows = max(1, 2_000_000 // len(values))
    parts = [draws[at : at + rows].astype(np.float64) @ values for at in range(0, len(draws), rows)]
    return np.concatenate(parts)
