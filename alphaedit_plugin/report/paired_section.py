"""Variants against one of them, fact by fact: whether a difference is more than which facts were drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..comparison.results import BEFORE, Comparison, Row
from ..evaluation.measure import Estimate, estimate
from ..evaluation.metrics import metric
from . import grid
from .grid import Cell, Grid
from .section import Section
from .style import Style

METRICS = ("efficacy", "generalization", "specificity", "exact")
REFERENCE = "alphaedit"


def paired(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """Each variant less AlphaEdit, or less the first one if it is not there; None for a single variant."""
    rows = {row.variant: row for row in comparison.final if row.variant != BEFORE and "facts" in row.measured}
    if len(rows) < 2:
        return None
    reference = rows.get(REFERENCE) or next(iter(rows.values()))
    table = []
    for name, row in rows.items():
        found = [difference(row, reference, of) for of in METRICS]
        if row is not reference and any(found):
            table.append((grid.text(name), [_cell(each, of) for each, of in zip(found, METRICS, strict=True)]))
    if not table:
        return None
    caption = f"Less {reference.variant}, in percentage points, with the 95 % interval of the difference"
    text = "Paired by fact: both were asked about the same ones. Bold is a difference whose interval leaves out zero."
    return Section("paired", f"Against {reference.variant}", text, grids=[Grid(caption, ["variant", *METRICS], table)])


def difference(row: Row, reference: Row, name: str) -> Estimate | None:
    """The mean over the facts that both know of one's value less the other's; None without any such fact."""
    one, other = (_by_fact(each, name) for each in (row, reference))
    shared = [number for number in one if number in other]
    if not shared:
        return None
    return estimate(np.asarray([one[number] - other[number] for number in shared]), lambda sample: sample.mean(-1))


def _by_fact(row: Row, name: str) -> dict[int, float]:
    """number of the fact → its value. Records from before they knew their number are of all facts, in order."""
    found = enumerate(row.measured["facts"].records)
    return {each.get("number", at): each[name] for at, each in found if each.get(name) is not None}


def _cell(of: Estimate | None, name: str) -> Cell:
    if of is None:
        return Cell("–")
    low, high = (metric(name).shown(of.value if end is None else end) for end in (of.low, of.high))
    value = metric(name).shown(of.value)
    text = f"{value:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")
    return Cell(text, value, best=not low <= 0 <= high)
