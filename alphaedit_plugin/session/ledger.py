"""The facts of a session, numbered in the order in which they were written, and what has become of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..editors.requests import Request
from ..shown import Shown
from .manifest import Listed

if TYPE_CHECKING:  # the command lists without torch
    from ..editors.verdict import Verdict


@dataclass(frozen=True)
class Entry:
    """One fact. `number` and `batch` count from 1; `time` is None where nobody noted it.

    `superseded_by` is the number of the next fact with the same text, if there is one; the last such is in force.
    `verdict` is None where the model was not asked.
    """

    number: int
    batch: int
    request: Request
    time: datetime | None
    superseded_by: int | None
    verdict: Verdict | None = None

    @property
    def in_force(self) -> bool:
        return self.superseded_by is None


class Ledger(Shown, list[Entry]):
    """One entry per fact of a session, in order: number n is `Session.facts[n - 1]`."""

    def __init__(self, entries: Iterable[Entry], method: str, model: str) -> None:
        super().__init__(entries)
        self.method, self.model = method, model

    @classmethod
    def of(cls, listed: Listed, verdicts: Sequence[Verdict] = ()) -> Ledger:
        """`verdicts` are one per fact, or none."""
        entries: list[Entry] = []
        following: dict[str, int] = {}  # text → number of the next fact that has it
        for number, batch, request, time in reversed(list(_numbered(listed))):
            verdict = verdicts[number - 1] if verdicts else None
            entries.append(Entry(number, batch, request, time, following.get(request.text), verdict))
            following[request.text] = number
        return cls(reversed(entries), listed.method, listed.model)

    @property
    def summary(self) -> str:
        said = f"{self.method} on {self.model}: {len(self)} facts"
        if superseded := sum(not entry.in_force for entry in self):
            said += f", {superseded} of them superseded"
        judged = [entry.verdict for entry in self if entry.in_force and entry.verdict is not None]
        return said + (f"; {sum(one.written for one in judged)} of {len(judged)} in force are said" if judged else "")

    def __rich__(self) -> RenderableType:
        """A row per fact; its last columns only where the model was asked."""
        asked = any(entry.verdict is not None for entry in self)
        table = Table(
            caption=escape(self.summary),
            caption_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("")
        for title in ("#", "written", "batch"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("fact", overflow="fold")
        if asked:
            table.add_column("says now", overflow="fold")
            table.add_column("probability", justify="right", no_wrap=True)
        for entry in self:
            table.add_row(*_cells(entry), style="" if entry.in_force else "dim")
        return table


def _numbered(listed: Listed) -> Iterator[tuple[int, int, Request, datetime | None]]:
    number = 0
    for batch, (requests, time) in enumerate(listed.batches, start=1):
        for request in requests:
            number += 1
            yield number, batch, request, time


def _cells(entry: Entry) -> list[str]:
    mark, fact, answered = "", f"{escape(entry.request.text)} [dim]→[/dim] {escape(entry.request.target_new)}", []
    if entry.verdict is not None:
        mark, judged, _, *answered = entry.verdict.cells()
        fact = judged if entry.in_force else fact
    if not entry.in_force:
        mark, fact = "–", f"{fact}\nsuperseded by {entry.superseded_by}"
    time = "–" if entry.time is None else entry.time.astimezone().strftime("%Y-%m-%d %H:%M")
    return [mark, str(entry.number), time, str(entry.batch), fact, *answered]
