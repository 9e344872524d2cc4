"""Comparisons of a whole run: every model × data set × seed, measured alike, in one folder."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..baselines.hyperparameters import hyperparameters, layers_of
from ..baselines.names import is_baseline, parse_baseline
from ..editors.variant import Variant
from ..errors import CompareError, CorpusError, NullSpaceError, RequestError
from ..evaluation.datasets import Dataset, load_dataset
from ..evaluation.fact_scores import Facts
from ..evaluation.facts import Fact
from ..evaluation.measure import Measure
from ..evaluation.perplexity import Perplexity
from ..model.decoder import Decoder
from ..nullspace.null_spaces import null_spaces_of
from ..storage.files import file_digest
from ..storage.shipped import shipped
from .cell import canonical, compare
from .preparation import Ready
from .results import Comparison
from .run_folder import identity_of
from .studies import SHARES, Plan, Study, sampled, study_named

log = logging.getLogger(__name__)

DEFAULTS = Plan(methods=("memit", "memit+P", "alphaedit"), texts=0)
DEMO_EDITS = 20
MULTIHOP_CASES = 100


@dataclass(frozen=True)
class _Given:
    """Measures that are made once for a whole run, and prompts for the one that needs a layer and facts."""

    texts: Measure | None
    measures: list[Measure]
    prompts: list[str]

    def of_facts(self, facts: Sequence[Fact]) -> Iterator[Measure]:
        """Those that facts decide about."""
        if self.texts is not None:
            yield self.texts
        if any(fact.questions for fact in facts):
            from ..evaluation.multihop import MultiHop

            yield MultiHop(limit=MULTIHOP_CASES)


@dataclass(frozen=True)
class _Read:
    """All that a run reads, and so checks, before any model.

    By source and seed: `facts` are those to edit, `prompts` those of which the shift is measured, if it is.
    """

    study: Study
    plan: Plan
    datasets: Mapping[str, Dataset]
    facts: Mapping[tuple[str, int | None], list[Fact]]
    prompts: Mapping[tuple[str, int | None], list[str]]
    held_out: Path
    text: str
    given: _Given


@dataclass(frozen=True)
class Campaign:
    """What `alphaedit compare` was asked for. Data, prompts and texts are read, and so checked, before any model."""

    models: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int | None, ...]
    study: str | None
    plan: Plan
    batch: int
    snippets: Path | None
    tasks: Path | None
    task_limit: int
    harness: tuple[str, ...]
    shift: Path | None
    shift_limit: int
    held_out: Path | None
    skip_bad: bool
    baseline_hparams: Path | None
    keep_sessions: bool
    folder: Path
    progress: bool
    command: tuple[str, ...]

    def run(
        self,
        load: Callable[[str], tuple[Any, Any]],
        ready: Callable[[Any, Any, str, Sequence[str], Mapping[str, Sequence[int]]], Ready],
        *,
        wait: bool = True,
        on_row: Callable[[Comparison], None] = lambda comparison: None,
    ) -> None:
        """Every comparison; `load` gives (model, tokenizer) by name, `ready` what its methods need."""
        read = self._read()
        cells = self._cells(list(read.datasets))
        for name in self.models:  # in a call of its own: one model is gone before the next one comes
            self._of_model(name, cells, read, load, ready, wait, on_row)

    def _read(self) -> _Read:
        study = study_named(self.study)
        if study.several_models and len(set(self.models)) < 2:
            raise CompareError("the study of models needs several: --models A B")
        plan = self.plan.over(study.plan).over(DEFAULTS)
        sources = self.data or (str(shipped("examples/facts.json")),)
        datasets = {source: load_dataset(source, skip_bad=self.skip_bad) for source in sources}
        pools = {source: list(study.facts(dataset.facts)) for source, dataset in datasets.items()}
        fewest = min(map(len, pools.values()))
        if plan.edits is not None and plan.edits > fewest:
            raise RequestError(f"--edits must be from 1 to {fewest} (the facts there are)")
        facts = {
            (source, seed): sampled(pool, plan.edits or (len(pool) if self.data else DEMO_EDITS), seed)
            for source, pool in pools.items()
            for seed in self.seeds
        }
        held_out = self.held_out or shipped("examples/heldout.txt")
        given = self._given_measures(plan)
        prompts = {key: self._held_out(given.prompts, of) for key, of in facts.items()} if given.prompts else {}
        return _Read(study, plan, datasets, facts, prompts, held_out, _text(held_out), given)

    def _of_model(
        self,
        name: str,
        cells: Mapping[tuple[str, str, int | None], str],
        read: _Read,
        load: Callable[[str], tuple[Any, Any]],
        ready: Callable[[Any, Any, str, Sequence[str], Mapping[str, Sequence[int]]], Ready],
        wait: bool,
        on_row: Callable[[Comparison], None],
    ) -> None:
        model, tokenizer = load(name)
        tokens = read.plan.tokens or 0
        if read.study.shares_text and not tokens:  # the least share is to be two for each dimension
            tokens = round(2 / min(SHARES)) * Decoder(model).out_projection(0).d_in
        methods = [canonical(method) for method in read.study.methods(read.plan.methods or (), tokens)]
        baseline_hparams = self._baseline_hparams(methods)
        prepared = ready(model, tokenizer, name, methods, _layers_of_baselines(model, methods, baseline_hparams))
        if self.study is not None:
            methods = _possible(prepared, methods)
        perplexity = Perplexity(read.text, tokenizer)
        for (source, seed), facts in read.facts.items():
            measures = [Facts(), *read.given.of_facts(facts), perplexity, *read.given.measures]
            if read.prompts:
                from ..evaluation.shift import Shift

                measures.append(Shift(read.prompts[source, seed], prepared.last_layer()))
            compare(
                model,
                tokenizer,
                facts,
                methods,
                prepared.hyperparameters_of,
                prepared.statistics_of,
                batch_size=self.batch,
                measures=measures,
                every=read.plan.every,
                baseline_hparams=baseline_hparams,
                store=prepared.store,
                folder=self.folder / cells[name, source, seed],
                keep_sessions=self.keep_sessions,
                wait=wait,
                on_row=on_row,
                progress=self.progress,
                settings=self._settings(prepared, name, source, seed, read.datasets[source], facts, read.held_out),
            )

    def _cells(self, sources: Sequence[str]) -> dict[tuple[str, str, int | None], str]:
        """The folder of each cell, readable; cells that are called alike are told apart by a hash."""
        cells = [(name, source, seed) for name in self.models for source in sources for seed in self.seeds]
        names = Counter(cell_name(*cell) for cell in dict.fromkeys(cells))
        return {
            cell: cell_name(*cell) + (f"-{identity_of(cell)[:6]}" if names[cell_name(*cell)] > 1 else "")
            for cell in cells
        }

    def _baseline_hparams(self, methods: Sequence[str]) -> dict[str, Any]:
        """Of EasyEdit's variants, where the folder has a METHOD.yaml."""
        if self.baseline_hparams is None:
            return {}
        if not self.baseline_hparams.is_dir():
            raise CompareError(f"--baseline-hparams {self.baseline_hparams} is no folder")
        paths = {
            name: self.baseline_hparams / f"{parse_baseline(name).method}.yaml" for name in methods if is_baseline(name)
        }
        return {name: str(path) for name, path in paths.items() if path.exists()}

    def _given_measures(self, plan: Plan) -> _Given:
        """What the options ask for, as far as no model is needed: a wrong one is known before hours have gone."""
        found: list[Measure] = []
        texts, prompts = None, []
        if self.snippets is not None and not plan.texts:
            raise CompareError("--snippets needs texts to hold against them: say --texts N")
        if plan.texts:
            from ..evaluation.consistency import references
            from ..evaluation.texts import Texts

            texts = Texts(limit=plan.texts, references=references(self.snippets) if self.snippets else None)
        if self.tasks is not None:
            from ..evaluation.capability import Capability

            found.append(Capability.from_folder(self.tasks, limit=self.task_limit))
        if self.harness:
            from ..evaluation.harness import Harness

            found.append(Harness(self.harness, limit=self.task_limit))
        if self.shift is not None:
            from ..evaluation.shift import FEWEST, prompts_from

            if self.shift_limit < FEWEST:
                raise RequestError(f"--shift-limit must be at least {FEWEST}, not {self.shift_limit}")
            prompts = prompts_from(self.shift)
        return _Given(texts, found, prompts)

    def _held_out(self, prompts: Sequence[str], facts: Sequence[Fact]) -> list[str]:
        """The first that are about none of the facts. Raises RequestError if these are too few."""
        from ..evaluation.shift import FEWEST, held_out

        found = list(dict.fromkeys(held_out(prompts, facts)))
        if len(found) < FEWEST:
            raise RequestError(
                f"only {len(found)} of the prompts of --shift name no edited subject, and {FEWEST} are needed: give "
                "others"
            )
        return found[: self.shift_limit]

    def _settings(
        self,
        prepared: Ready,
        name: str,
        source: str,
        seed: int | None,
        dataset: Dataset,
        facts: Sequence[Fact],
        held_out: Path,
    ) -> dict[str, Any]:
        return {
            "command": list(self.command),
            "date": date.today().isoformat(),
            "study": self.study,
            "model": name,
            "data": source,
            "format": dataset.format,
            "seed": seed,
            "data_sha256": identity_of([asdict(fact) for fact in facts]),
            "left_out": dataset.bad,
            "held_out": str(held_out),
            "held_out_sha256": file_digest(held_out, CorpusError),
            "dtype": str(prepared.model.dtype),
            "device": str(Decoder(prepared.model).device),
        }


