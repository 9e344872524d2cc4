"""`alphaedit methods`."""

from __future__ import annotations

import importlib

from rich.markup import escape

from .console import console


def methods() -> None:
    """List the methods and modifiers there are, ours and those of installed packages."""
    from rich import box
    from rich.table import Table

    registry = importlib.import_module("alphaedit_plugin.editors.registry")
    table = Table("name", "kind", "what it does", "source", box=box.SIMPLE_HEAD)
    for each in registry.listed():
        table.add_row(*(escape(text) for text in (each.name, each.kind, each.summary, each.source)))
    console.print(table)
