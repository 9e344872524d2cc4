"""Two variants in one column: their difference, paired by what both were asked, and whether it tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any

import numpy as np

from ..comparison.results import Comparison, Row
from ..evaluation.fact_scores import EARLIEST, evenly, harmonic
from ..evaluation.measure import Estimate
from ..evaluation.metrics import metric
from ..evaluation.paired import LEVEL, Difference, Numbers, difference, first, holm
from .columns import Column

FEWEST = 20
"""With fewer items than this no variant is called better than another."""


@dataclass(frozen=True)
class Contrast:
    """`row` less `other` in one column, both of which have a number there.

    `paired` is None if their records share no items; then only their intervals are held against each other. `p` is
    adjusted for the `tests` that were asked together (Holm).
    """

    column: Column
    row: Row
    other: Row
    paired: Difference | None
    p: float | None
    tests: int

    @property
    def value(self) -> float:
        """In the unit that is shown."""
        if self.paired is not None:
            return self._shown(self.paired.value)
        return _number(self.column, self.row).value - _number(self.column, self.other).value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, in the unit that is shown."""
        return None if self.paired is None else (self._shown(self.paired.low), self._shown(self.paired.high))

    @property
    def items(self) -> int:
        """How many facts both were asked or, for perplexity, how many windows of text."""
        return min(self.row.edits, self.other.edits) if self.paired is None else self.paired.items

    @property
    def known(self) -> bool:
        """Whether there is anything to judge by: the same items, or two intervals."""
        ends = [_number(self.column, row).low for row in (self.row, self.other)]
        return self.paired is not None or None not in ends

    @property
    def apart(self) -> bool:
        """Whether the difference is more than chance: by the p-value or, without one, by intervals that do not meet."""
        one, other = _number(self.column, self.row), _number(self.column, self.other)
        if self.items < FEWEST:
            return False
        if isfinite(one.value) != isfinite(other.value):
            return True
        if self.p is not None:
            return self.p <= LEVEL
        bounds = [(-inf if of.low is None else of.low, inf if of.high is None else of.high) for of in (one, other)]
        return max(low for low, _ in bounds) > min(high for _, high in bounds)

    @property
    def better(self) -> bool | None:
        """Whether `row` is the better one; None if that cannot be told."""
        if self.column.better is None or not self.apart:
            return None
        return bool(self.column.better(self.value, 0.0) == self.value)

    @property
    def needed(self) -> int | None:
        """The items that would tell, if the difference is what it seems; None if it seems to be none."""
        found = None if self.paired is None else self.paired.needed(self.tests)
        return None if found is None else max(found, FEWEST)

    @property
    def asked(self) -> str:
        """By what the two were held against each other: "with 500 facts"."""
        if self.paired is None:
            return "by their intervals"
        return f"with {self.items:,} {'windows of text' if self.column.name == 'perplexity' else 'facts'}"

    def _shown(self, value: float) -> float:
        return metric(self.column.name).shown(value)


def contrasts(comparison: Comparison, asked: Sequence[tuple[Column, Row, Row]]) -> list[Contrast]:
    """Each of `asked` (column, row, other) as a contrast; all together are one family of tests."""
    found = [paired(comparison, row, other, column.name) for column, row, other in asked]
    adjusted = iter(holm([each.p for each in found if each is not None]))
    tests = sum(each is not None for each in found)
    return [
        Contrast(column, row, other, each, None if each is None else next(adjusted), tests)
        for (column, row, other), each in zip(asked, found, strict=True)
    ]


def paired(comparison: Comparison, row: Row, other: Row, name: str) -> Difference | None:
    """One row's metric less the other's, over what both were asked; None if their records do not tell.

    A measure that records a metric under its own name, item by item, is paired without another word here.
    """
    if not all(isfinite(each.metrics.get(name, nan)) for each in (row, other)):
        return None
    one, of_other = (_items(comparison, each, name) for each in (row, other))
    return difference(one, of_other, _STATISTICS.get(name, first))


def _number(column: Column, row: Row) -> Estimate:
    return column.of(row) or Estimate(nan)


def _items(comparison: Comparison, row: Row, name: str) -> dict[int, list[float]]:
    """Place of each item → the values that the metric is made of, nan where there are none."""
    records = next((of.records for of in row.measured.values() if name in of.estimates), [])
    places = {each.get("number", at): each for at, each in enumerate(records)}
    sample = _sample(comparison)
    if name == "retention":
        places = {number: places[number] for number in range(EARLIEST) if number in places}
    elif sample is not None and metric(name).group == "facts" and row.edits < comparison.edits:
        facts = max(places, default=-1) + 1  # the last is always asked; `row.edits` counts requests, not facts
        places = {number: places[number] for number in evenly(facts, sample) if number in places}
    values = _VALUES.get(name, lambda record: (record.get(name),))
    found = {place: values(each) for place, each in places.items()}
    return {place: [nan if value is None else float(value) for value in of] for place, of in found.items()}


def _sample(comparison: Comparison) -> int | None:
    """How many facts are asked before the last checkpoint; with them the earliest are, for retention alone."""
    facts: Mapping[str, Any] = (comparison.settings.get("measures") or {}).get("facts") or {}
    return facts.get("sample")


def _loss(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    loss, tokens = record.get("loss"), record.get("tokens")
    return (None, None) if loss is None or tokens is None else (loss * tokens, tokens)


def _perplexity(means: Numbers) -> Numbers:
    return np.exp(means[..., 0] / means[..., 1])


_VALUES: dict[str, Callable[[Mapping[str, Any]], tuple[float | None, ...]]] = {
    "score": lambda record: tuple(record.get(name) for name in ("efficacy", "generalization", "specificity")),
    "retention": lambda record: (record.get("efficacy"),),
    "perplexity": _loss,
}
_STATISTICS: dict[str, Callable[[Numbers], Numbers]] = {"score": harmonic, "perplexity": _perplexity}
