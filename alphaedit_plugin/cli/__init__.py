"""The command `alphaedit`."""

from __future__ import annotations

import importlib
import logging
import re
import runpy
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from .. import __version__
from ..comparison.preparation import Ready
from ..comparison.studies import STUDIES, Plan
from ..editors.hyperparameters import Hyperparameters
from ..editors.registry import GRAMMAR, METHODS, MODIFIERS
from ..editors.variant import Variant
from ..errors import AlphaEditError, CompareError, HyperparameterError, RequestError, StoreError
from ..model.fingerprint import model_name
from ..model.loading import DEMO_MODEL
from ..nullspace.projection import Criterion
from ..storage.store import KINDS, Store

if TYPE_CHECKING:
    from ..session.session import Session

app = typer.Typer(
    help="Null-space constrained knowledge editing (AlphaEdit) for the editors people already run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()

SESSION, PATCH, LORA, CHECKPOINT = "session", "patch.safetensors", "lora", "model"

Model = Annotated[str, typer.Argument(help="Checkpoint folder, Hugging Face name, or the demo model.")]
Method = Annotated[str, typer.Option(help=f"{GRAMMAR}.")]
Layers = Annotated[str | None, typer.Option(help="Such as 4-8 or 4,5,6. Default: the model's hyperparameters.")]
Corpus = Annotated[
    str | None, typer.Option(help="Text file, folder, .jsonl or data set name. Default: the model writes its own text.")
]
StatsDir = Annotated[Path | None, typer.Option(help="Instead of text: .npz statistics of EasyEdit, MEMIT or ROME.")]
Tokens = Annotated[int | None, typer.Option(help="Tokens of text. Default: 10 × the width of a key.")]
Threshold = Annotated[float | None, typer.Option(help="Eigenvalues below it are null (the paper's 2e-2).")]
Energy = Annotated[float | None, typer.Option(help="Instead: share of the keys' energy the null space may hold.")]
Nullity = Annotated[float | None, typer.Option(help="Instead: dimensions that are null, a share (< 1) or a number.")]
Hparams = Annotated[Path | None, typer.Option(help="Hyperparameter YAML (EasyEdit's format).")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (accelerate places the model).")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Cache = Annotated[Path | None, typer.Option(help="Cache directory. Default: $ALPHAEDIT_CACHE or the platform's.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    chosen: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise HyperparameterError(f"--layers {text!r} is not a list of layers such as 4-8 or 4,5,6") from None
    if not chosen or len(set(chosen)) != len(chosen):
        raise HyperparameterError(f"--layers {text!r} names no layer, or one twice")
    return tuple(sorted(chosen))


def _criterion(threshold: float | None, energy: float | None, nullity: float | None) -> Criterion | None:
    if threshold is energy is nullity is None:
        return None
    return Criterion(threshold=threshold, energy=energy, nullity=nullity)


@app.command()
def prepare(
    model: Model = DEMO_MODEL,
    method: Method = "alphaedit",
    layers: Layers = None,
    corpus: Corpus = None,
    stats_dir: StatsDir = None,
    tokens: Tokens = None,
    threshold: Threshold = None,
    energy: Energy = None,
    nullity: Nullity = None,
    out: Annotated[Path | None, typer.Option(help="Also write the null spaces to this .safetensors file.")] = None,
    npz: Annotated[Path | None, typer.Option(help="Also write EasyEdit/ROME .npz statistics to this folder.")] = None,
    hparams: Hparams = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Compute covariances and null spaces of a model, once, into the cache."""
    wanted = _Wanted.of(layers, corpus, stats_dir, tokens, threshold, energy, nullity, hparams, cache, quiet)
    ready = wanted.ready(*_loaded(model, dtype, device, trust_remote_code, cache), model, [method])
    table = Table(title=f"{escape(model)}: null spaces at {ready.hyperparameters.null_space}")
    for title in ("layer", "d_in", "nullity", "leakage", "factored P", "dense P (float32)"):
        table.add_column(title, justify="right")
    for layer, space in ready.null_spaces.items():
        table.add_row(
            str(layer),
            str(space.d_in),
            f"{space.nullity} ({100 * space.nullity / space.d_in:.0f} %)",
            f"{space.leakage(ready.statistics.covariances[layer]):.3f}",
            _size(space.factor.numel() * 4),
            _size(space.d_in**2 * 4),
        )
    console.print(table)
    text = ready.statistics.provenance["text"]
    source, root = escape(str(ready.statistics.provenance["source"])), escape(str(ready.store.root))
    console.print(f"from {text['tokens']:,} tokens of {source}; cached in {root}")
    if out is not None:
        ready.null_spaces.save(out)
        console.print(f"null spaces written to {escape(str(out))}")
    if npz is not None:
        from ..model.decoder import Decoder

        for layer, projection in (
            Decoder(ready.model, ready.hyperparameters.rewrite_module_tmp)
            .out_projections(ready.hyperparameters.layers)
            .items()
        ):
            path = npz / f"{projection.name}_float32_mom2_{text['tokens']}.npz"
            ready.statistics.covariances[layer].save_npz(path, sample_size=text["tokens"])
            console.print(f"statistics written to {escape(str(path))}")


@app.command()
def inspect(
    model: Model = DEMO_MODEL,
    method: Method = "alphaedit",
    layers: Layers = None,
    corpus: Corpus = None,
    stats_dir: StatsDir = None,
    tokens: Tokens = None,
    threshold: Threshold = None,
    energy: Energy = None,
    nullity: Nullity = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the spectra, into this PNG, SVG or PDF.")] = None,
    hparams: Hparams = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Show, for each layer, what different thresholds would make null, and draw the spectra."""
    from ..nullspace.spectrum import THRESHOLDS, Spectrum, check_format
    from ..nullspace.spectrum import plot as draw

    if plot is not None:
        check_format(plot)
    wanted = _Wanted.of(layers, corpus, stats_dir, tokens, threshold, energy, nullity, hparams, cache, quiet)
    ready = wanted.ready(*_loaded(model, dtype, device, trust_remote_code, cache), model, [method])
    criterion = ready.hyperparameters.null_space
    spectra = [Spectrum.of(layer, space, criterion) for layer, space in ready.null_spaces.items()]
    table = Table(
        title=f"{escape(model)}: nullity (leakage) by threshold; chosen: {criterion}",
        caption="leakage tr(PCP)/tr(C): the share of preserved keys' energy that the null space still holds",
    )
    marked = criterion.threshold
    table.add_column("layer", justify="right")
    table.add_column("d_in", justify="right")
    for value in THRESHOLDS:
        chosen_one = marked == value
        table.add_column(f"[reverse]▸{value:g}[/reverse]" if chosen_one else f"{value:g}", justify="right")
    if marked not in THRESHOLDS:
        table.add_column(f"[reverse]▸{criterion}[/reverse]", justify="right")
    for spectrum in spectra:
        counts = [int((spectrum.eigenvalues < value).sum()) for value in THRESHOLDS]
        if marked not in THRESHOLDS:
            counts.append(spectrum.nullity)
        cells = [f"{count}\n({spectrum.leakage(count):.2f})" if count else "–" for count in counts]
        column = THRESHOLDS.index(marked) if marked in THRESHOLDS else len(cells) - 1
        cells[column] = f"[bold]{cells[column]}[/bold]"
        table.add_row(str(spectrum.layer), str(len(spectrum.eigenvalues)), *cells)
    console.print(table)
    text = ready.statistics.provenance["text"]
    console.print(f"from {text['tokens']:,} tokens of {escape(str(ready.statistics.provenance['source']))}")
    if plot is not None:
        draw(spectra, plot)
        console.print(f"spectra drawn in {escape(str(plot.resolve()))}")


class _Lists(TyperCommand):
    """`--methods a b c` besides `--methods a --methods b`, and the same for every option that is a list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        option, first = "", False
        for arg in (part for word in args for part in _split(word, lists)):
            if arg.startswith("--") or arg in ("-q",):
                option, first = (arg, True) if arg in lists else ("", False)
                spread.append(arg)
            elif option and (first or _goes_on(option, arg)):
                spread += [arg] if first else [option, arg]
                first = False
            else:
                option = ""
                spread.append(arg)
        return super().parse_args(ctx, spread)


def _split(arg: str, lists: set[str]) -> list[str]:
    """`--methods=a` as two words."""
    name, equals, value = arg.partition("=")
    return [name, value] if equals and name in lists else [arg]


def _goes_on(option: str, word: str) -> bool:
    """Whether a further word belongs to the list: what could be the model does not, where that can be told."""
    if option == "--methods":
        return _are_variants(word)
    if option in ("--data", "--facts"):
        return not Path(word).is_dir() and word != DEMO_MODEL
    return True


def _are_variants(text: str) -> bool:
    try:
        return bool(_variants([text]))
    except AlphaEditError:
        return False


def _variants(words: Sequence[str]) -> list[str]:
    """Commas separate variants too, but for those inside brackets."""
    from ..comparison.cell import canonical

    return [canonical(name) for word in words for name in re.split(r"[,\s]+(?![^\[{]*[\]}])", word) if name]


@app.command(cls=_Lists)
def compare(
    model: Model = DEMO_MODEL,
    methods: Annotated[
        list[str] | None, typer.Option(help="Variants. Default: memit memit+P alphaedit, or the study's.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "--facts",
            help="CounterFact, ZsRE, KnowEdit, MQuAKE, …: files or names on the hub. Default: ours.",
        ),
    ] = None,
    edits: Annotated[int | None, typer.Option(help="How many facts. Default: all of --data, 20 of ours.")] = None,
    batch: Annotated[int, typer.Option(help="Facts written at a time.")] = 10,
    every: Annotated[
        int | None, typer.Option(help="Measure after every so many facts too, not only at the end.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Facts drawn and ordered by each of these. Default: the file's order.")
    ] = None,
    models: Annotated[list[str] | None, typer.Option(help="Instead of MODEL: several.")] = None,
    study: Annotated[str | None, typer.Option(help=f"A preset: {', '.join(STUDIES)}.")] = None,
    texts: Annotated[
        int | None, typer.Option(help="Let the model write about so many of the facts: free, fluency. Default: none.")
    ] = None,
    snippets: Annotated[
        Path | None, typer.Option(help="Reference texts for consistency: attribute_snippets.json, or a corpus.")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="General capability: folder of SST, MRPC, CoLA, … as JSON.")
    ] = None,
    task_limit: Annotated[int, typer.Option(help="Examples of each task.")] = 100,
    harness: Annotated[list[str] | None, typer.Option(help="Tasks of lm-evaluation-harness, if installed.")] = None,
    shift: Annotated[Path | None, typer.Option(help="Held-out prompts whose hidden states are watched.")] = None,
    shift_limit: Annotated[int, typer.Option(help="How many of them.")] = 200,
    jobs: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    keep_sessions: Annotated[
        bool, typer.Option("--keep-sessions", help="Leave the edits in --out: other measures then need no edits.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out records that are malformed.")] = False,
    held_out: Annotated[Path | None, typer.Option(help="Text for perplexity. Default: the one that ships.")] = None,
    layers: Layers = None,
    corpus: Corpus = None,
    stats_dir: StatsDir = None,
    tokens: Tokens = None,
    threshold: Threshold = None,
    energy: Energy = None,
    nullity: Nullity = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; a run that was killed goes on. Default: runs/<time>.")
    ] = None,
    hparams: Hparams = None,
    baseline_hparams: Annotated[
        Path | None, typer.Option(help="Folder of METHOD.yaml for variants easyedit:METHOD.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
    quiet: Quiet = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Edit facts with each variant from the same start, and show what each keeps and breaks."""
    from ..comparison import jobs as processes
    from ..comparison.campaign import Campaign
    from ..comparison.run_folder import read_run
    from ..report import export, table, write_report

    started = time.perf_counter()
    plan = Plan(tuple(_variants(methods)) if methods else None, edits, every, texts, tokens)
    counts = (jobs, batch, edits, every, task_limit, shift_limit)
    if any(value is not None and value < 1 for value in counts) or (texts is not None and texts < 0):
        raise RequestError("--jobs, --batch, --edits, --every, --task-limit and --shift-limit must be at least 1")
    if methods is not None and not plan.methods:
        raise HyperparameterError("--methods names no variant")
    if worker:
        processes.end_with_parent()
    folder = (out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")).resolve()
    arguments, of_worker = sys.argv[1:], ["--out", str(folder), "--worker", "--quiet"]
    if worker:  # what was asked for is the command without what made this process
        arguments = arguments[: -len(of_worker)]
    campaign = Campaign(
        models=tuple(models or [model]),
        data=tuple(data or ()),
        seeds=tuple(seeds or [None]),
        study=study,
        plan=plan,
        batch=batch,
        snippets=snippets,
        tasks=tasks,
        task_limit=task_limit,
        harness=tuple(harness or ()),
        shift=shift,
        shift_limit=shift_limit,
        held_out=held_out,
        skip_bad=skip_bad,
        baseline_hparams=baseline_hparams,
        keep_sessions=keep_sessions,
        folder=folder,
        progress=not quiet,
        command=("alphaedit", *arguments),
    )

    wanted = _Wanted.of(layers, corpus, stats_dir, tokens, threshold, energy, nullity, hparams, cache, quiet)

    def loaded(name: str) -> tuple[Any, Any]:
        return _loaded(name, dtype, device, trust_remote_code, cache)

    with processes.helping(0 if worker else jobs - 1, [*arguments, *of_worker]):
        campaign.run(
            loaded, wanted.ready, wait=not worker, on_row=lambda _: None if worker else export(read_run(folder), folder)
        )
    if worker:
        return
    comparisons = read_run(folder)
    export(comparisons, folder)
    for comparison in comparisons:
        console.print(table(comparison))
    spent = time.perf_counter() - started
    console.print(f"{spent:.0f} s in all; summary.json, .csv, .md and .tex are in {escape(str(folder))}")
    try:
        console.print(f"report: {escape(str(write_report(comparisons, folder)))}")
    except CompareError as failure:  # the numbers are safe: a picture may follow
        logging.getLogger(__name__).warning("no report: %s. Then run `alphaedit report %s`", failure, folder)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A folder that `alphaedit compare` wrote, finished or not.")],
) -> None:
    """Write the tables and the HTML page of a comparison anew, and print its tables."""
    from ..comparison.run_folder import read_run
    from ..report import export, table, write_report

    comparisons = read_run(run)
    export(comparisons, run)
    for comparison in comparisons:
        console.print(table(comparison))
    console.print(f"report: {escape(str(write_report(comparisons, run)))}")


@app.command()
def edit(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, Hugging Face name, or the demo model.")],
    facts: Annotated[Path, typer.Argument(help="JSON or .jsonl records: prompt, subject, target_new.")],
    out: Annotated[Path, typer.Option(help="Folder for the result. One that holds a session of ours goes on.")],
    method: Method = "alphaedit",
    batch: Annotated[int, typer.Option(help="Facts written at a time.")] = 50,
    lora: Annotated[bool, typer.Option("--lora", help="Write a PEFT adapter in place of the whole model.")] = False,
    layers: Layers = None,
    corpus: Corpus = None,
    stats_dir: StatsDir = None,
    tokens: Tokens = None,
    threshold: Threshold = None,
    energy: Energy = None,
    nullity: Nullity = None,
    hparams: Hparams = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Write facts into a model: a checkpoint (or an adapter), a patch, and a session that can go on or be undone."""
    from tqdm.auto import tqdm

    from ..editors.requests import load_requests
    from ..errors import SessionError
    from ..session.folder import is_session
    from ..session.session import Session

    requests = load_requests(facts)
    variant = Variant.parse(method)
    if batch < 1:
        raise RequestError("--batch must be at least 1")
    folder = out / SESSION
    if is_session(folder):
        session = _resumed(folder, device, trust_remote_code, cache, quiet)
        if (str(session.variant), model_name(session.model)) != (str(variant), model):
            raise SessionError(
                f"{out} holds a session of {session.variant} on {model_name(session.model)}, not of {variant} on "
                f"{model}: choose another folder"
            )
    else:
        wanted = _Wanted.of(layers, corpus, stats_dir, tokens, threshold, energy, nullity, hparams, cache, quiet)
        ready = wanted.ready(*_loaded(model, dtype, device, trust_remote_code, cache), model, [method])
        session = Session(
            ready.model,
            ready.tokenizer,
            variant,
            ready.null_spaces if variant.projected else None,
            hyperparameters=ready.hyperparameters,
            covariances=ready.statistics.covariances,
            autosave=folder,
            progress=not quiet,
        )
    known = set(session.facts)
    todo = [request for request in requests if request not in known]
    if len(todo) < len(requests):
        console.print(f"{len(requests) - len(todo)} of {len(requests)} facts are in the session already")
    with tqdm(total=len(todo), desc=str(variant), unit="fact", disable=quiet) as bar:
        for start in range(0, len(todo), batch):
            bar.update(len(session.edit(todo[start : start + batch])))
    _export(session, out, lora=lora, whole=not lora)


@app.command()
def undo(
    folder: Annotated[Path, typer.Argument(help="What `alphaedit edit --out` wrote.")],
    batches: Annotated[int, typer.Option(help="How many batches, latest first.")] = 1,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Take back the last batches of an edit, exactly, and write its results anew."""
    session = _resumed(folder / SESSION, device, trust_remote_code, cache, quiet)
    for fact in session.undo(batches):
        console.print(f"undone: {escape(fact.text)} → {escape(fact.target_new)}")
    _export(session, folder)


@app.command()
def apply(
    model: Annotated[str, typer.Argument(help="The model that the patch was made on.")],
    patch: Annotated[Path, typer.Argument(help="A patch.safetensors of `alphaedit edit`.")],
    out: Annotated[Path, typer.Option(help="Folder for the resulting checkpoint.")],
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out of a model that holds it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Transfer it to another model of the same shape.")] = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    cache: Cache = None,
) -> None:
    """Apply a patch to a model, or take it out again, bit for bit."""
    from ..errors import PatchError
    from ..model.loading import load, save_checkpoint
    from ..session.patch import apply_patch, revert_patch

    if revert and force:
        raise PatchError("--revert is exact or not at all: it cannot be combined with --force")
    _quieten()
    with console.status(f"loading {escape(model)}"):
        loaded, tokenizer = load(
            model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, store=Store(cache)
        )
    about = revert_patch(loaded, patch) if revert else apply_patch(loaded, patch, check_model=not force)
    save_checkpoint(loaded, tokenizer, out)
    done = "taken out of" if revert else "applied to"
    what = f"{len(about.get('facts', []))} facts ({about.get('method', 'of unknown origin')})"
    console.print(f"{escape(what)} {done} {escape(model)}: {escape(str(out.resolve()))}")


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def easyedit(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A Python script that uses EasyEdit; its own arguments follow.")],
) -> None:
    """Run a script with EasyEdit understanding `null_space`. Not a line of the script changes."""
    importlib.import_module("alphaedit_plugin.easyedit")
    if not script.is_file():
        raise RequestError(f"there is no script {script}")
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.resolve().parent))  # as python itself does
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove the entries.")] = False,
    kind: Annotated[str | None, typer.Option(help=f"Only one of {', '.join(KINDS)}.")] = None,
    cache: Cache = None,
) -> None:
    """Show what the cache holds, or clear it."""
    if kind is not None and kind not in KINDS:
        raise StoreError(f"the cache has no kind {kind!r}; known are {', '.join(KINDS)}")
    store = Store(cache)
    if clear:
        console.print(f"{_size(store.clear(kind))} freed in {escape(str(store.root))}")
        return
    entries = [entry for entry in store.entries() if kind in (None, entry.kind)]
    table = Table(title=escape(str(store.root)))
    table.add_column("kind")
    table.add_column("made from")
    table.add_column("size", justify="right")
    for entry in entries:
        recipe = entry.recipe
        made_from = recipe.get("module") or recipe.get("criterion") or f"model {str(recipe.get('model', '?'))[:12]}"
        table.add_row(entry.kind, made_from, _size(entry.size))
    table.add_section()
    table.add_row("all", f"{len(entries)} files", _size(sum(entry.size for entry in entries)))
    console.print(table)


def _loaded(model: str, dtype: str, device: str, trust_remote_code: bool, cache: Path | None) -> tuple[Any, Any]:
    from ..model.loading import load

    _quieten()
    with console.status(f"loading {escape(model)}"):
        return load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, store=Store(cache))


