"""The results of a comparison as data: rows of measurements, and the settings they were made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..editors.capacity import Capacity
from ..evaluation.measure import Estimate, Measured
from ..evaluation.metrics import metric
from ..shown import Shown

BEFORE = "before"
SEVERAL = " + "
"""Stands between the files of a stream, and between their formats."""


@dataclass(frozen=True)
class Row:
    """A variant after its first `edits` facts, or the model before any edit (variant "before", edits 0).

    `measured` is by measure's name. `seconds` is the time that editing took so far. Drift ‖ΔW‖/‖W‖ and leakage ‖ΔW
    K0‖/‖W K0‖ are by layer, and empty if no edited weights are known; so is `capacity`, of methods that keep keys.
    """

    variant: str
    edits: int
    measured: Mapping[str, Measured]
    seconds: float = 0.0
    drift: Mapping[int, float] = field(default_factory=dict)
    leakage: Mapping[int, float] = field(default_factory=dict)
    capacity: Mapping[int, Capacity] = field(default_factory=dict)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimates of all measures together, by metric."""
        return {name: value for measured in self.measured.values() for name, value in measured.estimates.items()}

    @property
    def metrics(self) -> dict[str, float]:
        return {name: estimate.value for name, estimate in self.estimates.items()}

    @property
    def mean_drift(self) -> float:
        return sum(self.drift.values()) / len(self.drift) if self.drift else 0.0

    @property
    def mean_leakage(self) -> float:
        return sum(self.leakage.values()) / len(self.leakage) if self.leakage else 0.0


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """One cell of a run: variants on one model, one data set and one order of its facts.

    `rows` has "before" first, then each variant at its checkpoints, ascending. `settings` is JSON: command (a list of
    words), model, data, format, seed (None: the file's order), edits, batch_size, checkpoints, variants,
    hyperparameters (by variant), statistics, null_spaces (by variant: criterion, and by layer nullity, leakage),
    spectra (layer → eigenvalues of C, thinned), held_out, environment, left_out, failed (by variant: why).
    """

    rows: list[Row]
    settings: dict[str, Any]

    @property
    def before(self) -> Row | None:
        return next((row for row in self.rows if row.variant == BEFORE), None)

    @property
    def variants(self) -> list[str]:
        """The variants that were measured, in order."""
        return list(dict.fromkeys(row.variant for row in self.rows if row.variant != BEFORE))

    @property
    def checkpoint(self) -> int:
        """The number of edits at which variants are compared (`shared_checkpoint`)."""
        return shared_checkpoint([self])

    @property
    def final(self) -> list[Row]:
        """ "before", and the variants at `checkpoint`: rows that may stand side by side."""
        return self.at(self.checkpoint)

    def at(self, edits: int) -> list[Row]:
        """ "before", and each variant's row after `edits` edits if it has one."""
        return [row for row in self.rows if row.variant == BEFORE or row.edits == edits]

    @property
    def edits(self) -> int:
        """The number of edits of the whole course."""
        return max([self.settings.get("edits") or 0, *(row.edits for row in self.rows)])

    @property
    def unfinished(self) -> dict[str, int]:
        """Variants that were not measured after all edits, those that failed among them → the edits they reached."""
        reached = dict.fromkeys([*(self.settings.get("variants") or ()), *self.variants], 0)
        for row in self.rows:
            if row.variant != BEFORE:
                reached[row.variant] = max(reached[row.variant], row.edits)
        return {name: edits for name, edits in reached.items() if edits < self.edits}

    @property
    def failed(self) -> dict[str, str]:
        """Unfinished variants that failed, → why."""
        trajectories = self.settings.get("trajectories") or {}
        return {
            name: of["why"]
            for name, of in (self.settings.get("failed") or {}).items()
            if name in self.unfinished and trajectories.get(name) == of["trajectory"]
        }

    def of(self, variant: str) -> list[Row]:
        """A variant's checkpoints, ascending."""
        return [row for row in self.rows if row.variant == variant]

    def __rich__(self) -> RenderableType:
        """Each variant's metrics at `checkpoint`. (`report.tables.table` has more: changes, the best, the weights.)"""
        found = [metric(name) for name in dict.fromkeys(name for row in self.final for name in row.estimates)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("variant", overflow="fold")
        for each in found:
            table.add_column(escape(each.label), justify="right")
        for row in self.final:
            values = ((each, row.metrics.get(each.name)) for each in found)
            cells = ("–" if value is None else each.form.format(each.shown(value)) for each, value in values)
            table.add_row(escape(row.variant), *cells)
        table.caption = f"after {self.checkpoint} of {self.edits} edits"
        return table


def shared_checkpoint(comparisons: Sequence[Comparison]) -> int:
    """The checkpoint that most variants (of all these comparisons together) have reached, the last of several such.

    So once all have reached a checkpoint, that one. Variants that failed are not waited for. 0 if nothing is measured.
    """
    reached: Counter[int] = Counter()
    for comparison in comparisons:
        failed = comparison.failed
        reached.update(row.edits for row in comparison.rows if row.variant != BEFORE and row.variant not in failed)
    if not reached:  # all failed
        reached.update(row.edits for of in comparisons for row in of.rows if row.variant != BEFORE)
    return max(reached, key=lambda edits: (reached[edits], edits), default=0)
