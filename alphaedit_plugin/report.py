"""A comparison as people read it: a terminal table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.table import Table

from .compare import Comparison, Row
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
    columns = [column for column in _COLUMNS if any(column[1](row) is not None for row in comparison.rows)]
    for title, *_ in columns:
        result.add_column(title, justify="right", no_wrap=True)
    edited = [row for row in comparison.rows if row.drift]
    for row in comparison.rows:
        cells = []
        for _, value, better, form in columns:
            if value(row) is None:
                cells.append("–")
                continue
            text = form.format(value(row))
            best = better and len(edited) > 1 and row in edited
            if best and text == form.format(better(value(r) for r in edited)):
                text = f"[bold]{text}[/bold]"
            cells.append(text)
        result.add_row(row.variant, *cells)
    return result


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


def _edited(value: Callable[[Row], float]) -> Callable[[Row], float | None]:
    """The value of an edited row; nothing for the model before edits."""
    return lambda row: value(row) if row.drift else None


def _share(metric: str) -> Callable[[Row], float | None]:
    return lambda row: 100 * row.metrics[metric] if metric in row.metrics else None


_Column = tuple[str, Callable[[Row], Any], Any, str]

_COLUMNS: tuple[_Column, ...] = (
    ("effi-\ncacy %", _share("efficacy"), max, "{:.1f}"),
    ("gene-\nral. %", _share("generalization"), max, "{:.1f}"),
    ("speci-\nfic. %", _share("specificity"), max, "{:.1f}"),
    ("porta-\nbil. %", _share("portability"), max, "{:.1f}"),
    ("exact\n%", _share("exact"), max, "{:.1f}"),
    ("perpl-\nexity", lambda row: row.perplexity, min, "{:.2f}"),
    ("drift\n%", _edited(lambda row: 100 * row.mean_drift), min, "{:.2f}"),
    ("leak-\nage %", _edited(lambda row: 100 * row.mean_leakage), min, "{:.2f}"),
    ("sec-\nonds", _edited(lambda row: row.seconds), None, "{:.0f}"),
)
