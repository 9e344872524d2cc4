"""`alphaedit edit`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from ..errors import EditError, HubError, PatchError, RequestError, SessionError, StoreError
from ..visible import visible
from .console import console
from .exporting import FAILED, LORA, MODEL, SESSION, Gguf, export
from .loading import resumed, whole_name
from .options import AllowFailures, Chat, Loading, Method, Model, Place, Preparing, Public, Quiet, positive
from .publishing import check, publish

if TYPE_CHECKING:
    from ..editors.requests import Request
    from ..editors.variant import Variant
    from ..editors.verdict import Verdict


def edit(
    model: Model,
    facts: Annotated[
        Path | None,
        Parameter(help="Records with prompt, subject and target_new: .json, .jsonl, .csv, .tsv or .yaml."),
    ] = None,
    /,
    *,
    fact: Annotated[
        tuple[str, ...] | None,  # not of triples, or cyclopts takes a prompt that begins with "{}" for JSON
        Parameter(
            n_tokens=3,
            metavar="PROMPT SUBJECT TARGET",
            help='One more fact, such as "The capital of {} is" France Lyon; may be repeated, after or without FACTS.',
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="Folder for the result. One that holds a session of ours is continued.")],
    method: Method = "alphaedit",
    batch: Annotated[int, Parameter(validator=positive, help="Facts written at a time.")] = 50,
    chat: Chat = False,
    lora: Annotated[bool, Parameter(help="Write a PEFT adapter instead of the whole model.")] = False,
    rank: Annotated[
        int | None,
        Parameter(validator=positive, help="Rank of the adapter, for servers that set one. Default: the edit's own."),
    ] = None,
    push: Annotated[
        str | None,
        Parameter(metavar="USER/NAME", help="Publish the result on the Hugging Face Hub, unless a fact failed."),
    ] = None,
    public: Public = False,
    gguf: Annotated[
        Path | None,
        Parameter(help="Write the model's own GGUF file again, edited, instead of a model folder. `undo` keeps it up."),
    ] = None,
    gguf_type: Annotated[
        str | None,
        Parameter(
            metavar="TYPE",
            help="What --gguf writes edited tensors as: Q8_0, F16, … Default: their own type, or the smallest finer "
            "one that keeps all facts.",
        ),
    ] = None,
    budget: Annotated[
        tuple[str, ...] | None,
        Parameter(
            consume_multiple=1,
            metavar="NAME=NUMBER...",
            help="Write only what keeps the model within these bounds: drift, leakage (largest of a layer), kl (nats).",
        ),
    ] = None,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
) -> None:
    """Write facts into a model: a model folder (or adapter), a patch, and a session to continue or undo.

    Says of each fact whether the model has learned it, and ends with exit code 3 if one was not learned, or was left
    out for a --budget (run again, it is tried again).
    """
    from ..storage.files import check_place

    check_place(out, SessionError, folder=True)
    model = Place(whole_name(model))
    if rank is not None and not lora:
        raise PatchError("--rank is that of an adapter: add --lora")
    if public and push is None:
        raise HubError("--public says who sees what --push publishes: add --push USER/NAME")
    if push is not None and gguf is not None and not lora:
        raise HubError(
            "--push publishes a model or an adapter, and --gguf writes neither: add --lora, or leave --gguf out"
        )
    if push is not None:
        check(push, model, out, lora=lora)
    asked_for = _gguf(model, gguf, gguf_type)

    from ..editors.requests import load_requests
    from ..editors.variant import Variant
    from ..progress import progress_bar
    from ..session.budget import Budget
    from ..session.manifest import is_session, read_manifest
    from ..session.session import Session
    from .preparing import Prepared, preparation_of, statistics_of

    more = [
        (f"--fact {number}", {"prompt": prompt, "subject": subject, "target_new": target})
        for number, (prompt, subject, target) in enumerate(zip(*[iter(fact or ())] * 3, strict=True), start=1)
    ]
    if facts is None and not more:
        raise RequestError("there are no facts: name a file of them, or give --fact PROMPT SUBJECT TARGET")
    requests, bounds = load_requests(facts, batch, more), Budget.of(_named(budget or ()))
    variant = Variant.parse(method)
    folder = out / SESSION
    if is_session(folder):
        _check_begun(read_manifest(folder), out, variant, model, chat, preparing, loading)
        session = resumed(folder, loading, quiet)
        if any(option is not None for option in (preparing.corpus, preparing.stats_dir, preparing.tokens)):
            console.print(
                "the session keeps its first statistics: --corpus, --stats-dir and --tokens are for a new one"
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
    with session:
        if bounds is not None and bounds.leakage < math.inf and not session.covariances:
            with session.at(0):
                preparation = preparation_of(preparing, loading, quiet)
                found = statistics_of(preparation, session.model, session.tokenizer, session.hyperparameters)
            session.covariances = dict(found.covariances)
        todo = session.to_do(requests)
        if len(todo) < len(requests):
            console.print(f"{len(requests) - len(todo)} of {len(requests)} facts are in the session already")
        # The file's batches: what is in the session already does not bring together what the file keeps apart.
        batches = [[requests[i] for i in same] for _, same in groupby(todo, lambda position: position // batch)]
        if not allow_failures:
            for each in batches:
                session.check(each)
        left_out: dict[Request, Verdict] = {}
        several = len(batches) > 1  # of one batch, what finds its targets has a bar
        title, shown = visible(str(variant)), several and not quiet
        with progress_bar(total=len(todo), desc=title, unit="fact", shown=shown) as bar:
            for each in batches:
                for verdict in session.edit(each, on_failure="allow", budget=bounds).verdicts:
                    left_out.pop(verdict.request, None)
                    if verdict.left_out:
                        left_out[verdict.request] = verdict
                bar.update(len(each))
        lost: Sequence[Request] = ()
        if is_session(folder):
            lost = export(session, out, lora=lora, whole=not lora and gguf is None, rank=rank, gguf=asked_for)
        else:
            console.print("nothing was written: no fact fits into the budget")
        in_force = {request.text: request for request in requests}.values()
        verdicts = session.verdicts(
            [request for request in in_force if request not in left_out],
            left_out=[left_out[request] for request in in_force if request in left_out],
        )
    console.print(verdicts)
    failed = bool(verdicts.failed or lost) and not allow_failures
    if push is not None and not failed:
        publish(out / (LORA if lora else MODEL), push, public=public)
    elif push is not None:
        console.print(f"not published: `alphaedit push {escape(str(out))} {escape(push)}` does so all the same")
    if failed:
        sys.exit(FAILED)


def _check_begun(
    begun: Mapping[str, Any],
    out: Path,
    variant: Variant,
    model: str,
    chat: bool,
    preparing: Preparing,
    loading: Loading,
) -> None:
    """Raises SessionError if a session that goes on was begun in another way than is asked for now."""
    from ..comparison.contender import Ground
    from ..editors.hyperparameters import Hyperparameters
    from ..nullspace.statistics import Preparation
    from .preparing import hyperparameters_of

    if (begun["method"], whole_name(begun["model"])) != (str(variant), model):
        raise SessionError(
            f"{out} holds a session of {begun['method']} on {begun['model']}, not of {variant} on {model}: choose "
            "another folder"
        )
    if ("chat" in begun) != chat:
        raise SessionError(
            f"{out} holds a session {'without' if chat else 'with'} --chat: go on in the same way, or choose "
            "another folder"
        )
    if loading.dtype not in ("auto", begun["dtype"]):
        raise SessionError(f"{out} holds a session in {begun['dtype']}: leave --dtype out, or choose another folder")
    held = Hyperparameters.from_saved(begun["hyperparameters"], str(out))
    given, preparation = hyperparameters_of(preparing) or held, Preparation(criterion=preparing.criterion())
    # As a new session resolves them; with settings given, no model is asked.
    ground = Ground(None, None, model, preparation, preparing.layers, given)
    asked, begun_with = ground.hyperparameters_of(str(variant), variant).as_dict(), held.as_dict()
    differ = {key for key in asked | begun_with if asked.get(key) != begun_with.get(key)}
    if not variant.needs_null_spaces:
        differ.discard("null_space")
    if differ:
        raise SessionError(
            f"{out} holds a session with other hyperparameters ({', '.join(sorted(differ))}): leave --hparams, "
            "--layers, --threshold, --energy and --nullity out, or choose another folder"
        )


def _gguf(model: str, path: Path | None, kind: str | None) -> Gguf | None:
    """What --gguf and --gguf-type ask for, as far as it can be done. Raises before anything else is."""
    if path is None:
        if kind is not None:
            raise EditError("--gguf-type says how --gguf writes: give --gguf FILE too")
        return None
    from ..model.ggml import check_kind
    from ..model.gguf import check_from_gguf
    from ..storage.files import check_place
    from ..storage.gguf_file import check_other

    check_place(path, StoreError)
    check_from_gguf(model)
    check_other(path, Path(model), StoreError)
    if kind is not None:
        check_kind(kind.upper())
    return Gguf(path.resolve(), kind and kind.upper())


def _named(words: Sequence[str]) -> dict[str, float]:
    """Bounds by name. Raises EditError for a word that is not NAME=NUMBER, or a name that comes twice."""
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            bound = float(number)
        except ValueError:
            raise EditError(f"--budget {word!r}: write NAME=NUMBER, such as drift=0.2") from None
        if name in found:
            raise EditError(f"--budget names {name} twice")
        found[name] = bound
    return found
