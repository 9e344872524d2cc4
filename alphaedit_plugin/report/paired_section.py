"""Variants against each other, fact by fact: whether a difference is more than which facts were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..comparison.results import BEFORE, Comparison, Row
from . import grid
from .columns import Column, columns
from .contrast import Contrast, contrasts
from .grid import Cell, Grid
from .section import DIFFERENCES, Section
from .style import Style
from .verdict import OPEN, effects, leading
from .words import rounded, signed, spanned

COMPARED = ("score", "efficacy", "generalization", "specificity", "exact", "perplexity")
REFERENCE = "alphaedit"


def paired(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """Each variant less AlphaEdit, or less the first one if it is not there; None for a single variant."""
    rows = {row.variant: row for row in comparison.final if row.variant != BEFORE and "facts" in row.measured}
    if len(rows) < 2:
        return None
    reference = rows.get(REFERENCE) or next(iter(rows.values()))
    compared = [column for column in columns(rows.values()) if column.name in COMPARED]
    asked = [
        (column, row, reference)
        for row in rows.values()
        for column in compared
        if row is not reference and column.of(row) is not None and column.of(reference) is not None
    ]
    if not asked:
        return None
    found = contrasts(comparison, asked)
    of = {(each.row.variant, each.column.name): each for each in found}
    others = [name for name in rows if name != reference.variant]
    table = Grid(
        f"Less {reference.variant}, with the 95 % interval of the difference",
        ["variant", *(column.label for column in compared)],
        [(grid.text(name), [_cell(of.get((name, column.name))) for column in compared]) for name in others],
    )
    text = (
        "Paired by fact (perplexity by window of text): both were asked about the same ones. Intervals are of the "
        "paired bootstrap, p-values of the paired randomisation test, adjusted after Holm for all that a table asks. "
        "Bold is a difference with p ≤ 0.05."
    )
    folded: list[tuple[str, Grid | str]] = [("p-values, and how many facts would tell", _sure(found))]
    column = leading(comparison)
    if column is not None and len(others) > 1:
        every = _every(comparison, column, [row for row in rows.values() if column.of(row) is not None])
        folded.append((every.caption, every))
    return Section("paired", f"Against {reference.variant}", text, DIFFERENCES, grids=[table], folded=folded)


def changes(comparison: Comparison) -> Grid | None:
    """What P does to each method, in words and numbers; None if none was run without and with it."""
    found = effects(comparison)
    shown = {each.column.name: each.column for of in found.values() for each in of}
    if not shown:
        return None
    rows = []
    for base, of in found.items():
        by_name = {each.column.name: each for each in of}
        rows.append((grid.text(base), [_judged(by_name.get(name)) for name in shown]))
    return Grid(
        "What P changes, with the 95 % interval of the paired difference (helps, hurts: p ≤ 0.05 after Holm)",
        ["method", *(column.label for column in shown.values())],
        rows,
    )


def _judged(of: Contrast | None) -> Cell:
    if of is None:
        return Cell("–")
    word = {True: "helps", False: "hurts", None: OPEN}[of.better]
    note = ""
    if of.better is None:
        note = of.asked
        note += f"; ≈ {rounded(of.needed)} would tell" if of.needed is not None else ""
    return Cell(spanned(of), of.value, better=of.better, word=word, note=note)


def _cell(of: Contrast | None) -> Cell:
    return Cell("–") if of is None else Cell(spanned(of), of.value, best=of.apart)


def _sure(found: Sequence[Contrast]) -> Grid:
    return Grid(
        "p after Holm; the number of items that would tell the difference from none (power 0.8)",
        ["variant", "metric", "difference", "asked", "p", "would tell"],
        [
            (
                grid.text(each.row.variant),
                [
                    grid.text(each.column.label),
                    Cell(spanned(each), each.value),
                    Cell(each.asked, each.items),
                    grid.number(each.p, "{:.4f}"),
                    Cell("–") if each.needed is None else Cell(rounded(each.needed), each.needed),
                ],
            )
            for each in found
        ],
    )


def _every(comparison: Comparison, column: Column, rows: Sequence[Row]) -> Grid:
    """Each variant less each other one."""
    asked = [(column, row, other) for at, row in enumerate(rows) for other in rows[:at]]
    found = {(each.row.variant, each.other.variant): each for each in contrasts(comparison, asked)}

    def cell(row: Row, other: Row) -> Cell:
        there, back = found.get((row.variant, other.variant)), found.get((other.variant, row.variant))
        contrast = there or back
        if contrast is None:
            return Cell("–")
        value = contrast.value if there else -contrast.value
        return Cell(signed(column, value), value, best=contrast.apart)

    return Grid(
        f"Every pair: {column.label}, row less column",
        ["variant", *(row.variant for row in rows)],
        [(grid.text(row.variant), [cell(row, other) for other in rows]) for row in rows],
    )
