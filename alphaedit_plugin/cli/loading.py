"""Load the model that a command is about, or the session that goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .console import console
from .exporting import SESSION
from .options import Loading, Placing

if TYPE_CHECKING:
    from ..session.session import Session


def whole_name(model: str) -> str:
    """A model's name or, of a folder or file that is there, its absolute path: the working directory may change."""
    if not os.path.exists(model):
        return model
    from ..model.gguf import PACKAGED

    return model if model in PACKAGED else os.path.abspath(model)


def loaded(model: str, loading: Loading) -> tuple[Any, Any]:
    """(model, tokenizer), without the progress bars of transformers. Says where the model is."""
    from transformers.utils.logging import disable_progress_bar

    from ..model.loading import load
    from ..storage.store import Store

    disable_progress_bar()
    with console.status(f"loading {escape(model)}"):
        found, tokenizer = load(
            model,
            dtype=loading.dtype,
            device=loading.device,
            trust_remote_code=loading.trust_remote_code,
            store=Store(loading.cache),
        )
    places = dict.fromkeys(str(weight.device) for weight in found.parameters())
    console.print(f"{escape(model)} is on {', '.join(places)} in {str(found.dtype).removeprefix('torch.')}")
    return found, tokenizer


def session_in(folder: Path) -> Path:
    """The session's own folder: the given one, or the one in what `alphaedit edit` wrote."""
    from ..session.manifest import is_session

    return folder if is_session(folder) else folder / SESSION


def resumed(folder: Path, placing: Placing, quiet: bool, *, read_only: bool = False) -> Session:
    """The session in a folder, on the model that it names and in that model's precision."""
    from ..session.manifest import read_manifest
    from ..session.session import Session

    values = read_manifest(folder)
    loading = Loading(placing.device, placing.trust_remote_code, placing.cache, dtype=values["dtype"])
    return Session.resume(folder, *loaded(values["model"], loading), read_only=read_only, progress=not quiet)
