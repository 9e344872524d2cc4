"""What a comparison says: which variant is best, what P changes, and how sure both are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from ..comparison.results import BEFORE, Comparison, Row
from .columns import WEIGHTS, Column, columns
from .contrast import Contrast, contrasts
from .style import pairs

JUDGED = ("efficacy", "generalization", "specificity", "perplexity")
"""What P is judged by."""
OPEN = "cannot be told"
FULL = 0.10
"""From this share of the keys' energy on, a null space is not called null without a word."""


@dataclass(frozen=True)
class Ranking:
    """The edited variants that have a number in a column, the best number first, and the first one against each other.

    Without contrasts a column is exact (what one run did to weights), and ties are ties.
    """

    column: Column
    rows: Sequence[Row]
    contrasts: Sequence[Contrast]

    @property
    def level(self) -> list[Contrast]:
        """Those that are not told apart from the first."""
        return [each for each in self.contrasts if not each.apart]

    @property
    def best(self) -> set[str]:
        """The variants whose number may be called the best: the first, if it is apart from every other."""
        if len(self.rows) < 2:
            return set()
        if self.contrasts:
            return set() if self.level else {self.rows[0].variant}
        shown = self.column.text(self.rows[0])
        return {row.variant for row in self.rows if self.column.text(row) == shown}

    @property
    def shared(self) -> set[str]:
        """The variants that share the first place, because they were held against each other and not told apart."""
        level = {each.other.variant for each in self.level if each.known}
        return level | {self.rows[0].variant} if level else set()


def ranking(comparison: Comparison, column: Column) -> Ranking:
    """The variants at the comparison's checkpoint in a column where more or less is better; else nobody is ranked."""
    if column.better is None:
        return Ranking(column, [], [])
    numbers = {
        row.variant: (row, estimate.value)
        for row in comparison.final
        if row.variant != BEFORE and (estimate := column.of(row)) is not None and estimate.value == estimate.value
    }
    ranked = sorted(numbers.values(), key=lambda each: each[1], reverse=column.better is max)
    rows = [row for row, _ in ranked]
    if column.group == WEIGHTS or not any(isfinite(value) for _, value in ranked):
        return Ranking(column, [row for row, value in ranked if isfinite(value)], [])
    return Ranking(column, rows, contrasts(comparison, [(column, rows[0], other) for other in rows[1:]]))


def leading(comparison: Comparison) -> Column | None:
    """The column that decides: the score or, without one, the first column where more or less is better."""
    found = [column for column in columns(comparison.final) if column.better is not None]
    return next((column for column in found if column.name == "score"), found[0] if found else None)


def effects(comparison: Comparison) -> dict[str, list[Contrast]]:
    """Method → what P changes in what it is judged by, for methods that were run without and with it; one family."""
    rows = {row.variant: row for row in comparison.final}
    both = [(base, rows[a], rows[b]) for base, a, b in pairs([*rows]) if a and b]
    judged = [column for column in columns(comparison.final) if column.name in JUDGED]
    asked = [
        (base, column, with_, without)
        for base, without, with_ in both
        for column in judged
        if column.of(with_) is not None and column.of(without) is not None
    ]
    found: dict[str, list[Contrast]] = {}
    told = contrasts(comparison, [(column, with_, without) for _, column, with_, without in asked])
    for (base, *_), contrast in zip(asked, told, strict=True):
        found.setdefault(base, []).append(contrast)
    return found


def outcome(of: Iterable[Contrast]) -> str:
    """In three words: what P does to a method."""
    said = [contrast.better for contrast in of]
    if True in said:
        return "P helps and hurts" if False in said else "P helps"
    return "P hurts" if False in said else OPEN


def fullest(comparison: Comparison) -> tuple[float, float] | None:
    """The least and the largest share of the preserved keys' energy that a layer's "null" space holds, where any is
    above `FULL`.
    """
    spaces = comparison.settings.get("null_spaces") or {}
    shares = [
        float(share) for name in comparison.variants for share in (spaces.get(name, {}).get("leakage") or {}).values()
    ]
    return (min(shares), max(shares)) if shares and max(shares) > FULL else None
