"""`alphaedit tune`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.markup import escape

from ..errors import TuningError
from .console import console
from .loading import loaded
from .options import Loading, Method, Model, Pilot, Preparing, Quiet


def tune(
    model: Model,
    /,
    *,
    method: Method = "alphaedit",
    facts: Pilot = None,
    minutes: Annotated[float, Parameter(validator=Number(gt=0), help="How long it may take at most.")] = 20.0,
    out: Annotated[
        Path | None,
        Parameter(
            help="The YAML to write; beside it lie the trials, so that the command goes on when it is repeated. "
            "Default: METHOD-MODEL.yaml here."
        ),
    ] = None,
    quiet: Quiet = False,
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
) -> None:
    """Find layers and settings for a model that has no file, by a causal trace and trial edits; write them as YAML.

    It begins with what is derived from the model, or with --hparams. Layers and criterion that are given stay, and so
    does what the method's own name sets, as in memit@v_lr=0.1.
    """
    from dataclasses import replace

    from ..editors.hyperparameters import Hyperparameters
    from ..editors.variant import Variant
    from ..storage.files import check_place
    from ..tuning.hparams_file import table, write_hparams
    from ..tuning.search import tune as search
    from .pilot import pilot
    from .preparing import hyperparameters_of, preparation_of

    variant = Variant.parse(method)
    path = out or Path(f"{variant}-{Path(model).name}.yaml".lower())
    ledger = path.with_suffix(".trials.json")
    for place in (path, ledger):
        check_place(place, TuningError)
    chosen, source = pilot(facts)
    start, preparation = hyperparameters_of(preparing), preparation_of(preparing, loading, quiet)
    console.print(
        f"tuning {escape(str(variant))} on {escape(model)} with {len(chosen)} facts of {escape(source)}: at most "
        f"{minutes:g} minutes{', going on with earlier trials' if ledger.exists() else ''}"
    )
    loaded_model, tokenizer = loaded(model, loading)
    keep: set[str] = set()
    start = start or Hyperparameters.derived(variant.method, loaded_model)
    if preparing.layers is not None:
        start, keep = start.with_layers(preparing.layers), keep | {"layers"}
    if preparation.criterion is not None:
        start, keep = replace(start, null_space=preparation.criterion), keep | {"null_space"}
    found = search(
        loaded_model,
        tokenizer,
        chosen,
        variant,
        minutes=minutes,
        start=start,
        keep=keep,
        preparation=preparation,
        ledger=ledger,
        progress=not quiet,
    )
    write_hparams(
        path,
        loaded_model,
        variant,
        found,
        command=shlex.join(["alphaedit", *sys.argv[1:]]),
        facts=source,
        name=model,
    )
    for line in table(found):
        console.print(escape(line), highlight=False, soft_wrap=True)
    ended = "no step improves on it" if found.finished else "the time is over; the same command goes on"
    console.print(f"best of {len(found.trials)} trials in {found.seconds / 60:.1f} minutes (*): {ended}")
    console.print(
        f"written to {escape(str(path))}; use it with --method {escape(str(variant))} --hparams {escape(str(path))}"
    )
