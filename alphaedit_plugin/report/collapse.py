"""When a sequence of edits has broken its model."""

from __future__ import annotations

from dataclasses import dataclass

from ..comparison.results import Comparison, Row

PERPLEXITY_TIMES, EFFICACY_POINTS = 2.0, 0.10


@dataclass(frozen=True)
class Collapse:
    """The first checkpoint at which a model had collapsed, `why`, and the last one before it that had not (0: none)."""

    edits: int
    why: str
    last_good: int


def collapse_of(comparison: Comparison, variant: str) -> Collapse | None:
    """Where a variant collapsed: held-out perplexity above twice its start, or efficacy more than ten points below its
    best at an earlier checkpoint. None if neither was seen. It happened somewhere between two checkpoints.
    """
    start, best, last_good = _metric(comparison.before, "perplexity"), 0.0, 0
    for row in comparison.of(variant):
        perplexity, efficacy = _metric(row, "perplexity"), _metric(row, "efficacy")
        if start is not None and perplexity is not None and not perplexity <= PERPLEXITY_TIMES * start:
            return Collapse(row.edits, f"perplexity {perplexity:.4g}, {start:.4g} before any edit", last_good)
        if efficacy is not None and efficacy < best - EFFICACY_POINTS:
            return Collapse(row.edits, f"efficacy {efficacy:.1%}, {best:.1%} before", last_good)
        best, last_good = max(best, efficacy or 0.0), row.edits
    return None


def _metric(row: Row | None, name: str) -> float | None:
    return None if row is None else row.metrics.get(name)
