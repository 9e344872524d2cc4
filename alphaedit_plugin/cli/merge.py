"""`alphaedit merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import SessionError
from .console import console
from .exporting import SESSION, export
from .loading import resumed
from .options import Placing, Quiet


def merge(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote: the facts come into it.")],
    other: Annotated[Path, Parameter(help="Another such folder, of the same model.")],
    /,
    *,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """Write the facts of another edit into this one too, and its results anew."""
    from ..storage.files import check_place

    check_place(folder, SessionError, folder=True)
    with resumed(folder / SESSION, placing, quiet) as session:
        for fact in session.merge(other / SESSION):
            console.print(f"written: {escape(fact.text)} → {escape(fact.target_new)}")
        export(session, folder)
