"""`alphaedit merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import SessionError
from .console import console
from .exporting import FAILED, SESSION, export
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
    """Write the facts that are in force in another edit into this one too, and its results anew.

    Ends with exit code 3 if they are not said with the rank or the GGUF type that was chosen.
    """
    from ..session.manifest import read_manifest
    from ..storage.files import check_place

    check_place(folder, SessionError, folder=True)
    read_manifest(other / SESSION)
    with resumed(folder / SESSION, placing, quiet) as session:
        for fact in session.merge(other / SESSION):
            console.print(f"written: {escape(fact.text)} → {escape(fact.target_new)}")
        lost = export(session, folder)
    if lost:
        sys.exit(FAILED)
