"""`alphaedit methods`."""

from __future__ import annotations

from rich.markup import escape

from .console import console


def methods() -> None:
    """List the methods and modifiers there are, ours and those of installed packages."""
    from rich import box
    from rich.table import Table

    from ..comparison.names import IN_CONTEXT
    from ..editors.registry import listed

    table = Table("name", "kind", "what it does", "source", box=box.SIMPLE_HEAD)
    for each in listed():
        table.add_row(*(escape(text) for text in (each.name, each.kind, each.summary, each.source)))
    told = "tells the model the facts before its prompts, and writes nothing (compare only)"
    table.add_row(IN_CONTEXT, "contender", told, "Zheng et al. 2023, IKE, without its demonstrations")
    console.print(table)
