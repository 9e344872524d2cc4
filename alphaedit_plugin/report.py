"""A comparison as people read it: a terminal table; CSV, Markdown and LaTeX to paste."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from tabulate import tabulate

from .compare import Comparison, Row
from .errors import CompareError
from .files import atomic, write_text
from .session import Report


def table(comparison: Comparison) -> Table:
    """One row a variant; the best of each column among the edited ones in bold. No column for what was not measured."""
    edits, batch = comparison.settings["edits"], comparison.settings["batch_size"]
    result = Table(
        title=f"{edits} sequential edits in batches of {batch}",
        caption="drift ‖ΔW‖/‖W‖, leakage ‖ΔW K0‖/‖W K0‖: means over layers; perplexity: held-out text",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    result.add_column("variant", overflow="fold")
    for column in _measured(comparison):
        result.add_column(column.title, justify="right", no_wrap=True)
    for name, cells in _cells(comparison, "[bold]{}[/bold]"):
        result.add_row(name, *cells)
    return result


def export(comparison: Comparison, folder: Path) -> None:
    """The table for a paper or a notebook: summary.csv with the ends of the intervals, summary.md and summary.tex.

    Shares carry half the width of their 95 % bootstrap interval over facts.
    """
    columns = _measured(comparison)
    names = [column.name for column in columns]
    written = {
        "summary.md": tabulate(
            [[f"`{name}`", *cells] for name, cells in _cells(comparison, "**{}**", " ± {:.1f}")],
            ["variant", *names],
            tablefmt="github",
            disable_numparse=True,
            colalign=["left", *("right" for _ in names)],
        ),
        "summary.tex": tabulate(
            [
                [rf"\texttt{{{_tex(name)}}}", *map(_tex, cells)]
                for name, cells in _cells(comparison, r"\textbf{{{}}}", r" $\pm$ {:.1f}")
            ],
            ["variant", *map(_tex, names)],
            tablefmt="latex_raw",
            disable_numparse=True,
            colalign=["left", *("right" for _ in names)],
        ),
    }
    for file, text in written.items():
        write_text(folder / file, text + "\n", CompareError)
    with atomic(folder / "summary.csv", CompareError) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out)
        ends = [f"{column.name} {end}" for column in columns if column.interval for end in ("from", "to")]
        writer.writerow(["variant", *names, *ends])
        for row in comparison.rows:
            intervals = [row.intervals.get(column.interval, ("", "")) for column in columns if column.interval]
            writer.writerow(
                [row.variant, *(column.value(row) for column in columns)]
                + [100 * end if end != "" else "" for interval in intervals for end in interval]
            )


def _tex(text: str) -> str:
    return re.sub(r"(?<!\\)([%_&#])", r"\\\1", text).replace("–", "--")


def _measured(comparison: Comparison) -> list[_Column]:
    return [column for column in _COLUMNS if any(column.value(row) is not None for row in comparison.rows)]


def _cells(comparison: Comparison, bold: str, interval: str = "") -> Iterator[tuple[str, list[str]]]:
    """(variant, cells) of each row: the best edited ones `bold`, and half their `interval` behind shares."""
    columns = _measured(comparison)
    edited = [row for row in comparison.rows if row.drift]
    for row in comparison.rows:
        cells = []
        for column in columns:
            value = column.value(row)
            if value is None:
                cells.append("–")
                continue
            text = column.form.format(value)
            best = column.better and len(edited) > 1 and row in edited
            if best and text == column.form.format(column.better(column.value(r) for r in edited)):
                text = bold.format(text)
            if interval and column.interval in row.intervals:
                low, high = row.intervals[column.interval]
                text += interval.format(50 * (high - low))
            cells.append(text)
        yield row.variant, cells


def session_table(report: Report) -> Table:
    """What a session has done to each layer."""
    columns = (
        ("drift %", "‖ΔW‖/‖W‖", report.drift),
        ("leakage %", "‖ΔW K0‖/‖W K0‖", report.leakage),
        ("outside %", "‖ΔW(I − P)‖/‖ΔW‖", report.outside),
    )
    shown = [column for column in columns if column[2]]
    result = Table(
        title=f"{report.method}: {report.edits} facts in {report.batches} batches",
        caption="\n".join(f"{title.removesuffix(' %')} {meaning}" for title, meaning, _ in shown),
        box=box.SIMPLE_HEAD,
        min_width=40,
    )
    for title in ("layer", *(title for title, _, _ in shown)):
        result.add_column(title, justify="right")
    for layer in report.drift:
        result.add_row(str(layer), *(f"{100 * values[layer]:.3g}" for _, _, values in shown))
    return result


@dataclass(frozen=True)
class _Column:
    """`title` is short, for a terminal; `better` is max or min; `interval` names the metric whose interval it has."""

    name: str
    title: str
    value: Callable[[Row], float | None]
    better: Any
    form: str
    interval: str = ""


def _share(metric: str, title: str) -> _Column:
    def value(row: Row) -> float | None:
        return 100 * row.metrics[metric] if metric in row.metrics else None

    return _Column(f"{metric} %", title, value, max, "{:.1f}", metric)


def _edited(name: str, title: str, value: Callable[[Row], float], better: Any, form: str) -> _Column:
    """Of an edited row; nothing for the model before edits."""
    return _Column(name, title, lambda row: value(row) if row.drift else None, better, form)


_COLUMNS = (
    _share("efficacy", "effi-\ncacy %"),
    _share("generalization", "gene-\nral. %"),
    _share("specificity", "speci-\nfic. %"),
    _share("portability", "porta-\nbil. %"),
    _share("exact", "exact\n%"),
    _Column("perplexity", "perpl-\nexity", lambda row: row.perplexity, min, "{:.2f}"),
    _edited("drift %", "drift\n%", lambda row: 100 * row.mean_drift, min, "{:.2f}"),
    _edited("leakage %", "leak-\nage %", lambda row: 100 * row.mean_leakage, min, "{:.2f}"),
    _edited("seconds", "sec-\nonds", lambda row: row.seconds, None, "{:.0f}"),
)
