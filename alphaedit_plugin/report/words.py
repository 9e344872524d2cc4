"""The finding of a comparison, as sentences computed from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparison.results import Comparison, Row, shared_checkpoint
from .columns import Column, columns
from .style import pairs

ONCE = "targets found once, on the unedited model"


def leading(comparison: Comparison) -> Column | None:
    """The column that decides: the score or, without one, the first column where more or less is better."""
    found = [column for column in columns(comparison.final) if column.better is not None]
    return next((column for column in found if column.name == "score"), found[0] if found else None)


def after(comparisons: Sequence[Comparison]) -> str:
    """The edits at which variants stand side by side: "all 500 edits", "200 of 500 edits"."""
    edits, of = shared_checkpoint(comparisons), max(comparison.edits for comparison in comparisons)
    return f"all {of:,} edits" if edits == of else f"{edits:,} of {of:,} edits"


def standing(comparison: Comparison) -> str:
    """Which variants are not finished or failed, and how far they are; empty if there are none."""
    failed, of = comparison.failed, comparison.edits
    far = {
        name: f"{edits:,} of {of:,} edits" if edits else "no edits yet" for name, edits in comparison.unfinished.items()
    }
    waiting = ", ".join(f"{name} ({text})" for name, text in far.items() if name not in failed)
    broken = "; ".join(f"{name} ({far[name]}: {why})" for name, why in failed.items())
    told = [f"Not finished: {waiting}."] if waiting else []
    told += [f"Failed: {broken}."] if broken else []
    beside = {row.variant for row in comparison.final}
    absent = [name for name in comparison.variants if name not in beside and name not in far]
    told += [f"Not measured after {comparison.checkpoint:,} edits: {', '.join(absent)}."] if absent else []
    return " ".join(told)


def finding(comparison: Comparison) -> str:
    """Which variant is best in the deciding column, how sure that is, and which is second."""
    column, before = leading(comparison), comparison.before
    edited = [row for row in comparison.final if row is not before]
    ranked: list[tuple[Row, float]] = [
        (row, estimate.value) for row in edited if column is not None and (estimate := column.of(row)) is not None
    ]
    if column is None or not ranked:
        return "No variant has been measured yet."
    ranked.sort(key=lambda each: each[1], reverse=column.better is max)
    best = ranked[0][0]
    unit = " %" if column.label.endswith(" %") else ""
    title = column.label.removesuffix(" %")
    estimate = column.of(best)
    assert estimate is not None
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f" (95 % interval {column.form.format(estimate.low)} to {column.form.format(estimate.high)})"
    number = f"{column.text(best)}{unit}{interval}"
    start = f"; before any edit it was {column.text(before)}{unit}" if before and column.of(before) else ""
    if len(ranked) == 1:
        return f"After {best.edits:,} edits {best.variant} has a {title} of {number}{start}."
    second = ranked[1][0]
    if column.text(second) == column.text(best):
        return (
            f"After {best.edits:,} edits {best.variant} and {second.variant} share the best {title}: {number}{start}."
        )
    return (
        f"After {best.edits:,} edits {best.variant} has the best {title}, {number}, ahead of {second.variant} with "
        f"{column.text(second)}{unit}{start}."
    )


def projection(comparison: Comparison) -> str:
    """What P changed for each method that was run with and without it; empty if there is none."""
    column = leading(comparison)
    by_name = {row.variant: row for row in comparison.final}
    told = []
    for base, plain, projected in pairs([name for name in comparison.variants if name in by_name]):
        if column is None or plain is None or projected is None:
            continue
        without, with_ = by_name[plain], by_name[projected]
        change = column.change(with_, without)
        if change is None:
            continue
        values = f"{column.text(without)} → {column.text(with_)}"
        told.append(f"{base} {'unchanged' if change[0] == 0 else signed(column, change[0])} ({values})")
    if column is None or not told:
        return ""
    points = " in percentage points" if column.label.endswith(" %") else ""
    return f"What projection (+P) changes in {column.label.removesuffix(' %')}{points}: {', '.join(told)}."


def signed(column: Column, difference: float) -> str:
    """The difference with its sign, written with a true minus."""
    return ("+" if difference > 0 else "−") + column.form.format(abs(difference))
