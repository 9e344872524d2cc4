"""`alphaedit compare`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number
from rich.markup import escape

from ..comparison.names import is_place
from ..comparison.studies import STUDIES, Plan
from ..errors import CompareError, HyperparameterError
from ..model import DEMO_MODEL
from .console import console
from .loading import loaded
from .options import (
    Chat,
    Contender,
    Loading,
    Model,
    Place,
    Preparing,
    Quiet,
    parse_contenders,
    parse_parameters,
    positive,
)
from .run_file import NAME, write_run_file

if TYPE_CHECKING:
    from ..comparison.campaign import Campaign

EXAMPLES = """\
Examples:

  Three methods on the demo model, with the facts that ship:
    alphaedit compare --methods memit memit+P alphaedit --edits 50

  A model and data of yours, measured along the way, in three random orders:
    alphaedit compare gpt2-xl --data cf.json --every 100 --seeds 0 1 2

  An editor of your own, plain and projected, beside AlphaEdit:
    alphaedit compare --methods alphaedit my_editor.py:edit my_editor.py:edit+P

  … held to more, or to where the loss on the text is flat:
    alphaedit compare --methods my_editor.py:edit+revive+P my_editor.py:edit+crisp

  A run written as a file; options on the command line go before the file's:
    alphaedit compare run.yaml --jobs 2 --quiet=false

  What a run would take, counted without loading any weights:
    alphaedit compare gpt2-xl --data cf.json --seeds 0 1 2 --plan --tflops 20

