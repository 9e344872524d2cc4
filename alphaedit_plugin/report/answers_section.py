"""What models answer when they write by themselves, beside what teacher forcing makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..comparison.results import BEFORE, Comparison
from . import grid
from .columns import columns
from .figures import Picture, curves_panel, gaps_panel
from .section import FORCED, Section
from .style import Style
from .words import after

KINDS = ("efficacy", "generalization", "specificity", "locality")


def answers(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    rows = [row for row in comparison.final if "answers" in row.measured]
    found = [column for column in columns(rows) if column.group == "answers"]
    panels, grids = [], []
    for kind in KINDS:
        of = {column.name: column for column in found if column.name.endswith(f"_{kind}")}
        if not of:
            continue
        forced, written = of[f"forced_{kind}"], of[f"written_{kind}"]
        values = {
            row.variant: (with_.value, without.value)
            for row in rows
            if (with_ := forced.of(row)) is not None and (without := written.of(row)) is not None
        }
        panels.append(gaps_panel(f"answers-{kind}", f"{kind} %", values, {BEFORE: Style("slate"), **looks}))
        grids.append(
            grid.of_rows(
                f"{kind.capitalize()}, after {after([comparison])}",
                comparison,
                [row for row in rows if row.variant in values],
                list(of.values()),
                comparison.before,
            )
        )
    if not panels:
        return None
    pictures = [
        Picture(
            "Hollow: the share of an answer's tokens that are the likeliest when the model is shown the right ones up "
            "to each place (teacher forcing). Filled: how often the model, writing by itself, gives the answer.",
            panels,
            [("teacher-forced", Style("ink", solid=False, line=False)), ("written", Style("ink", line=False))],
        ),
        *_along(comparison, looks),
    ]
    text = (
        "The model always writes the likeliest token, until it ends the text itself or after 50 tokens. Written: its "
        "first sentence contains the answer as whole words; exact: what comes before a punctuation mark or line break "
        "is the answer and no more; judged: so says the judge that was named, of the whole text; gap: forced less "
        "written, on the same prompts. Locality: answer tokens, and what is written up to a mark, as before the edits."
    )
    return Section("answers", "Teacher-forced and written", text, FORCED, pictures, grids)


def _along(comparison: Comparison, looks: Mapping[str, Style]) -> Iterator[Picture]:
    """What is written, and the gap, against edits, if there were checkpoints on the way."""
    series = {name: comparison.of(name) for name in comparison.variants}
    if max(map(len, series.values()), default=0) < 2:
        return
    found = [column for column in columns(comparison.rows) if column.group == "answers"]
    yield Picture(
        "What is written, and the gap, against edits. Bands are 95 % intervals.",
        [
            curves_panel(column, series, looks, comparison.before, "answers-along")
            for column in found
            if column.name.startswith(("written", "gap"))
        ],
        [(name, looks[name]) for name in series],
        grid.of_checkpoints("Answers: every checkpoint", comparison.rows, found),
    )
