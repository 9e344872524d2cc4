"""`alphaedit cache`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from rich.markup import escape

from .console import console, size
from .options import Cache

Kind = Literal["text", "covariance", "null-space", "partial", "models"]
"""The kinds of storage.store, which imports torch."""


def cache(
    *,
    clear: Annotated[bool, Parameter(help="Remove the entries.")] = False,
    kind: Annotated[Kind | None, Parameter(help="Only entries of this kind.")] = None,
    cache: Cache = None,
) -> None:
    """Show what the cache holds, or clear it."""
    from rich.table import Table

    from ..storage.store import Store

    store = Store(cache)
    if clear:
        console.print(f"{size(store.clear(kind))} freed in {escape(str(store.root))}")
        return
    entries = [entry for entry in store.entries() if kind in (None, entry.kind)]
    table = Table(title=escape(str(store.root)))
    table.add_column("kind")
    table.add_column("made from")
    table.add_column("size", justify="right")
    for entry in entries:
        recipe = entry.recipe
        made_from = recipe.get("module") or recipe.get("criterion") or f"model {str(recipe.get('model', '?'))[:12]}"
        table.add_row(escape(entry.kind), escape(str(made_from)), size(entry.size))
    table.add_section()
    table.add_row("all", f"{len(entries)} files", size(sum(entry.size for entry in entries)))
    console.print(table)
