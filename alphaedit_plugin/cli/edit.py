"""`alphaedit edit`."""

from __future__ import annotations

import sys
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

    from ..editors.chat import chat_identity
    from ..editors.requests import load_requests
    from ..editors.variant import Variant
    from ..model.fingerprint import model_name
    from ..session.folder import is_session
    from ..session.session import Session
    from .preparing import Prepared

    requests = load_requests(facts, batch)
    variant = Variant.parse(method)
    folder = out / SESSION
    if is_session(folder):
        session = resumed(folder, loading, quiet)
        if (str(session.variant), model_name(session.model)) != (str(variant), model):
            raise SessionError(
                f"{out} holds a session of {session.variant} on {model_name(session.model)}, not of {variant} on "
                f"{model}: choose another folder"
            )
        if bool(chat_identity(session.tokenizer)) != chat:
            raise SessionError(
                f"{out} holds a session {'without' if chat else 'with'} --chat: go on in the same way, or choose "
                "another folder"
            )
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
    todo = session.to_do(requests)
    if len(todo) < len(requests):
        console.print(f"{len(requests) - len(todo)} of {len(requests)} facts are in the session already")
    batches = [todo[start : start + batch] for start in range(0, len(todo), batch)]
    for facts_of_batch in batches:
        if not allow_failures:
            session.check(facts_of_batch)
    with tqdm(total=len(todo), desc=visible(str(variant)), unit="fact", disable=quiet) as bar:
        for facts_of_batch in batches:
            bar.update(len(session.edit(facts_of_batch, on_failure="allow")))
    export(session, out, lora=lora, whole=not lora)
    verdicts = session.verdicts([*{request.text: request for request in requests}.values()])  # those in force
    console.print(verdict_table(verdicts))
    if verdicts.failed and not allow_failures:
        sys.exit(FAILED)