run.yaml holds options by their names (model: gpt2-xl, methods: [memit, rome],
skip_bad: true). Each run folder holds the one that repeats the run.
"""


@Parameter(name="*", group=Group("What is compared", sort_key=10))
@dataclass(frozen=True)
class Compared:
    """The methods, and the models they edit."""

    methods: Annotated[
        tuple[Contender, ...] | None,
        Parameter(
            consume_multiple=1,
            converter=parse_contenders,
            metavar="NAME...",
            help="Methods such as memit+P (see `alphaedit methods`), easyedit:METHOD, in-context, "
            "my_editor.py:FUNCTION. Default: memit memit+P alphaedit, or the study's.",
        ),
    ] = None
    study: Annotated[
        str | None, Parameter(choices=tuple(STUDIES), metavar="STUDY", help="A study of the paper, as a preset.")
    ] = None
    models: Annotated[
        tuple[Place, ...] | None,
        Parameter(consume_multiple=1, metavar="MODEL...", help="Several models, instead of MODEL."),
    ] = None
    baseline_hparams: Annotated[
        Path | None, Parameter(help="Folder of METHOD.yaml, the hyperparameters of easyedit:METHOD.")
    ] = None


@Parameter(name="*", group=Group("Facts", sort_key=20))
@dataclass(frozen=True)
class Edited:
    """The facts, and the order in which they are written."""

    data: Annotated[
        tuple[Place, ...] | None,
        Parameter(
            alias="--facts",
            consume_multiple=1,
            metavar="DATA...",
            help="CounterFact, ZsRE, KnowEdit, MQuAKE, …: files, or names on the hub. Default: the facts that ship.",
        ),
    ] = None
    edits: Annotated[
        int | None,
        Parameter(validator=positive, help="How many facts of each of --data. Default: all, or 20 of ours."),
    ] = None
    batch: Annotated[int, Parameter(validator=positive, help="Facts written at a time.")] = 10
    every: Annotated[
        int | None, Parameter(validator=positive, help="Also measure after every so many facts, not only at the end.")
    ] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=1,
            metavar="SEED...",
            help="Draw and order the facts by each of these. Default: the file's order.",
        ),
    ] = None
    stream: Annotated[bool, Parameter(help="Write all of --data one after another, instead of comparing on each.")] = (
        False
    )
    targets: Annotated[
        Literal["now", "once"],
        Parameter(
            help="When a fact's target is found: when its turn comes, on the model as it is by then; or once for all "
            "methods, on the unedited model, so that a further method costs little."
        ),
    ] = "now"
    skip_bad: Annotated[bool, Parameter(help="Leave out malformed records.")] = False
    chat: Chat = False


@Parameter(name="*", group=Group("Measures", sort_key=30))
@dataclass(frozen=True)
class Measured:
    """What is measured besides the facts themselves."""

    sample: Annotated[
        int | None,
        Parameter(
            validator=positive, help="At checkpoints before the end, ask only so many facts. Default: all so far."
        ),
    ] = None
    norms: Annotated[
        bool, Parameter(help="Norms of the edited weights and of hidden states, relative to before any edit.")
    ] = False
    held_out: Annotated[Path | None, Parameter(help="Text for perplexity. Default: the one that ships.")] = None
    texts: Annotated[
        int | None,
        Parameter(
            validator=Number(gte=0),
            help="Let the model write texts about this many of the facts, and measure fluency. Default: none.",
        ),
    ] = None
    snippets: Annotated[
        Path | None,
        Parameter(help="Reference texts to compare --texts with: attribute_snippets.json, or a corpus."),
    ] = None
    tasks: Annotated[Path | None, Parameter(help="General capability: a folder of SST, MRPC, CoLA, … as JSON.")] = None
    task_limit: Annotated[int, Parameter(validator=positive, help="Examples per task.")] = 100
    harness: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=1, metavar="TASK...", help="Tasks of lm-evaluation-harness, if it is installed."),
    ] = None
    shift: Annotated[Path | None, Parameter(help="Held-out prompts: how far do edits move their hidden states?")] = None
    shift_limit: Annotated[int, Parameter(validator=positive, help="How many of these prompts.")] = 200
    answers: Annotated[
        int,
        Parameter(
            validator=Number(gte=0),
            help="Ask about this many of the facts without teacher forcing: what does the model write by itself, and "
            "how much better does teacher forcing make it look?",
        ),
    ] = 0
    judge: Annotated[
        str | None,
        Parameter(
            metavar="ADDRESS",
            help="A model that marks these --answers, behind an OpenAI-compatible address such as "
            "http://127.0.0.1:8000/v1. Its key comes from OPENAI_API_KEY alone.",
        ),
    ] = None
    judge_model: Annotated[str | None, Parameter(metavar="NAME", help="The judge's name at its address.")] = None


RUN = Group("Run", sort_key=60)


@Parameter(name="*", group=RUN)
@dataclass(frozen=True)
class Running:
    """Where the results go, and how the work is done."""

    out: Annotated[
        Path | None, Parameter(help="Folder for the results; a run that was killed goes on. Default: runs/TIME.")
    ] = None
    jobs: Annotated[int, Parameter(validator=positive, help="Processes, or jobs of --engine, that share the work.")] = 1
    engine: Annotated[
        Literal["local", "submitit", "submitit-local"],
        Parameter(
            help="Where these run: here; as jobs of SLURM, sent by submitit; or here, but dealt with as those are."
        ),
    ] = "local"
    slurm: Annotated[
        tuple[str, ...] | None,
        Parameter(
            consume_multiple=1,
            converter=parse_parameters,
            metavar="KEY=VALUE...",
            help="What each job gets, in submitit's words or sbatch's: partition=a100 gpus_per_node=1 timeout_min=480.",
        ),
    ] = None
    keep_sessions: Annotated[
        bool, Parameter(help="Keep the edits in --out, so that other measures need no new edits later.")
    ] = False
    quiet: Quiet = False


def _rates(type_: Any, values: tuple[float, ...] | None) -> None:
    """Raises ValueError for a rate that is none."""
    if any(value <= 0 for value in values or ()):
        raise ValueError("must be above 0")


def compare(
    model: Model = Place(DEMO_MODEL),
    *,
    compared: Compared = Compared(),
    edited: Edited = Edited(),
    measured: Measured = Measured(),
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
    running: Running = Running(),
    plan: Annotated[
        bool,
        Parameter(
            group=RUN, negative=(), help="Only count what the run takes: work, memory and disk. Loads no weights."
        ),
    ] = False,
    tflops: Annotated[
        tuple[float, ...] | None,
        Parameter(
            group=RUN,
            consume_multiple=(1, 2),
            metavar="RATE...",
            validator=_rates,
            help="With --plan, for hours: TFLOP/s that a worker sustains, and those in float64 (default: half).",
        ),
    ] = None,
    worker: Annotated[Literal["helps", "waits"] | None, Parameter(show=False)] = None,
) -> None:
    """Edit facts with each method from the same start, and show what each keeps and breaks."""
    from ..comparison import jobs
    from ..comparison.campaign import Campaign
    from ..comparison.measuring import Measuring
    from ..comparison.run_folder import read_run
    from ..comparison.submitted import HELPS, HERE, WAITS, Worker, executor_of, run_jobs
    from ..report.export import export
    from ..report.page import write_report
    from ..report.tables import table
    from ..storage.files import check_place
    from .preparing import hyperparameters_of, preparation_of

    started = time.perf_counter()
    if is_place(model):
        raise HyperparameterError(f"{model} names an editor, not a model: it goes behind --methods")
    if running.slurm and running.engine == "local":
        raise HyperparameterError("--slurm says what the jobs of --engine submitit get: say both or neither")
    if tflops and not plan:
        raise HyperparameterError("--tflops is the rate that --plan counts hours with: say both or neither")
    if worker:
        jobs.end_with_parent()
    folder = (running.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")).resolve()
    if not plan:
        check_place(folder, CompareError, folder=True)
    arguments, of_worker = sys.argv[1:], ["--quiet", "--out", str(folder), "--worker"]
    if worker:  # what was asked for is the command without what made this process
        arguments = arguments[: -len(of_worker) - 1]
    campaign = Campaign(
        models=compared.models or (model,),
        folder=folder,
        data=edited.data or (),
        seeds=edited.seeds or (None,),
        study=compared.study,
        plan=Plan(compared.methods, edited.edits, edited.every, measured.texts),
        batch=edited.batch,
        stream=edited.stream,
        targets_once=edited.targets == "once",
        skip_bad=edited.skip_bad,
        chat=edited.chat,
        measuring=Measuring(
            measured.held_out,
            measured.snippets,
            measured.tasks,
            measured.task_limit,
            measured.harness or (),
            measured.shift,
            measured.shift_limit,
            measured.sample,
            measured.norms,
            measured.answers,
            measured.judge,
            measured.judge_model,
        ),
        preparation=preparation_of(preparing, loading, running.quiet),
        layers=preparing.layers,
        hyperparameters=hyperparameters_of(preparing),
        baseline_hparams=compared.baseline_hparams,
        keep_sessions=running.keep_sessions,
        progress=not running.quiet,
        command=("alphaedit", *arguments),
    )

    if plan:
        _plan(campaign, loading, tflops, running.jobs)
        return
    damaged: set[Path] = set()

    def begin() -> None:
        """Called once all that was asked for has been read and checked."""
        options = (compared, edited, measured, preparing, loading, replace(running, out=folder))
        write_run_file(folder / NAME, model, *options)

    def load(name: str) -> tuple[Any, Any]:
        if not worker:
            begin()
        return loaded(name, loading)

    def show() -> None:
        export(read_run(folder, damaged), folder)

    def look() -> None:
        with suppress(CompareError):  # nothing may be there yet
            show()

    if worker or running.engine == "local":
        with jobs.helping(0 if worker else running.jobs - 1, [*arguments, *of_worker, HELPS]) as wait_for_helpers:
            campaign.run(load, wait=worker != HELPS, on_row=lambda _: None if worker else show())
            wait_for_helpers()
    else:
        campaign.read()
        executor = executor_of(running.engine, folder / "jobs", parameters_of(running.slurm))
        begin()
        threads = jobs.threads_of_one(running.jobs) if running.engine == HERE else None
        kinds = (WAITS, *[HELPS] * (running.jobs - 1))
        run_jobs(executor, [Worker((*arguments, *of_worker, kind), os.getcwd(), threads) for kind in kinds], look)
    if worker:
        return
    comparisons = read_run(folder, damaged)
    export(comparisons, folder)
    for comparison in comparisons:
        console.print(table(comparison))
    spent = time.perf_counter() - started
    console.print(f"{spent:.0f} s in all; summary.json, .csv, .md and .tex are in {escape(str(folder))}")
    try:
        console.print(f"report: {escape(str(write_report(comparisons, folder)))}")
    except CompareError as failure:  # the numbers are safe: a picture may follow
        logging.getLogger(__name__).warning("no report: %s. Then run `alphaedit report %s`", failure, folder)


def _plan(campaign: Campaign, loading: Loading, rates: tuple[float, ...] | None, workers: int) -> None:
    from transformers.utils.logging import disable_progress_bar

    from ..comparison.plan import forecasts
    from ..model.outline import outlined
    from .planning import show_forecast

    disable_progress_bar()

    def outline(name: str) -> tuple[Any, Any]:
        return outlined(name, dtype=loading.dtype, trust_remote_code=loading.trust_remote_code)

    for forecast in forecasts(campaign, outline, workers=workers, accelerator=loading.device != "cpu"):
        show_forecast(forecast, rates, workers)


def parameters_of(words: tuple[str, ...] | None) -> dict[str, Any]:
    """What `--slurm` says: numbers, true, false and lists as in JSON, all else as text."""
    found: dict[str, Any] = {}
    for word in words or ():
        key, _, value = word.partition("=")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