def _layers_of_baselines(model: Any, methods: Sequence[str], given: Mapping[str, Any]) -> dict[str, list[int]]:
    named = {name: parse_baseline(name) for name in methods if is_baseline(name)}
    return {name: layers_of(hyperparameters(of, model, given.get(name))) for name, of in named.items()}


def _possible(prepared: Ready, methods: Sequence[str]) -> list[str]:
    """Those of a study's variants that leave something null and something not, on this model; the others are warned of.

    Raises NullSpaceError where none does.
    """
    found, failure_of_last = [], None
    for method in methods:
        try:
            if not is_baseline(method) and (variant := Variant.parse(method)).projected:
                values = variant.hyperparameters(prepared.model, "", prepared.hyperparameters_of[method])
                statistics = prepared.statistics_of[method].of_layers(values.layers)
                null_spaces_of(statistics, values.null_space, store=prepared.store)
            found.append(method)
        except NullSpaceError as failure:
            failure_of_last = failure
            log.warning("%s is left out: %s", method, failure)
    if failure_of_last is not None and not found:
        raise failure_of_last
    return found


def cell_name(model: str, source: str, seed: int | None) -> str:
    """What a cell is called."""
    parts = [Path(model.rstrip("/")).name, Path(source.rstrip("/")).stem, *([] if seed is None else [f"seed{seed}"])]
    return "-".join(re.sub(r"[^\w.+=-]", "_", part) for part in parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise CorpusError(f"cannot read the held-out text {path}: {failure}") from failure
