"""What `alphaedit edit` says of each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..editors.verdict import Verdict, Verdicts

_LONG = 50
"""With more facts than these, only those that failed get a row."""


def verdict_table(verdicts: Verdicts) -> Table:
    """A row per fact, in order, with the reason below one that failed; of a long list those that failed only. A
    summary counts all.
    """
    shown = verdicts.verdicts if len(verdicts) <= _LONG else verdicts.failed
    result = Table(
        caption=verdicts.summary, caption_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for title in ("", "fact", "said before", "says now"):
        result.add_column(title, overflow="fold")
    result.add_column("probability", justify="right", no_wrap=True)
    for verdict in shown:
        result.add_row(*_cells(verdict))
    return result


def _cells(verdict: Verdict) -> tuple[str, ...]:
    before, now, request = verdict.before, verdict.now, verdict.request
    mark = "[green]✓[/green]" if verdict.written else "[red]✗[/red]"
    why = f"\n[red]{escape(verdict.why)}[/red]" if verdict.why else ""
    return (
        mark,
        f"{escape(request.text)} [dim]→[/dim] {escape(request.target_new)}{why}",
        "" if before is None else escape(_one_line(before.words)),
        escape(_one_line(now.words)),
        f"{'?' if before is None else probability(before.probability)} → {probability(now.probability)}",
    )


def _one_line(words: str) -> str:
    """What a model writes may hold anything."""
    return " ".join(words.split()) or repr(words)


def probability(value: float) -> str:
    """In percent, with as many digits as tell it from none and from all."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %"
