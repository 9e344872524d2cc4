"""A comparison as files to paste from: JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from tabulate import tabulate

from ..comparison.results import SEVERAL, Comparison, Row
from ..errors import CompareError
from ..storage.files import atomic, write_text
from ..storage.json_file import json_bytes
from ..visible import visible
from .columns import Column, columns
from .verdict import ranking
from .words import ONCE, caveats, finding, projection


def export(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Write the files for a paper or a notebook. Shares are in percent; only in summary.json they go from 0 to 1.

    summary.json has every row with its estimates, without the records; so has summary.csv, with the ends of the
    intervals. summary.md and summary.tex have one table per comparison, of one checkpoint, whose edits stand in its
    head; a number is in bold where it is apart from all others, and half the interval comes after ±. Below it stands
    what the numbers say, and which variants are unfinished.
    Raises CompareError if they cannot be written.
    """
    summary = {
        "comparisons": [{"settings": each.settings, "rows": [*map(_as_json, each.rows)]} for each in comparisons]
    }
    text = json.dumps(_finite(summary), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(folder / "summary.json", CompareError) as temporary:
        temporary.write_bytes(json_bytes(text + "\n"))
    named = len(comparisons) > 1
    markdown, latex = [], []
    for comparison in comparisons:
        found = columns(comparison.final)
        head = f"variant ({comparison.checkpoint:,} edits)"
        told = [finding(comparison), *projection(comparison), *caveats(comparison)]
        names = [column.label for column in found]
        best = {column.name: ranking(comparison, column).best for column in found}
        cell = cell_title(comparison)
        markdown += [f"**{_plain(cell)}**\n"] if named else []
        markdown.append(
            tabulate(
                [[f"`{name}`", *cells] for name, cells in _cells(comparison, found, best, "**{}**", " ± {}")],
                [head, *names],
                tablefmt="github",
                disable_numparse=True,
                colalign=["left", *("right" for _ in names)],
            )
            + "\n"
        )
        markdown += [f"{_plain(each)}\n" for each in told]
        latex += [f"% {_plain(cell)}"] if named else []
        latex.append(
            tabulate(
                [
                    [rf"\texttt{{{_tex(name)}}}", *map(_tex, cells)]
                    for name, cells in _cells(comparison, found, best, r"\textbf{{{}}}", r" $\pm$ {}")
                ],
                [head, *map(_tex, names)],
                tablefmt="latex_raw",
                disable_numparse=True,
                colalign=["left", *("right" for _ in names)],
            )
        )
        latex += [f"% {_plain(each)}" for each in told]
        latex += [""] if named else []
    write_text(folder / "summary.md", visible("\n".join(markdown)), CompareError)
    write_text(folder / "summary.tex", visible("\n".join(latex).rstrip("\n") + "\n"), CompareError)
    _csv(comparisons, folder / "summary.csv")


def _csv(comparisons: Sequence[Comparison], path: Path) -> None:
    found = columns(row for comparison in comparisons for row in comparison.rows)
    bounded = [c for c in found if any(c.half(row) for comparison in comparisons for row in comparison.rows)]
    ends = [f"{column.label} {end}" for column in bounded for end in ("from", "to")]
    with atomic(path, CompareError) as temporary, _opened(temporary) as out:
        writer = csv.writer(out)
        names = [column.label for column in found]
        writer.writerow(["model", "data", "seed", "variant", "edits", *names, *ends])
        for comparison in comparisons:
            model, data, seed = (comparison.settings.get(key) for key in ("model", "data", "seed"))
            cell = [*(visible(str(each)) if each else each for each in (model, data)), seed]
            for row in comparison.rows:
                estimates = [column.of(row) for column in found]
                intervals = [column.of(row) for column in bounded]
                writer.writerow(
                    [*cell, visible(row.variant), row.edits]
                    + ["" if estimate is None else estimate.value for estimate in estimates]
                    + [end for each in intervals for end in ((each.low, each.high) if each else ("", ""))]
                )


def _opened(path: Path) -> TextIO:
    """For the csv module; halves of characters, as names of files may hold, are written as their escapes."""
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def cell_title(comparison: Comparison) -> str:
    """Model, data and seed, short enough for a heading."""
    settings = comparison.settings
    parts = [short(settings[key]) for key in ("model", "data") if settings.get(key)]
    if settings.get("seed") is not None:
        parts.append(f"seed {settings['seed']}")
    if settings.get("targets_found") == "once":
        parts.append(ONCE)
    return " · ".join(parts) or f"{settings['edits']} edits"


def short(path: Any) -> str:
    """The last part of a path or of a name on the Hub, without the suffix of a data file; of each file of a stream."""
    parts = (re.split(r"[/\\]", each.rstrip("/\\"))[-1] for each in str(path).split(SEVERAL))
    return SEVERAL.join(re.sub(r"\.(json|jsonl)$", "", part) for part in parts)


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "variant": row.variant,
        "edits": row.edits,
        "estimates": {name: vars(estimate) for name, estimate in row.estimates.items()},
        "seconds": row.seconds,
        "drift": row.drift,
        "leakage": row.leakage,
        "capacity": {layer: vars(of) for layer, of in row.capacity.items()},
        "mean_drift": row.mean_drift,
        "mean_leakage": row.mean_leakage,
    }


def _finite(value: Any) -> Any:
    """The value with None for nan and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not isfinite(value) else value


def _plain(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _tex(text: str) -> str:
    return re.sub(r"(?<!\\)([%_&#])", r"\\\1", text).replace("–", "--")


def _cells(
    comparison: Comparison, found: Sequence[Column], best: Mapping[str, set[str]], bold: str, interval: str
) -> Iterator[tuple[str, list[str]]]:
    """(variant, cells) per row of the checkpoint: the `best` of each column in the form `bold`, half intervals in
    `interval`.
    """
    for row in comparison.final:
        yield (
            row.variant,
            [
                (bold.format(column.text(row)) if row.variant in best[column.name] else column.text(row))
                + (interval.format(column.half(row)) if column.half(row) else "")
                for column in found
            ],
        )
