"""The columns of tables: each metric, the change of the weights, and the seconds of editing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..comparison.results import BEFORE, Row
from ..evaluation.measure import Estimate
from ..evaluation.metrics import METRICS, Metric, metric
from ..visible import visible

WEIGHTS = "weights"
"""The group of columns that are no metrics: drift, leakage, seconds."""


@dataclass(frozen=True)
class Column:
    """`of` gives a row's number in the unit that is shown, None if it has none; `better` is max, min or None."""

    name: str
    label: str
    group: str
    of: Callable[[Row], Estimate | None]
    better: Callable[..., Any] | None
    form: str
    meaning: str

    def text(self, row: Row) -> str:
        estimate = self.of(row)
        return "–" if estimate is None else self.form.format(estimate.value)

    def half(self, row: Row) -> str:
        """Half the width of the interval, in the same form; empty if there is none."""
        estimate = self.of(row)
        if estimate is None or estimate.low is None or estimate.high is None:
            return ""
        return self.form.format((estimate.high - estimate.low) / 2)

    def change(self, row: Row, before: Row | None) -> tuple[float, bool | None] | None:
        """(difference from `before`, whether it is an improvement); None if there is nothing to compare.

        A difference too small to be shown is 0, and neither better nor worse.
        """
        if before is None or row is before or (now := self.of(row)) is None or (then := self.of(before)) is None:
            return None
        if self.text(row) == self.text(before):
            return 0.0, None
        difference = now.value - then.value
        better = None if self.better is None else self.better(now.value, then.value) == now.value
        return difference, better


def columns(rows: Iterable[Row]) -> list[Column]:
    """The columns that any of `rows` has: metrics in the order of METRICS, then unknown metrics, then the others."""
    rows = list(rows)
    measured = {name: None for row in rows for name in row.estimates}
    names = [*(name for name in METRICS if name in measured), *(name for name in measured if name not in METRICS)]
    found = [_column(metric(name)) for name in names] + [*_WEIGHTS]
    return [column for column in found if any(column.of(row) is not None for row in rows)]


def _column(metric: Metric) -> Column:
    def of(row: Row) -> Estimate | None:
        found = row.estimates.get(metric.name)
        if found is None:
            return None
        ends = (None if end is None else metric.shown(end) for end in (found.low, found.high))
        return Estimate(metric.shown(found.value), *ends)

    return Column(metric.name, visible(metric.label), metric.group, of, metric.better, metric.form, metric.meaning)


def _of_edited(
    name: str, label: str, value: Callable[[Row], float | None], better: Any, form: str, meaning: str
) -> Any:
    """A column that only edited rows have, not the model before edits."""

    def of(row: Row) -> Estimate | None:
        found = None if row.variant == BEFORE else value(row)
        return None if found is None else Estimate(found)

    return Column(name, label, WEIGHTS, of, better, form, meaning)


_WEIGHTS = (
    _of_edited(
        "drift",
        "drift %",
        lambda row: 100 * row.mean_drift if row.drift else None,
        min,
        "{:.2f}",
        "‖ΔW‖/‖W‖, mean over layers",
    ),
    _of_edited(
        "leakage",
        "leakage %",
        lambda row: 100 * row.mean_leakage if row.leakage else None,
        min,
        "{:.2f}",
        "‖ΔW K0‖/‖W K0‖, mean over layers",
    ),
    _of_edited("seconds", "seconds", lambda row: row.seconds, None, "{:.0f}", "what editing took"),
)
