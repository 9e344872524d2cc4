"""`alphaedit push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .options import Public
from .publishing import publish


def push(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote, or the model or adapter in it.")],
    repository: Annotated[str, Parameter(metavar="USER/NAME", help="Where to: a model repository, made if need be.")],
    /,
    *,
    public: Public = False,
) -> None:
    """Publish an edited model, or its adapter, with its model card on the Hugging Face Hub.

    The repository is private unless it is there already, and then holds what the folder holds and nothing else. It
    needs a token: `hf auth login`, or HF_TOKEN. Session and patch stay here.
    """
    publish(folder, repository, public=public)
