"""`alphaedit apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import PatchError, StoreError
from .console import console
from .loading import loaded
from .options import Loading, Place


def apply(
    model: Annotated[Place, Parameter(help="The model that the patch was made on.")],
    patch: Annotated[Path, Parameter(help="A patch.safetensors of `alphaedit edit`.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the resulting model.")],
    revert: Annotated[bool, Parameter(help="Take the patch out of a model that holds it.")] = False,
    force: Annotated[bool, Parameter(help="Transfer it to another model of the same shape.")] = False,
    loading: Loading = Loading(),
) -> None:
    """Apply a patch to a model, or take it out again, bit for bit."""
    if revert and force:
        raise PatchError("--revert is exact or not at all: it cannot be combined with --force")
    from ..storage.files import check_place

    check_place(out, StoreError, folder=True)
    from ..model.loading import save_model
    from ..session.patch import apply_patch, revert_patch

    edited, tokenizer = loaded(model, loading)
    about = revert_patch(edited, patch) if revert else apply_patch(edited, patch, check_model=not force)
    save_model(edited, tokenizer, out)
    done = "taken out of" if revert else "applied to"
    facts = about.get("facts")
    count = len(facts) if isinstance(facts, list) else "unknown"
    what = f"{count} facts ({about.get('method', 'of unknown origin')})"
    console.print(f"{escape(what)} {done} {escape(model)}: {escape(str(out.resolve()))}")
