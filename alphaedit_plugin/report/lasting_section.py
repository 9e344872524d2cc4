"""Which method lasts: when each one's model collapses, what it still knows of its facts by age, how it has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..comparison.results import Comparison, Row
from ..evaluation.metrics import metric
from . import grid
from .collapse import collapse_of
from .figures import Picture, ages_panel
from .grid import Cell, Grid
from .section import SEQUENCE, Section
from .style import Style

AGES = 10
_SHOWN = ("efficacy", "retention", "exact", "perplexity", "weight_norm", "state_norm")


def lasting(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """None for a comparison that was not measured along the way."""
    series = {name: rows for name in comparison.variants if len(rows := comparison.of(name)) > 1}
    if not series:
        return None
    ages = {name: curve for name, rows in series.items() if (curve := by_age(rows[-1]))}
    pictures = [_picture(ages, looks)] if ages else []
    return Section(
        "lasting", "Which method lasts", _told(comparison, series), SEQUENCE, pictures, [_grid(comparison, series)]
    )


def _picture(ages: Mapping[str, Mapping[int, float]], looks: Mapping[str, Style]) -> Picture:
    label = metric("efficacy").label
    since = sorted({age for curve in ages.values() for age in curve})
    rows = [(grid.text(name), [grid.number(curve.get(age)) for age in since]) for name, curve in ages.items()]
    return Picture(
        "Efficacy of facts by how many edits came after them, at each method's last checkpoint: a line that falls to "
        "the right forgets what is old.",
        [ages_panel("ages", label, ages, looks)],
        [(name, looks[name]) for name in ages],
        Grid(f"{label} by edits since", ["variant", *(f"{age:,} since" for age in since)], rows),
    )


def by_age(row: Row) -> dict[int, float]:
    """The edits that came after a tenth of the facts, at its middle → that tenth's efficacy, in percent.

    Facts without a value, or of results that know no places, are left out.
    """
    records = row.measured["facts"].records if "facts" in row.measured else []
    known: list[Mapping[str, Any]] = [each for each in records if each.get("efficacy") is not None and "number" in each]
    count = 1 + max((each["number"] for each in known), default=0)
    tenths: dict[int, list[float]] = {}
    for each in known:
        tenths.setdefault(each["number"] * AGES // count, []).append(each["efficacy"])
    return {
        round(count - (tenth + 0.5) * count / AGES): 100 * sum(values) / len(values) for tenth, values in tenths.items()
    }


def _told(comparison: Comparison, series: Mapping[str, Sequence[Row]]) -> str:
    found = {name: collapse_of(comparison, name) for name in series}
    lasting = [f"{name} ({rows[-1].edits:,} edits)" for name, rows in series.items() if found[name] is None]
    fallen = [f"{name} between {of.last_good:,} and {of.edits:,} edits" for name, of in found.items() if of is not None]
    told = [f"No collapse was seen of {', '.join(lasting)}."] if lasting else []
    told += [f"Collapsed: {', '.join(fallen)}."] if fallen else []
    return " ".join(
        [
            *told,
            "A model has collapsed when held-out perplexity passes twice its start, or efficacy falls by ten points.",
        ]
    )


def _grid(comparison: Comparison, series: Mapping[str, Sequence[Row]]) -> Grid:
    chosen = [metric(name) for name in _SHOWN if any(name in rows[-1].metrics for rows in series.values())]
    rows = []
    for name, checkpoints in series.items():
        last, fallen = checkpoints[-1], collapse_of(comparison, name)
        rooms = [of.left for of in last.capacity.values()]
        rows.append(
            (
                grid.text(name),
                [
                    grid.number(last.edits, "{:,.0f}"),
                    Cell("no") if fallen is None else Cell(f"{fallen.last_good:,}–{fallen.edits:,}", fallen.edits),
                    *(_value(last, each.name) for each in chosen),
                    grid.number(min(rooms) if rooms else None, "{:,.0f}"),
                ],
            )
        )
    return Grid(
        "At each method's last checkpoint",
        ["variant", "edits", "collapsed", *(each.label for each in chosen), "room"],
        rows,
        [
            "",
            "after so many edits",
            "between these checkpoints",
            *(each.meaning for each in chosen),
            "dimensions that kept keys leave free, in the layer with the fewest",
        ],
    )


def _value(row: Row, name: str) -> Cell:
    value = row.metrics.get(name)
    return grid.number(None if value is None else metric(name).shown(value), metric(name).form)