@dataclass(frozen=True)
class _Wanted:
    """What the options say of layers, text and null spaces: checked before a model is loaded."""

    layers: tuple[int, ...] | None
    corpus: str | None
    stats_dir: Path | None
    tokens: int | None
    criterion: Criterion | None
    hparams: Hyperparameters | None
    cache: Path | None
    quiet: bool

    @classmethod
    def of(
        cls,
        layers: str | None,
        corpus: str | None,
        stats_dir: Path | None,
        tokens: int | None,
        threshold: float | None,
        energy: float | None,
        nullity: float | None,
        hparams: Path | None,
        cache: Path | None,
        quiet: bool,
    ) -> _Wanted:
        given = Hyperparameters.from_yaml(hparams) if hparams else None
        criterion = _criterion(threshold, energy, nullity)
        return cls(_layers(layers), corpus, stats_dir, tokens, criterion, given, cache, quiet)

    def ready(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        methods: Sequence[str],
        layers_of: Mapping[str, Sequence[int]] | None = None,
    ) -> Ready:
        """The hyperparameters and statistics of `methods` for the model called `name`.

        `layers_of` names the layers of methods whose hyperparameters are not ours.
        """
        from ..nullspace.statistics import prepare_statistics, statistics_from_npz

        store = Store(self.cache)
        hyperparameters = {}
        for method in methods:
            variant = _ours(method)
            base = self.hparams or Hyperparameters.for_model(variant.method, model, name)
            values = variant.hyperparameters(model, name, base.with_layers(self.layers))
            hyperparameters[method] = replace(values, null_space=self.criterion) if self.criterion else values
        templates = {values.rewrite_module_tmp for values in hyperparameters.values()}
        if len(templates) > 1:
            raise HyperparameterError(f"the methods edit different modules ({templates}): compare them in two runs")
        template = templates.pop()
        budgets: dict[int | None, set[int]] = {}
        for method, values in hyperparameters.items():
            chosen = (layers_of or {}).get(method, values.layers)
            budgets.setdefault(values.tokens or self.tokens, set()).update(chosen or values.layers)
        if self.stats_dir is not None and budgets.keys() - {self.tokens}:
            raise HyperparameterError("with --stats-dir no method can choose its tokens: they are those of the files")
        statistics = {
            budget: statistics_from_npz(model, sorted(chosen), self.stats_dir, template=template)
            if self.stats_dir is not None
            else prepare_statistics(
                model,
                tokenizer,
                sorted(chosen),
                source=self.corpus,
                tokens=budget,
                template=template,
                store=store,
                progress=not self.quiet,
            )
            for budget, chosen in budgets.items()
        }
        of_method = {method: statistics[values.tokens or self.tokens] for method, values in hyperparameters.items()}

        def last_layer() -> int:
            usual = Hyperparameters.shipped_for("alphaedit", name) or Hyperparameters.derived("alphaedit", model)
            usual = (self.hparams or usual).with_layers(self.layers)
            return max(max(values.layers) for values in (usual, *hyperparameters.values()))

        return Ready(model, tokenizer, store, hyperparameters, of_method, last_layer)


