"""The sections of the page, one for each thing that was measured."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ..comparison.results import BEFORE, Comparison, Row, shared_checkpoint
from ..evaluation.metrics import METRICS, metric
from . import grid
from .answers_section import answers
from .columns import WEIGHTS, Column, columns
from .figures import Panel, Picture, bars_panel, curves_panel, layers_panel, pairs_panel, scatter_panel
from .frontier import FRONTIER
from .frontier_section import frontiers
from .grid import Cell, Grid
from .lasting_section import lasting
from .nullspace_section import null_spaces
from .paired_section import paired
from .section import ABILITY, NUMBERS, PROJECTION, REPEAT, SEQUENCE, Case, Continuation, Section
from .style import Style
from .words import after

HEADLINE = ("score", "efficacy", "generalization", "specificity", "perplexity", "leakage")
FOLLOWED = ("efficacy", "generalization", "specificity", "perplexity")
"""What is drawn against the edits at once; the rest is folded."""
FEWEST_STATES = 30
"""A cloud of fewer points than this shows nothing."""
RELATION_METRICS = ("efficacy", "generalization", "specificity", "exact")
OPEN_CASES, ALL_CASES = 3, 50


def sections(comparison: Comparison, looks: Mapping[str, Style]) -> list[Section]:
    """The sections that have data, in the page's order."""
    makers: list[Callable[[Comparison, Mapping[str, Style]], Section | None]] = [
        _headline, _curves, _cases, answers, paired, lasting, _more_curves, null_spaces, _weights, _capability, _shift,
        _all, by_relation, _timing, _settings,
    ]  # fmt: skip
    if comparison.settings.get("study") == FRONTIER:  # its variants are settings, far too many to stand side by side
        makers = [frontiers, _cases, _all, _settings]
    return [section for maker in makers if (section := maker(comparison, looks)) is not None]


