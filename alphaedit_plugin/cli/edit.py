"""`alphaedit edit`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import SessionError
from ..visible import visible
from .console import console
from .exporting import SESSION, export
from .loading import resumed
from .options import AllowFailures, Chat, Loading, Method, Model, Preparing, Quiet, positive
from .verdicts import verdict_table

FAILED = 3
"""The exit code if a fact is not said in the end."""


def edit(
    model: Model,
    facts: Annotated[Path, Parameter(help="JSON or .jsonl records with prompt, subject and target_new.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the result. One that holds a session of ours is continued.")],
    method: Method = "alphaedit",
    batch: Annotated[int, Parameter(validator=positive, help="Facts written at a time.")] = 50,
    chat: Chat = False,
    lora: Annotated[bool, Parameter(help="Write a PEFT adapter instead of the whole model.")] = False,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
) -> None:
    """Write facts into a model: a model folder (or adapter), a patch, and a session to continue or undo.

    Says of each fact whether the model has learned it, and ends with exit code 3 if one was not learned.
    """
    from ..storage.files import check_place

    check_place(out, SessionError, folder=True)
    from tqdm.auto import tqdm

    from ..editors.requests import load_requests
    from ..editors.variant import Variant
    from ..session.folder import is_session, read_manifest
    from ..session.session import Session
    from .preparing import Prepared

    requests = load_requests(facts, batch)
    variant = Variant.parse(method)
    folder = out / SESSION
    if is_session(folder):
        begun = read_manifest(folder)
        if (begun["method"], begun["model"]) != (str(variant), model):
            raise SessionError(
                f"{out} holds a session of {begun['method']} on {begun['model']}, not of {variant} on {model}: choose "
                "another folder"
            )
        if ("chat" in begun) != chat:
            raise SessionError(
                f"{out} holds a session {'without' if chat else 'with'} --chat: go on in the same way, or choose "
                "another folder"
            )
        session = resumed(folder, loading, quiet)
    else:
        ready = Prepared.of(method, model, preparing, loading, quiet)
        session = Session(
            ready.ground.model,
            ready.ground.tokenizer,
            variant,
            hyperparameters=ready.hyperparameters,
            preparation=ready.ground.preparation,
            autosave=folder,
            chat=chat,
            progress=not quiet,
        )
    with session:
        todo = session.to_do(requests)
        if len(todo) < len(requests):
            console.print(f"{len(requests) - len(todo)} of {len(requests)} facts are in the session already")
        # The file's batches: what is in the session already does not bring together what the file keeps apart.
        batches = [[requests[i] for i in same] for _, same in groupby(todo, lambda position: position // batch)]
        if not allow_failures:
            for each in batches:
                session.check(each)
        with tqdm(total=len(todo), desc=visible(str(variant)), unit="fact", disable=quiet) as bar:
            for each in batches:
                bar.update(len(session.edit(each, on_failure="allow")))
        export(session, out, lora=lora, whole=not lora)
        in_force = {request.text: request for request in requests}
        verdicts = session.verdicts([*in_force.values()])
    console.print(verdict_table(verdicts))
    if verdicts.failed and not allow_failures:
        sys.exit(FAILED)