def _ours(method: str) -> Variant:
    """The variant of ours whose layers and statistics a method has: itself, or what EasyEdit's is most like."""
    from ..baselines.names import is_baseline, parse_baseline

    if not is_baseline(method):
        return Variant.parse(method)
    name = parse_baseline(method).method.lower()
    return Variant.parse(name if name in METHODS or name in MODIFIERS else "memit")


def _resumed(folder: Path, device: str, trust_remote_code: bool, cache: Path | None, quiet: bool) -> Session:
    """The session in a folder, on the model that it names."""
    from ..model.loading import load
    from ..session.folder import read_manifest
    from ..session.session import Session

    values = read_manifest(folder)
    _quieten()
    with console.status(f"loading {escape(values['model'])}"):
        model, tokenizer = load(
            values["model"],
            dtype=values["dtype"],
            device=device,
            trust_remote_code=trust_remote_code,
            store=Store(cache),
        )
        return Session.resume(folder, model, tokenizer, progress=not quiet)


def _export(session: Session, out: Path, *, lora: bool = False, whole: bool = False) -> None:
    """Finish the sequence, write what people take away from it, and say what it is."""
    from ..model.loading import save_checkpoint
    from ..report import session_table

    session.finish()
    lora, whole = lora or (out / LORA).exists(), whole or (out / CHECKPOINT).exists()  # none is left behind
    session.to_patch(out / PATCH)
    written = {PATCH: "the edit, for `alphaedit apply` and `--revert`", SESSION: "to go on, or `alphaedit undo`"}
    if lora and session.facts:
        ranks = session.to_lora(out / LORA)
        written[LORA] = f"PEFT adapter, rank {max(ranks.values())}"
    elif lora:
        shutil.rmtree(out / LORA, ignore_errors=True)
    if whole:
        save_checkpoint(session.model, session.tokenizer, out / CHECKPOINT)
        written[CHECKPOINT] = "ordinary checkpoint"
    console.print(session_table(session.report()))
    for name, meaning in written.items():
        console.print(f"{escape(str(out / name))}: {escape(meaning)}")


def _quieten() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
) -> None:
    if context.invoked_subcommand == "easyedit":
        return  # how the script logs is its own business
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )


def main() -> None:
    """Entry point: errors of ours are one line, without a traceback."""
    try:
        app()
    except AlphaEditError as error:
        text = escape(" ".join(str(error).split()))
        Console(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
