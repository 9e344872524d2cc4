"""`alphaedit undo`."""

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


def undo(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote.")],
    /,
    *,
    batches: Annotated[int, Parameter(help="How many batches, latest first.")] = 1,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """Take back the last batches of an edit, exactly, and write its results anew."""
    from ..storage.files import check_place

    check_place(folder, SessionError, folder=True)
    with resumed(folder / SESSION, placing, quiet) as session:
        for fact in session.undo(batches):
            console.print(f"undone: {escape(fact.text)} → {escape(fact.target_new)}")
        export(session, folder)