def _headline(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    rows, before = comparison.final, comparison.before
    by_name = {column.name: column for column in columns(rows)}
    found = [by_name[name] for name in HEADLINE if name in by_name]
    if not any(column.group == "facts" for column in found) or not comparison.variants:
        return None
    caption = "A line is the 95 % bootstrap interval over facts (of perplexity, over windows of text)."
    legend = []
    if any(looks[name].solid for name in comparison.variants):
        caption = f"Each method without P (hollow) and with it (filled); AlphaEdit projects by itself. {caption}"
        legend = [("without P", Style("ink", solid=False, line=False)), ("with P", Style("ink", line=False))]
    picture = Picture(caption, [pairs_panel(column, rows, looks, before) for column in found], legend)
    table = grid.of_rows(
        f"After {after([comparison])}, with half the width of the 95 % interval", comparison, rows, found, before,
    )  # fmt: skip
    text = (
        "Bold is apart from every other variant (paired by fact, Holm-corrected); underlined numbers are level: the "
        "facts do not tell them from the best one."
    )
    return Section("headline", "Side by side", text, pictures=[picture], grids=[table])


_DRAWN_ELSEWHERE = (WEIGHTS, "answers", "capability", "shift")


def _curves(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    found = [column for column in columns(comparison.rows) if column.name in FOLLOWED]
    return _against_edits(
        comparison, looks, found, "curves", "Metrics against edits",
        "At 0 edits stands the model before any. Variants are drawn a little beside each other, so that none hides "
        "another; where they are few, thin bars are 95 % intervals. At each checkpoint all facts written so far are "
        "asked again, or a sample of them.",
    )  # fmt: skip


def _more_curves(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    found = [c for c in columns(comparison.rows) if c.group not in _DRAWN_ELSEWHERE and c.name not in FOLLOWED]
    return _against_edits(
        comparison, looks, found, "more-curves", "Other metrics against edits", "As above.",
        SEQUENCE,
    )  # fmt: skip


def _capability(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    found = [column for column in columns(comparison.rows) if column.group == "capability"]
    caption = "F1 on general tasks that no edit is about. A method that only writes its facts keeps the line flat."
    title = "General capability"
    section = _against_edits(comparison, looks, found, "capability", title, caption, ABILITY)
    if section is not None or not found:
        return section
    table = grid.of_rows(
        f"General tasks after {after([comparison])}", comparison, comparison.final, found, comparison.before
    )
    return Section("capability", title, topic=ABILITY, grids=[table])


def _against_edits(
    comparison: Comparison,
    looks: Mapping[str, Style],
    found: Sequence[Column],
    id_: str,
    title: str,
    caption: str,
    topic: str = "",
) -> Section | None:
    series = {name: comparison.of(name) for name in comparison.variants}
    if not found or max((len(rows) for rows in series.values()), default=0) < 2:
        return None
    rows = [row for row in comparison.rows if any(column.of(row) for column in found)]
    picture = Picture(
        caption,
        [curves_panel(column, series, looks, comparison.before, id_) for column in found],
        [(name, looks[name]) for name in series],
        grid.of_checkpoints(f"{title}: every checkpoint", rows, found),
        large=True,
    )
    return Section(id_, title, topic=topic, pictures=[picture])


def _shift(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    panels: list[Panel] = []
    for row in comparison.final:
        measured = row.measured.get("shift")
        records = [each for each in measured.records if each.get("before") and each.get("after")] if measured else []
        if row.variant != BEFORE and len(records) >= FEWEST_STATES:
            panels.append(scatter_panel(row.variant, records, looks[row.variant], len(panels) + 1))
    found = [column for column in columns(comparison.final) if column.group == "shift"]
    if not panels and not found:
        return None
    pictures = [
        Picture(
            f"Hidden states of held-out facts, before any edit and after {after([comparison])}, drawn together in two "
            "dimensions.",
            panels,
            [
                ("before", Style("slate", solid=False, line=False)),
                ("after, in the colour of the method", Style("ink", line=False)),
            ],
            small=True,
        )
    ]
    rows = [row for row in comparison.final if any(column.of(row) for column in found)]
    grids = [grid.of_rows("Representation shift", comparison, rows, found, None)] if found else []
    return Section("shift", "Representation shift", topic=ABILITY, pictures=pictures if panels else [], grids=grids)


def _weights(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    rows = [row for row in comparison.final if row.drift or row.leakage]
    if not rows:
        return None
    named = (("drift", "drift ‖ΔW‖/‖W‖ %", "drift"), ("leakage", "leakage ‖ΔW K0‖/‖W K0‖ %", "leakage"))
    panels, grids = [], []
    for name, title, key in named:
        series = {
            row.variant: {int(layer): 100 * value for layer, value in getattr(row, key).items()}
            for row in rows
            if getattr(row, key)
        }
        if not series:
            continue
        panels.append(layers_panel(name, title, series, looks, "{:.2f}"))
        layers = sorted({layer for values in series.values() for layer in values})
        grids.append(
            (
                f"The numbers: {title.removesuffix(' %')}",
                Grid(
                    title,
                    ["variant", *(f"layer {layer}" for layer in layers)],
                    [
                        (grid.text(name), [grid.number(values.get(layer), "{:.3f}") for layer in layers])
                        for name, values in series.items()
                    ],
                ),
            )
        )
    picture = Picture(
        f"How far {after([comparison])} moved each layer's weights, and how much of what it did to preserved keys they "
        "changed.",
        panels,
        [(row.variant, looks[row.variant]) for row in rows],
    )
    return Section("weights", "Drift and leakage by layer", topic=PROJECTION, pictures=[picture], folded=[*grids])


def _timing(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    rows = [row for row in comparison.final if row.variant != BEFORE and row.seconds > 0 and row.edits]
    if not rows:
        return None
    each = {row.variant: row.seconds / row.edits for row in rows}
    form = "{:.2f}" if max(each.values()) >= 0.1 else "{:.4f}"
    table = Grid(
        "Time",
        ["variant", "edits", "seconds", "seconds a fact"],
        [
            (
                grid.text(row.variant),
                [
                    grid.number(row.edits, "{:.0f}"),
                    grid.number(row.seconds, "{:.1f}"),
                    grid.number(each[row.variant], form),
                ],
            )
            for row in rows
        ],
    )
    picture = Picture(
        "What editing took, measuring aside. What variants have in common is computed once and counted for each.",
        [bars_panel("timing", "seconds a fact", each, looks, form)],
        data=table,
    )
    return Section("timing", "Time", topic=NUMBERS, pictures=[picture])


def by_relation(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    """Efficacy, generalization and specificity by relation, side by side; None for fewer than two relations."""
    rows = [row for row in comparison.final if row.measured.get("facts")]
    records = {row.variant: row.measured["facts"].records for row in rows}
    counts: dict[str, int] = {}
    longest = max(records.values(), key=len, default=[])
    for record in longest:
        if record.get("relation"):
            counts[record["relation"]] = counts.get(record["relation"], 0) + 1
    if len(counts) < 2:
        return None
    relations = sorted(counts, key=lambda relation: (-counts[relation], relation))
    grids = []
    for name in RELATION_METRICS:
        means = {variant: _by_relation(of, name) for variant, of in records.items()}
        if not any(means.values()):
            continue
        shown = metric(name)
        grids.append(
            Grid(
                f"{shown.label} by relation",
                ["relation", "facts", *means],
                [
                    (
                        grid.text(relation),
                        [
                            grid.number(counts[relation], "{:.0f}"),
                            *(
                                grid.number(shown.shown(values[relation]) if relation in values else None, shown.form)
                                for values in means.values()
                            ),
                        ],
                    )
                    for relation in relations
                ],
            )
        )
    if not grids:
        return None
    text = (
        f"{len(counts)} relations, those with the most facts first. Where a relation has few facts, a share is coarse."
    )
    return Section(
        "relations", "By relation", text, NUMBERS, grids=grids[:1], folded=[(each.caption, each) for each in grids[1:]]
    )


def _by_relation(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for record in records:
        value = record.get(name)
        if record.get("relation") and value is not None:
            found.setdefault(record["relation"], []).append(float(value))
    return {relation: sum(values) / len(values) for relation, values in found.items()}


def _cases(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    found = {row.variant: known for row in comparison.final if (known := _written(row))}
    before = found.pop(BEFORE, [])
    if not any(found.values()):
        return None
    total = max(map(len, found.values()))
    cases = []
    for index in range(min(total, ALL_CASES)):
        records = [(name, of[index]) for name, of in found.items() if index < len(of)]
        subject, prompt, target_new = (str(records[0][1].get(key) or "") for key in ("subject", "prompt", "target_new"))
        start = _continuation(BEFORE, before[index]) if index < len(before) else None
        cases.append(Case(subject, prompt, target_new, start, [_continuation(*record) for record in records]))
    text = (
        f"What the model writes by itself, before any edit and after {after([comparison])}: the first facts, not "
        "chosen ones."
    )
    if total > ALL_CASES:
        text += f" The records of the run hold all {total:,}."
    return Section(
        "cases", "What was written, before and after", text, cases=cases[:OPEN_CASES], more_cases=cases[OPEN_CASES:]
    )


def _written(row: Row) -> list[dict[str, Any]]:
    """What is known of the first facts: the answer after the prompt, and longer texts."""
    of = (row.measured[name].records for name in ("answers", "texts") if name in row.measured)
    return [{name: value for each in known for name, value in each.items()} for known in zip_longest(*of, fillvalue={})]


def _continuation(variant: str, record: Mapping[str, Any]) -> Continuation:
    verdicts = (record.get(name) for name in ("judged_efficacy", "written_efficacy"))
    says = next((of for of in verdicts if of is not None), None)
    texts = [(str(each.get("prompt") or ""), str(each.get("text") or "")) for each in record.get("texts") or []]
    return Continuation(variant, str(record.get("written") or ""), None if says is None else says == 1, texts)


def _all(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    rows = comparison.final
    found = columns(rows)
    if not found:
        return None
    grids = []
    for group in dict.fromkeys(column.group for column in found):
        chosen = [column for column in found if column.group == group]
        measured = [row for row in rows if any(column.of(row) for column in chosen)]
        title = f"{_GROUPS.get(group, group)}, after {after([comparison])}"
        grids.append(grid.of_rows(title, comparison, measured, chosen, comparison.before))
    meanings = [column for column in found if column.name in METRICS or column.group == WEIGHTS]
    words = Grid(
        "What the columns mean",
        ["metric", "better", "meaning"],
        [
            (
                grid.text(column.label),
                [
                    grid.text({max: "higher", min: "lower"}.get(column.better, "–") if column.better else "–"),  # type: ignore[call-overload]
                    grid.text(column.meaning),
                ],
            )
            for column in meanings
        ],
    )
    text = (
        "Behind ± stands half the width of the 95 % interval. Bold is apart from every other variant (paired by fact "
        "where records allow it, otherwise by intervals; Holm), underlined is level with the best; ▲ and ▼ say how a "
        "number changed against the model before any edit."
    )
    return Section("all", "All metrics", text, NUMBERS, grids=grids, folded=[("What the columns mean", words)])


_GROUPS = {
    "facts": "Facts",
    "answers": "Answers, teacher-forced and written",
    "texts": "Written texts",
    "multihop": "Questions over several facts",
    "perplexity": "Perplexity",
    "capability": "General tasks",
    "shift": "Representation shift",
    WEIGHTS: "Weights and time",
}

_ELSEWHERE = {
    "command",
    "hyperparameters",
    "null_spaces",
    "spectra",
    "environment",
    "left_out",
    "statistics",
    "contexts",
    "cell",
    "order",
    "trajectories",
    "points",
    "measures",
    "date",
}
"""Settings that are not listed: another part of the page shows them, or a run only uses them to find its files."""


def _settings(comparison: Comparison, looks: Mapping[str, Style]) -> Section:
    settings = comparison.settings
    folded: list[tuple[str, Grid | str]] = []
    for name in ("environment", "statistics"):
        if isinstance(settings.get(name), Mapping):
            folded.append((name.capitalize(), _pairs(name.capitalize(), settings[name])))
    for variant, values in (settings.get("hyperparameters") or {}).items():
        folded.append((f"Hyperparameters of {variant}", _pairs(f"Hyperparameters of {variant}", values)))
    left_out = settings.get("left_out")
    if left_out:
        listed = left_out if isinstance(left_out, list) else [left_out]
        folded.append((f"Records left out: {len(listed):,}", "\n".join(map(str, listed))))
    plain = {name: value for name, value in settings.items() if name not in _ELSEWHERE and value not in (None, [], {})}
    return Section(
        "settings",
        "The run",
        topic=REPEAT,
        grids=[_pairs("Options", plain)],
        folded=folded,
        command=shlex.join(map(str, settings.get("command") or [])),
    )


def _pairs(caption: str, values: Mapping[str, Any]) -> Grid:
    return Grid(
        caption,
        ["setting", "value"],
        [(grid.text(str(name)), [grid.text(_plain(value))]) for name, value in values.items()],
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "yes" if value is True else "no" if value is False else str(value)


def over_seeds(comparisons: Sequence[Comparison]) -> Grid:
    """For comparisons that differ only in the order of facts: the mean of each number and its range, at one checkpoint.

    A variant that has not reached it in every order says in how many it has.
    """
    edits = shared_checkpoint(comparisons)
    finals = [{row.variant: row for row in comparison.at(edits)} for comparison in comparisons]
    found = columns(row for rows in finals for row in rows.values())
    names = dict.fromkeys(name for rows in finals for name in rows)
    seeds = [str(comparison.settings.get("seed")) for comparison in comparisons]
    rows = []
    for name in names:
        cells = []
        for column in found:
            of = [column.of(rows[name]) for rows in finals if name in rows]
            values = [estimate.value for estimate in of if estimate is not None]
            if not values:
                cells.append(Cell("–"))
                continue
            mean, low, high = (column.form.format(v) for v in (sum(values) / len(values), min(values), max(values)))
            cells.append(Cell(f"{mean} [{low}, {high}]", sum(values) / len(values)))
        there = sum(name in of for of in finals)
        rows.append((grid.text(name if there == len(finals) else f"{name} ({there} of {len(finals)} orders)"), cells))
    settings = comparisons[0].settings
    where = f"{settings.get('model', '')} on {settings.get('data', '')}"
    return Grid(
        f"{where}, after {after(comparisons)}: mean and range over {len(comparisons)} orders of the facts (seeds "
        f"{', '.join(seeds)})",
        ["variant", *(column.label for column in found)],
        rows,
    )
