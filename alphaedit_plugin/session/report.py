"""What a session has done to its model, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..shown import Shown


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """What a session has done to its model, by layer.

    `drift` ‖ΔW‖/‖W‖; `leakage` ‖ΔW K0‖/‖W K0‖, empty without covariances; `outside` ‖ΔW(I − P)‖/‖ΔW‖, empty without
    null spaces. `warnings` say what is above the usual (`USUAL_DRIFT`, `USUAL_MISS`), in a sentence each.
    """

    method: str
    edits: int
    batches: int
    drift: dict[int, float]
    leakage: dict[int, float]
    outside: dict[int, float]
    warnings: tuple[str, ...] = ()

    def __rich__(self) -> RenderableType:
        listed = (
            ("drift %", "‖ΔW‖/‖W‖", self.drift),
            ("leakage %", "‖ΔW K0‖/‖W K0‖", self.leakage),
            ("outside %", "‖ΔW(I − P)‖/‖ΔW‖", self.outside),
        )
        shown = [column for column in listed if column[2]]
        table = Table(
            title=escape(f"{self.method}: {self.edits} facts in {self.batches} batches"),
            caption="\n".join(f"{title.removesuffix(' %')} {meaning}" for title, meaning, _ in shown),
            box=box.SIMPLE_HEAD,
            min_width=40,
        )
        for title in ("layer", *(title for title, _, _ in shown)):
            table.add_column(title, justify="right")
        for layer in self.drift:
            table.add_row(str(layer), *(f"{100 * values[layer]:.3g}" for _, _, values in shown))
        return table
