"""A table as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..comparison.results import Comparison, Row
from .columns import Column
from .verdict import Ranking, ranking


@dataclass(frozen=True)
class Cell:
    """`sort` orders a column (None goes last); `half` is shown after ±; `sign` is the change against before; `best` is
    apart from all others, `level` is not told apart from the best number.

    The sign "=" only keeps the space that other signs take. `word` is a verdict in front of the number, `note` a small
    line below it.
    """

    text: str
    sort: float | str | None = None
    half: str = ""
    best: bool = False
    level: bool = False
    sign: str = ""
    better: bool | None = None
    word: str = ""
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """`head` names all columns; each row is (first cell, other cells)."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[Cell, Sequence[Cell]]]
    notes: Sequence[str] = field(default_factory=tuple)
    """The meaning of each column; empty, or as many as `head`."""


def text(value: str) -> Cell:
    return Cell(value, value)


def number(value: float | None, form: str = "{:.1f}") -> Cell:
    return Cell("–") if value is None else Cell(form.format(value), value)


def of_rows(
    caption: str, comparison: Comparison, rows: Sequence[Row], columns: Sequence[Column], before: Row | None
) -> Grid:
    """One row per variant, with what is best or level in each column marked, and each change against `before`."""
    ranks = {column.name: ranking(comparison, column) for column in columns}
    return Grid(
        caption,
        ["variant", *(column.label for column in columns)],
        [(text(row.variant), [_cell(column, row, before, ranks[column.name]) for column in columns]) for row in rows],
        ["", *(column.meaning for column in columns)],
    )


def of_checkpoints(caption: str, rows: Sequence[Row], columns: Sequence[Column]) -> Grid:
    """One row per variant and checkpoint."""
    return Grid(
        caption,
        ["variant", "edits", *(column.label for column in columns)],
        [
            (
                text(row.variant),
                [number(row.edits, "{:.0f}"), *(_cell(column, row, None, None) for column in columns)],
            )
            for row in rows
        ],
    )


def _cell(column: Column, row: Row, before: Row | None, rank: Ranking | None) -> Cell:
    estimate = column.of(row)
    if estimate is None:
        return Cell("–")
    change = column.change(row, before)
    unsigned = "=" if before is not None and column.of(before) is not None else ""
    sign = unsigned if change is None or change[0] == 0 else "▲" if change[0] > 0 else "▼"
    return Cell(
        column.text(row),
        estimate.value,
        column.half(row),
        rank is not None and row.variant in rank.best,
        rank is not None and row.variant in rank.shared,
        sign,
        change[1] if change is not None else None,
    )
