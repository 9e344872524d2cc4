"""`alphaedit show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .console import console
from .loading import resumed, session_in
from .options import Placing, Quiet


def show(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote, or a session's own folder.")],
    /,
    *,
    no_model: Annotated[
        bool, Parameter(help="Only list the facts, at once: do not load the model and ask it.")
    ] = False,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """List the facts of an edit: number, time, batch, whether a later one supersedes it, and what the model says now.

    Nothing is changed; the session may be in use.
    """
    place = session_in(folder)
    if no_model:
        from ..session.ledger import Ledger
        from ..session.manifest import listed

        console.print(Ledger.of(listed(place)))
        return
    with resumed(place, placing, quiet, read_only=True) as session:
        console.print(session.ledger())
