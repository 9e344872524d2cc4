"""A whole run: comparisons on every model × data set × seed, measured in the same way, in one folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from ..editors.chat import Chat
from ..editors.hyperparameters import Hyperparameters
from ..errors import CompareError, CorpusError, RequestError
from ..evaluation.datasets import Dataset, load_dataset, source_and_form
from ..evaluation.facts import Fact
from ..model.decoder import Decoder
from ..nullspace.statistics import Preparation
from ..storage.files import file_digest
from ..storage.shipped import shipped
from .cell import Cell
from .contender import Contender, Ground
from .contenders import contenders, prepared
from .course import Course
from .easyedits import EasyEditMethod
from .measuring import Measures, Measuring
from .ours import OurMethod
from .results import SEVERAL, Comparison
from .run_folder import RunFolder, identity_of
from .studies import SHARES, Plan, Study, sampled, study_named

DEFAULTS = Plan(methods=("memit", "memit+P", "alphaedit"), texts=0)
DEMO_EDITS = 20

Key = tuple[str, str, int | None]
"""A cell: model, data, seed."""


@dataclass(frozen=True)
class Campaign:
    """Everything that `alphaedit compare` was asked for.

    With `stream`, the facts of all `data` are written one after another into the same model, as a single comparison.
    `preparation`, `layers` and `hyperparameters` apply to every method; `baseline_hparams` is a folder of METHOD.yaml
    files for EasyEdit's methods. Data, prompts and texts are read, and so checked, before any model is loaded.
    """

    models: tuple[str, ...]
    folder: Path
    data: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = (None,)
    study: str | None = None
    plan: Plan = field(default_factory=Plan)
    batch: int = 10
    stream: bool = False
    targets_once: bool = False
    skip_bad: bool = False
    chat: bool = False
    measuring: Measuring = field(default_factory=Measuring)
    preparation: Preparation = field(default_factory=Preparation)
    layers: tuple[int, ...] | None = None
    hyperparameters: Hyperparameters | None = None
    baseline_hparams: Path | None = None
    keep_sessions: bool = False
    progress: bool = False
    command: tuple[str, ...] = ()

    def run(
        self,
        load: Callable[[str], tuple[Any, Any]],
        *,
        wait: bool = True,
        on_row: Callable[[Comparison], None] = lambda comparison: None,
    ) -> None:
        """Run every comparison; `load` returns (model, tokenizer) for a name.

        Raises AlphaEditError, naming what is wrong, for options, data or texts that cannot be used.
        """
        read = self.read()
        for name in self.models:  # in a separate call: one model is freed before the next one is loaded
            self._run_on(name, load, read, wait, on_row)

    def read(self) -> Read:
        """Everything that needs no model. Raises AlphaEditError for what cannot be used."""
        study = study_named(self.study)
        if study.several_models and len(set(self.models)) < 2:
            raise CompareError("the study of models needs several: --models A B")
        plan = self.plan.over(study.plan).over(DEFAULTS)
        chosen = contenders(plan.methods or ())
        for each in chosen:
            if isinstance(each, EasyEditMethod):
                each.check_chat(self.chat)
        if self.baseline_hparams is not None and not self.baseline_hparams.is_dir():
            raise CompareError(f"--baseline-hparams {self.baseline_hparams} is no folder")
        files = {file: None for of in self._sources.values() for file in of}
        datasets = {file: load_dataset(file, skip_bad=self.skip_bad) for file in files}
        pools = {file: list(study.facts(dataset.facts)) for file, dataset in datasets.items()}
        fewest = min(map(len, pools.values()))
        if plan.edits is not None and plan.edits > fewest:
            raise RequestError(f"--edits must be from 1 to {fewest} (the facts there are)")

        def drawn(file: str, seed: int | None) -> list[Fact]:
            return sampled(pools[file], plan.edits or (len(pools[file]) if self.data else DEMO_EDITS), seed)

        facts = {
            (source, seed): [fact for file in of for fact in drawn(file, seed)]
            for source, of in self._sources.items()
            for seed in self.seeds
        }
        once = self.targets_once or study.targets_once
        courses = {key: Course(tuple(of), self.batch, plan.every, once) for key, of in facts.items()}
        measures = self.measuring.read(plan.texts or 0)
        prompts = {key: measures.held_out_prompts(of) for key, of in facts.items()}
        joined = {
            source: Dataset(
                SEVERAL.join(dict.fromkeys(datasets[file].format for file in of)),
                [fact for file in of for fact in datasets[file].facts],
                [bad for file in of for bad in datasets[file].bad],
            )
            for source, of in self._sources.items()
        }
        return Read(study, plan, chosen, joined, courses, prompts, measures)

    def _run_on(
        self,
        name: str,
        load: Callable[[str], tuple[Any, Any]],
        read: Read,
        wait: bool,
        on_row: Callable[[Comparison], None],
    ) -> None:
        """Run all cells of one model."""
        model, tokenizer = load(name)
        chosen = read.contenders_on(model, self.preparation.tokens or 0)
        ground = Ground(
            model,
            Chat.of(tokenizer) if self.chat else tokenizer,
            name,
            self.preparation,
            self.layers,
            self.hyperparameters,
            baseline_hparams=self.baseline_hparams_of(chosen),
        )
        entries = prepared(chosen, ground, skip_impossible=self.study is not None)
        layers = sorted({layer for of in entries for layer in (*of.watched, *ground.usual_layers())})
        template = self.hyperparameters.rewrite_module_tmp if self.hyperparameters is not None else None
        for (source, seed), course in read.courses.items():
            facts = list(course.facts)
            cell = Cell(
                ground,
                entries,
                course,
                list(read.measures.of(tokenizer, facts, read.prompts[source, seed], layers, template)),
                RunFolder(self.folder / self._cells[name, source, seed]),
                self.keep_sessions,
                on_row,
                self.progress,
                self._described(ground, source, seed, read.datasets[source], facts),
            )
            cell.run(wait)

    @cached_property
    def _sources(self) -> dict[str, tuple[str, ...]]:
        """What the facts of a comparison are called → the files that they come from."""
        files = tuple(dict.fromkeys(self.data or (str(shipped("examples/facts.json")),)))
        return {SEVERAL.join(files): files} if self.stream else {file: (file,) for file in files}

    @cached_property
    def _cells(self) -> dict[Key, str]:
        """Readable folder names by cell; a hash distinguishes cells of the same name."""
        cells: list[Key] = [
            (name, source, seed) for name in self.models for source in self._sources for seed in self.seeds
        ]
        names = Counter(cell_folder(*cell) for cell in dict.fromkeys(cells))
        return {
            cell: cell_folder(*cell) + (f"-{identity_of(_located(cell))[:6]}" if names[cell_folder(*cell)] > 1 else "")
            for cell in cells
        }

    def baseline_hparams_of(self, chosen: list[Contender]) -> dict[str, Any]:
        """contender's name → path, for EasyEdit's methods that have a METHOD.yaml in the folder."""
        if self.baseline_hparams is None:
            return {}
        paths = {
            each.name: self.baseline_hparams / f"{each.named.method}.yaml"
            for each in chosen
            if isinstance(each, EasyEditMethod)
        }
        return {name: str(path) for name, path in paths.items() if path.exists()}

    def _described(
        self, ground: Ground, source: str, seed: int | None, dataset: Dataset, facts: list[Fact]
    ) -> dict[str, Any]:
        held_out = self.measuring.held_out_file
        return {
            "command": list(self.command),
            "date": date.today().isoformat(),
            "study": self.study,
            "model": ground.name,
            "data": source,
            "format": dataset.format,
            "seed": seed,
            "data_sha256": identity_of([asdict(fact) for fact in facts]),
            "left_out": dataset.bad,
            "held_out": str(held_out),
            "held_out_sha256": file_digest(held_out, CorpusError),
            "dtype": str(ground.model.dtype),
            "device": str(Decoder(ground.model).device),
        }


@dataclass(frozen=True)
class Read:
    """All that a run reads before loading a model. `courses` are by source and seed."""

    study: Study
    plan: Plan
    chosen: list[Contender]
    datasets: Mapping[str, Dataset]
    courses: Mapping[tuple[str, int | None], Course]
    prompts: Mapping[tuple[str, int | None], list[str]]
    measures: Measures

    def contenders_on(self, model: Any, tokens: int) -> list[Contender]:
        """The study's contenders on this model, with `tokens` tokens of text (0: the default)."""
        if self.study.shares_text and not tokens:  # so that the smallest share has two tokens per dimension
            tokens = round(2 / min(SHARES)) * Decoder(model).out_projection(0).d_in
        found: list[Contender] = []
        for each in self.chosen:
            expanded = list(self.study.methods([each.name], tokens)) if isinstance(each, OurMethod) else [each.name]
            found += [each] if expanded == [each.name] else contenders(expanded)
        return list({each.name: each for each in found}.values())


def _located(cell: Key) -> list[Any]:
    """The cell with resolved paths, so that it does not depend on how a path is written."""
    return [str(Path(part).resolve()) if isinstance(part, str) and Path(part).exists() else part for part in cell]


def cell_folder(model: str, source: str, seed: int | None) -> str:
    """The name of a cell's folder."""
    named = [source_and_form(file) for file in source.split(SEVERAL)]
    files = "+".join("-".join([Path(data.rstrip("/")).stem, *([form] if form else [])]) for data, form in named)
    parts = [Path(model.rstrip("/")).name, files, *([] if seed is None else [f"seed{seed}"])]
    return "-".join(re.sub(r"[^\w.+=-]", "_", part) for part in parts)
