"""Tables for a terminal: the results of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..comparison.results import Comparison, Row
from ..shown import Shown
from .columns import WEIGHTS, Column, columns
from .verdict import ranking
from .words import ONCE, after, caveats, finding, projection

_TERMINAL = (("facts", "perplexity", WEIGHTS), ("answers",), ("texts", "multihop"), ("capability", "norms"), ("shift",))
"""Groups of columns that share a table."""

_SHORT = {
    "efficacy": "eff.",
    "generalization": "gen.",
    "specificity": "spec.",
    "portability": "port.",
    "locality": "local.",
    "consistency": "consis.",
    "multihop": "hop",
    "multihop_cot": "hop CoT",
    "perplexity": "perpl.",
    "shift_d1": "D1",
    "shift_d2": "D2",
    "hausdorff": "Hausd.",
    "leakage": "leak.",
    "seconds": "sec.",
}


def table(comparison: Comparison) -> TerminalTables:
    """The tables for a terminal: all variants at one checkpoint, without columns for what was not measured."""
    return TerminalTables(comparison)


class TerminalTables(Shown):
    """As many tables as the terminal's width requires: no number is ever cut or wrapped.

    The best of a column is bold where it is apart from every other edited variant. ▲ and ▼ say how a number changed
    against "before": green for better, red for worse. Below stands what they say together.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows, settings = self.comparison.final, self.comparison.settings
        found = columns(rows)
        known = {group for groups in _TERMINAL for group in groups}
        tables = [*_TERMINAL, tuple(dict.fromkeys(column.group for column in found if column.group not in known))]
        name_width = min(max((len(row.variant) for row in rows), default=7), max(16, options.max_width // 4))
        room = options.max_width - name_width - 2  # the edges of the box
        edits = after([self.comparison]).removeprefix("all ").replace(" edits", " sequential edits")
        once = f", {ONCE}" if settings.get("targets_found") == "once" else ""
        yield Text(f"{edits} in batches of {settings['batch_size']}{once}", style="italic")
        for chosen in (
            chosen for groups in tables for chosen in _packed([c for c in found if c.group in groups], rows, room)
        ):
            result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
            result.add_column("variant", overflow="fold", width=name_width)
            for column in chosen:
                result.add_column("\n".join(_heading(column)), justify="right", no_wrap=True)
            best = {column.name: ranking(self.comparison, column).best for column in chosen}
            for row in rows:
                cells = [self._cell(column, row, row.variant in best[column.name]) for column in chosen]
                result.add_row(escape(row.variant), *cells)
            yield result
        yield Text(
            "▲▼ change against before; bold: best, apart from all others (paired, Holm); drift ‖ΔW‖/‖W‖, leakage "
            "‖ΔW K0‖/‖W K0‖",
            style="dim italic",
        )
        yield Text(finding(self.comparison), style="bold")
        for told in (*projection(self.comparison), *caveats(self.comparison)):
            yield Text(told)

    def _cell(self, column: Column, row: Row, best: bool) -> str:
        text = column.text(row)
        if best:
            text = f"[bold]{text}[/bold]"
        before = self.comparison.before
        if before is None or column.of(before) is None:
            return text
        change = column.change(row, before)
        if change is None or change[0] == 0:
            return text + " "  # aligned with numbers that have a sign
        colour = {True: "green", False: "red", None: "dim"}[change[1]]
        return f"{text}[{colour}]{'▲' if change[0] > 0 else '▼'}[/{colour}]"


def _heading(column: Column) -> tuple[str, str]:
    title, _, unit = column.label.partition(" %")
    arrow = {max: " ↑", min: " ↓"}.get(column.better, "") if column.better else ""  # type: ignore[call-overload]
    short = _SHORT.get(column.name) or " ".join(_SHORT.get(part, part) for part in title.split(", "))
    return escape(short), (("%" if column.label.endswith(" %") else unit) + arrow).strip()


def _width(column: Column, rows: Sequence[Row]) -> int:
    cells = max(len(column.text(row)) for row in rows)
    return max(cells + (column.group != WEIGHTS), *map(len, _heading(column))) + 1


def _packed(found: Sequence[Column], rows: Sequence[Row], room: int) -> list[list[Column]]:
    """`found` in order, cut into as few runs as possible that fit into `room`."""
    packed: list[list[Column]] = []
    left = 0
    for column in found:
        width = _width(column, rows)
        if not packed or width > left:
            packed.append([])
            left = room
        packed[-1].append(column)
        left -= width
    return packed
