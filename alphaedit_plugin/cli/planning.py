"""What `alphaedit compare --plan` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from .console import console, size

if TYPE_CHECKING:
    from ..comparison.plan import Forecast

_TERA = 1e12


def show_forecast(found: Forecast, rates: tuple[float, ...] | None, workers: int) -> None:
    """`rates` are TFLOP/s in the model's precision and in float64, by default half of it."""
    console.print(
        f"[bold]{escape(found.model)}[/bold]: {found.parameters / 1e6:,.0f} million parameters in {found.dtype}, "
        f"{found.blocks} blocks"
    )
    for (d_in, d_out), layers in _by_shape(found.shapes).items():
        console.print(f"edited: layers {', '.join(map(str, layers))}, d_in {d_in}, d_out {d_out}")
    console.print(
        f"{found.contenders} methods; {found.trajectories} trajectories, in which {found.facts} facts are written in "
        f"{found.batches} batches; {found.measurements} measurements"
    )
    rate, rate_double = _both(rates) if rates else (None, None)
    table = Table("work", "tokens", "TFLOP", "of which float64", box=box.SIMPLE)
    if rate:
        table.add_column("hours (estimate)")
    for work in (*found.first, *found.shared):
        cells = [
            work.part,
            f"{work.tokens:,}" if work.tokens else "",
            f"{(work.operations + work.double) / _TERA:,.4g}",
            f"{work.double / _TERA:,.4g}" if work.double else "",
        ]
        if rate and rate_double:
            cells.append(f"{work.hours(rate * _TERA, rate_double * _TERA):.3g}")
        table.add_row(*cells)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if rate and rate_double:
        one, all_ = (found.hours(rate * _TERA, rate_double * _TERA, count) for count in (1, workers))
        said = f"; with {workers} workers {all_:.3g} h" if workers > 1 else ""
        console.print(
            f"estimate at a sustained {rate:g} TFLOP/s ({rate_double:g} in float64): {one:.3g} h of one worker{said}"
        )
    _show_bytes("memory of a worker, at most", found.memory)
    _show_bytes("disk, at most", found.disk)
    for name in found.uncounted:
        console.print(f"not counted: {escape(name)}")


def _both(rates: tuple[float, ...]) -> tuple[float, float]:
    return rates[0], rates[1] if len(rates) > 1 else rates[0] / 2


def _by_shape(shapes: Mapping[int, tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for layer, shape in sorted(shapes.items()):
        found.setdefault(shape, []).append(layer)
    return found


def _show_bytes(title: str, of: Mapping[str, int]) -> None:
    table = Table(title, size(sum(of.values())), box=box.SIMPLE)
    for name, count in of.items():
        if count:
            table.add_row(name, size(count))
    table.columns[1].justify = "right"
    console.print(table)
