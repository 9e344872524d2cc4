"""Frontiers: for each method, with and without P, the most that it writes while it keeps so much."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..comparison.results import BEFORE, Comparison, Row
from ..evaluation.measure import Estimate
from ..evaluation.metrics import METRICS, metric
from . import grid
from .columns import columns
from .figures import Panel, Picture, frontier_panel
from .frontier import FRONTIER, Frontier, Values, gain, values
from .grid import Cell, Grid
from .section import Section
from .style import Style, alike, method_of, pairs

WRITTEN = ("exact", "efficacy", "generalization")
KEPT = ("locality", "specificity", "perplexity")
CARRYING = ("exact", "locality")


def frontiers(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """None for a comparison that is no study of frontiers."""
    if comparison.settings.get("study") != FRONTIER or comparison.before is None:
        return None
    rows: dict[str, list[Row]] = {}
    for row in comparison.final:
        if row.variant != BEFORE and "facts" in row.measured:
            rows.setdefault(method_of(row.variant), []).append(row)
    if not rows:
        return None
    styles = alike(list(rows), {method_of(name) for name in comparison.settings.get("null_spaces") or {}})
    compared = _compared(list(rows))
    panels: list[Panel] = []
    told: list[str] = []
    gains: list[tuple[Cell, list[Cell]]] = []
    best: list[Row] = []
    for kept in KEPT:
        for written in WRITTEN:
            found = {name: one for name, of in rows.items() if (one := frontier(comparison.before, of, written, kept))}
            if not found:
                continue
            drawn = {
                name: (_shown(each.mean[0], written).tolist(), _shown(each.mean[1], kept).tolist())
                for name, each in found.items()
            }
            lines = {name: each.on_it for name, each in found.items()}
            panels.append(frontier_panel(metric(written), metric(kept), drawn, lines, styles))
            for of, over in compared:
                result = gain(found[of], found[over]) if of in found and over in found else None
                if result is not None:
                    gains.append(_gain_row(of, over, written, kept, *result))
                    told += [_told(of, over, written, kept, result[0])] if (written, kept) == CARRYING else []
            if (written, kept) == CARRYING:
                best = [rows[name][at - 1] for name, each in found.items() for at in each.on_it if at]
    picture = Picture(
        "Every mark is a setting: λ, the length of targets and, with P (filled), the threshold. The line is the most "
        "that a method writes while it keeps at least so much; it starts at the model before any edit.",
        panels,
        list(styles.items()),
    )
    area = Grid(
        "How much more the first writes than the second while it keeps as much: the mean height between the two lines",
        ["compared", "written", "kept", "from", "to", "points", "95 % interval", "verdict"],
        gains,
    )
    caption = "The settings on the lines of exact match against locality"
    folded: list[tuple[str, Grid | str]] = (
        [(caption, grid.of_checkpoints(caption, best, columns(best)))] if best else []
    )
    grids = [area] if gains else []
    return Section(FRONTIER, "Frontiers", " ".join(told), pictures=[picture], grids=grids, folded=folded)


def frontier(before: Row, rows: list[Row], written: str, kept: str) -> Frontier | None:
    """Over these rows, which were measured on the same facts; None if either metric is missing."""
    every = [row.measured["facts"].records for row in rows]
    first = before.measured["facts"].records[: len(every[0])]
    of = np.stack([values(first, written), *(values(records, written) for records in every)], 1)
    if np.isnan(of).all():
        return None
    if kept == "perplexity":  # the less, the more is kept
        numbers = [row.metrics.get(kept) for row in (before, *rows)]
        if any(number is None or not np.isfinite(number) for number in numbers):
            return None
        return Frontier(of, -np.asarray([numbers], dtype=float))
    keeps = [values(records, kept) for records in every]
    start = np.where(np.isnan(keeps[0]), np.nan, 1.0) if kept == "locality" else values(first, kept)
    found = np.stack([start, *keeps], 1)
    return None if np.isnan(found).all() else Frontier(of, found)


def _compared(methods: list[str]) -> list[tuple[str, str]]:
    """With P against without; what projects by itself against the first method."""
    found = [(with_, plain) for _, plain, with_ in pairs(methods) if plain and with_]
    alone = [name for name in methods if not any(name in pair for pair in found)]
    return found + [(name, methods[0]) for name in alone if name != methods[0]]


def _shown(of: Values, name: str) -> Values:
    return -of if name == "perplexity" else of * 100 if METRICS[name].share else of


def verdict(of: Estimate) -> str:
    """Whether a gain is one."""
    if of.low is None or of.high is None or of.low <= 0 <= of.high:
        return "cannot be told"
    return "higher" if of.low > 0 else "lower"


def _told(of: str, over: str, written: str, kept: str, found: Estimate) -> str:
    points = f"{100 * found.value:+.1f} points of {written} at equal {kept}".replace("-", "−")
    said = {"higher": "lies above", "lower": "lies below", "cannot be told": "cannot be told from"}[verdict(found)]
    return f"The frontier of {of} {said} that of {over} ({points})."


def _gain_row(
    of: str, over: str, written: str, kept: str, found: Estimate, ends: tuple[float, float]
) -> tuple[Cell, list[Cell]]:
    low, high = (float(_shown(np.asarray(end), kept)) for end in ends)
    interval = (
        "–" if found.low is None or found.high is None else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    ).replace("-", "−")
    said = verdict(found)
    return grid.text(f"{of} against {over}"), [
        grid.text(metric(written).title),
        grid.text(metric(kept).title),
        grid.number(low, metric(kept).form),
        grid.number(high, metric(kept).form),
        Cell(f"{100 * found.value:+.1f}".replace("-", "−"), found.value, best=said != "cannot be told"),
        grid.text(interval),
        grid.text(said),
    ]
