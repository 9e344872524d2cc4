"""Frontiers: for each method, with and without P, the most that it writes while it keeps so much."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..comparison.results import BEFORE, Comparison, Row
from ..evaluation.metrics import metric
from ..evaluation.paired import LEVEL, holm
from . import grid
from .columns import columns
from .contrast import FEWEST
from .figures import Panel, Picture, frontier_panel
from .frontier import FRONTIER, Frontier, Gain, Values, gain
from .grid import Cell, Grid
from .section import Section
from .style import Style, alike, base_of, method_of
from .verdict import OPEN

WRITTEN = ("exact", "efficacy", "generalization")
KEPT = ("locality", "specificity", "perplexity")
CARRYING = ("exact", "locality")


def group_of(variant: str) -> str:
    """The variant's name without settings but the threshold: frontiers of one threshold have as many settings as those
    without P.
    """
    return re.sub(r"@(?!nullspace_threshold=)[^@+]*", "", variant)


def frontiers(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """None for a comparison that is no study of frontiers."""
    if comparison.settings.get("study") != FRONTIER or comparison.before is None:
        return None
    rows: dict[str, list[Row]] = {}
    for row in comparison.final:
        if row.variant != BEFORE and "facts" in row.measured:
            rows.setdefault(group_of(row.variant), []).append(row)
    if not rows:
        return None
    projected = {group_of(name) for name in comparison.settings.get("null_spaces") or {}}
    styles = alike(list(rows), projected)
    panels: list[Panel] = []
    gains: list[_Gained] = []
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
            gains += [
                _Gained(of, over, written, kept, each)
                for of, over in _compared(list(found), rows)
                if (each := gain(found[of], found[over])) is not None
            ]
            if (written, kept) == CARRYING:
                best = [rows[name][at - 1] for name, each in found.items() for at in each.on_it if at]
    adjusted = holm([each.gain.p for each in gains])
    picture = Picture(
        "Every mark is a setting: λ and the length of targets, of each method and, with P (filled), of each threshold. "
        "The line is the most that is written while at least so much is kept; it starts at the model before any edit.",
        panels,
        list(styles.items()),
    )
    area = Grid(
        "How much more the first writes than the second while it keeps as much: the mean height between the two lines, "
        "as many settings each, paired by fact, Holm-corrected over all rows",
        ["compared", "written", "kept", "from", "to", "points", "95 % interval", "verdict"],
        [each.row(p) for each, p in zip(gains, adjusted, strict=True)],
    )
    caption = "The settings on the lines of exact match against locality"
    folded: list[tuple[str, Grid | str]] = (
        [(caption, grid.of_checkpoints(caption, best, columns(best)))] if best else []
    )
    told = [each.told(p) for each, p in zip(gains, adjusted, strict=True) if (each.written, each.kept) == CARRYING]
    grids = [area] if gains else []
    return Section(FRONTIER, "Frontiers", " ".join(told), pictures=[picture], grids=grids, folded=folded)


@dataclass(frozen=True)
class _Gained:
    """What lies between the frontier called `of` and the one called `over`; `p` is adjusted for all that are asked."""

    of: str
    over: str
    written: str
    kept: str
    gain: Gain

    def verdict(self, p: float) -> str:
        if self.gain.items < FEWEST or p > LEVEL:
            return OPEN
        return "higher" if self.gain.value > 0 else "lower"

    def told(self, p: float) -> str:
        points = f"{_points(self.gain.value)} points of {self.written} at equal {self.kept}"
        said = {"higher": "lies above", "lower": "lies below", OPEN: "cannot be told from"}[self.verdict(p)]
        return f"The frontier of {self.of} {said} that of {self.over} ({points})."

    def row(self, p: float) -> tuple[Cell, list[Cell]]:
        ends = (float(_shown(np.asarray(end), self.kept)) for end in (self.gain.kept_least, self.gain.kept_most))
        said = self.verdict(p)
        return grid.text(f"{self.of} against {self.over}"), [
            grid.text(metric(self.written).title),
            grid.text(metric(self.kept).title),
            *(grid.number(end, metric(self.kept).form) for end in ends),
            Cell(_points(self.gain.value), self.gain.value, best=said != OPEN),
            grid.text(f"{_points(self.gain.low)} to {_points(self.gain.high)}"),
            grid.text(said),
        ]


def frontier(before: Row, rows: list[Row], written: str, kept: str) -> Frontier | None:
    """Over these rows and the facts that all were asked about; None if either metric is missing."""
    every = [{each.get("number", at): each for at, each in enumerate(row.measured["facts"].records)} for row in rows]
    first = {each.get("number", at): each for at, each in enumerate(before.measured["facts"].records)}
    shared = sorted(first.keys() & set.intersection(*map(set, every)))
    of = np.stack([_values(records, shared, written) for records in (first, *every)], 1)
    if not shared or np.isnan(of).all():
        return None
    if kept == "perplexity":  # the less, the more is kept
        numbers = [row.metrics.get(kept) for row in (before, *rows)]
        if any(number is None or not np.isfinite(number) for number in numbers):
            return None
        return Frontier(of, -np.asarray([numbers], dtype=float))
    keeps = [_values(records, shared, kept) for records in every]
    start = np.where(np.isnan(keeps[0]), np.nan, 1.0) if kept == "locality" else _values(first, shared, kept)
    found = np.stack([start, *keeps], 1)
    return None if np.isnan(found).all() else Frontier(of, found)


def _values(records: Mapping[int, Mapping[str, Any]], numbers: Sequence[int], name: str) -> Values:
    """A metric of each fact; nan where it has none."""
    found = (records[number].get(name) for number in numbers)
    return np.asarray([np.nan if value is None else float(value) for value in found])


def _compared(names: list[str], rows: Mapping[str, Sequence[Row]]) -> list[tuple[str, str]]:
    """What is projected against the same method without P or, if it projects by itself, against the first without; of
    those with as many settings.
    """
    plain = [name for name in names if "@" not in name and not name.endswith("+P")]
    asked = [
        (name, base if (base := base_of(method_of(name))) in plain else plain[0])
        for name in names
        if plain and name not in plain
    ]
    return [(of, over) for of, over in asked if len(rows[of]) == len(rows[over])]


def _shown(of: Values, name: str) -> Values:
    return -of if name == "perplexity" else of * metric(name).shown(1)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
