"""Run variants of an editor side by side: same start, same facts, same order."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from . import __version__
from .editors.keys import context_templates
from .editors.layered import LayeredEditor
from .editors.targets import Targets
from .errors import CorpusError
from .evaluation.facts import Fact
from .evaluation.scores import score
from .evaluation.scoring import perplexity
from .fingerprint import fingerprints
from .history import is_session
from .hparams import Hyperparameters
from .modules import Decoder
from .nullspace import NullSpaces
from .prepare import Statistics, null_spaces_of
from .runs import RunFolder, identity_of
from .session import Session, put_back
from .store import Store
from .trace import evaluating
from .variant import Variant
from .weights import drift, leakage

log = logging.getLogger(__name__)

PERPLEXITY_WINDOW = 256


@dataclass(frozen=True)
class Row:
    """One variant, or the model before any edit ("before").

    `metrics` are the means of `per_fact` (`evaluation.scores`), shares from 0 to 1, with 95 % `intervals`; drift and
    leakage go by layer.
    """

    variant: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_fact: dict[str, list[float | None]]
    perplexity: float
    seconds: float = 0.0
    drift: dict[int, float] = field(default_factory=dict)
    leakage: dict[int, float] = field(default_factory=dict)
    identity: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Row:
        """From `Comparison.as_dict`, as JSON gives it back."""
        named = {name: values[name] for name in cls.__dataclass_fields__ if name != "metrics"}
        named["metrics"] = {name: values[name] for name in values["per_fact"] if name in values}
        named["intervals"] = {name: tuple(ends) for name, ends in values["intervals"].items()}
        for by_layer in ("drift", "leakage"):
            named[by_layer] = {int(layer): value for layer, value in values[by_layer].items()}
        return cls(**named)

    @property
    def mean_drift(self) -> float:
        return sum(self.drift.values()) / len(self.drift) if self.drift else 0.0

    @property
    def mean_leakage(self) -> float:
        return sum(self.leakage.values()) / len(self.leakage) if self.leakage else 0.0


@dataclass(frozen=True)
class Comparison:
    """The rows of a run and everything needed to repeat it."""

    rows: list[Row]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "rows": [
                {
                    "variant": row.variant,
                    **row.metrics,
                    **{name: value for name, value in vars(row).items() if name not in ("variant", "metrics")},
                    "mean_drift": row.mean_drift,
                    "mean_leakage": row.mean_leakage,
                }
                for row in self.rows
            ],
        }


def compare(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    variants: Sequence[str],
    hyperparameters: Hyperparameters | Mapping[str, Hyperparameters],
    statistics: Statistics,
    *,
    batch_size: int,
    held_out: str,
    store: Store | None = None,
    folder: Path | None = None,
    on_row: Callable[[Comparison], None] = lambda comparison: None,
    progress: bool = False,
    settings: dict[str, Any] | None = None,
) -> Comparison:
    """Edit `facts` in sequential batches with each of `variants` and measure; the model ends as it began.

    A batch holds `batch_size` facts (of MQuAKE's, which are several requests each, that many cases).

    `hyperparameters` are one for all, or by the variant's name; `statistics` are of all layers that any of them
    edits. What variants have in common is computed once, and its time counted for each: the targets of the first
    batch, and all edits where only PRUNE's damping at the end differs. `on_row` gets what there is after each row.

    With `folder` every row is written there as soon as it is measured, and a run that was killed goes on after the
    last batch that it wrote; the result is that of a run without interruption. Rows that the folder holds already
    are not measured again.
    """
    parsed = {str(variant): variant for variant in map(Variant.parse, variants)}
    chosen = {
        name: variant.hyperparameters(
            model, "", hyperparameters if isinstance(hyperparameters, Hyperparameters) else hyperparameters[name]
        )
        for name, variant in parsed.items()
    }
    batches = [
        [request for fact in facts[i : i + batch_size] for request in fact.requests]
        for i in range(0, len(facts), batch_size)
    ]
    edits = sum(map(len, batches))
    windows = held_out_windows(held_out, tokenizer)
    spaces = {
        name: null_spaces_of(statistics.of_layers(chosen[name].layers), chosen[name].null_space, store=store)
        for name, variant in parsed.items()
        if variant.projected
    }
    for null_spaces in spaces.values():
        null_spaces.check(model)

    contexts: dict[Any, tuple[str, ...]] = {}
    first: dict[Any, tuple[Targets, float]] = {}
    run = RunFolder(folder) if folder is not None else None
    common = {
        "model": fingerprints(model, [len(Decoder(model)) - 1]),
        "facts": [asdict(fact) for fact in facts],
        "windows": windows,
    }
    identities = {
        name: identity_of(
            {**common, "variant": name, "batch_size": batch_size, "hyperparameters": values.as_dict()}
            | {"statistics": statistics.provenance}
        )
        for name, values in chosen.items()
    }
    identities["before"] = identity_of(common)
    measured: dict[str, Row] = {}
    if run is not None:
        for name, identity in identities.items():
            if (values_ := run.row(identity)) is not None:
                measured[name] = Row.read(values_)

    described = {name: _described(of, statistics) for name, of in spaces.items()}

    def comparison() -> Comparison:
        return Comparison(
            [measured[name] for name in ("before", *parsed) if name in measured],
            {
                **(settings or {}),
                "variants": list(parsed),
                "edits": edits,
                "batch_size": batch_size,
                "hyperparameters": {name: values.as_dict() for name, values in chosen.items()},
                "contexts": [list(templates) for templates in contexts.values()],
                "statistics": statistics.provenance,
                "null_spaces": described,
                "held_out_tokens": sum(map(len, windows)),
                "environment": environment(),
            },
        )

    def add(row: Row) -> None:
        measured[row.variant] = replace(row, identity=identities[row.variant])
        so_far = comparison()
        if run is not None:
            run.save(so_far.as_dict())
        on_row(so_far)

    if "before" not in measured:
        add(_measure("before", model, tokenizer, facts, windows, progress))
    for name in parsed:
        if name in measured:
            continue
        # Together: those whose edits are the same, the damped ones last.
        together = [n for n in parsed if (parsed[n].trajectory, chosen[n]) == (parsed[name].trajectory, chosen[name])]
        together.sort(key=lambda n: parsed[n].prune)
        values = chosen[name]
        lengths = values.context_template_length_params
        if lengths not in contexts:
            with evaluating(model):
                contexts[lengths] = context_templates(model, tokenizer, lengths)
        underway = run.session(name, identities[name]) if run is not None else None
        with (
            put_back(Decoder(model, values.rewrite_module_tmp).out_projections(values.layers)),
            tqdm(total=edits, desc=" ".join(together), unit="fact", disable=not progress) as bar,
        ):
            spent, targets = 0.0, None
            if underway is not None and is_session(underway):
                session = Session.resume(underway, model, tokenizer, check_model=False, progress=progress)
                spent = RunFolder.spent(underway)
                bar.update(len(session.facts))
            else:
                session = Session(
                    model,
                    tokenizer,
                    parsed[together[-1]],
                    spaces.get(name),
                    hyperparameters=values,
                    covariances=statistics.covariances,
                    contexts=contexts[lengths],
                    autosave=underway,
                    check_model=False,
                    progress=progress,
                )
                if isinstance(session.editor, LayeredEditor):
                    key = (max(values.layers), values.target_settings, lengths)
                    if key not in first:
                        started = time.perf_counter()
                        first[key] = session.editor.targets(batches[0]), time.perf_counter() - started
                    targets, spent = first[key]
            for batch in batches[len(session.batches) :]:
                started = time.perf_counter()
                session.edit(batch, None if session.batches else targets)
                spent += time.perf_counter() - started
                if underway is not None:
                    RunFolder.keep_spent(underway, spent)
                bar.update(len(batch))
            for each in together:
                if each in measured:
                    continue
                if parsed[each].prune:
                    started = time.perf_counter()
                    session.finish()
                    spent += time.perf_counter() - started
                now = {layer: projection.matrix for layer, projection in session.projections.items()}
                covariances = statistics.covariances  # a resumed session need not hold any
                add(
                    _measure(
                        each,
                        model,
                        tokenizer,
                        facts,
                        windows,
                        progress,
                        seconds=spent,
                        drifts={layer: drift(session.base[layer], weight) for layer, weight in now.items()},
                        leakages={
                            layer: leakage(session.base[layer], weight, covariances[layer])
                            for layer, weight in now.items()
                        },
                    )
                )
        if run is not None and underway is not None:
            run.finished(underway)
    return comparison()


def _described(null_spaces: NullSpaces, statistics: Statistics) -> dict[str, Any]:
    return {
        "criterion": null_spaces.provenance.get("criterion"),
        "nullity": {layer: space.nullity for layer, space in null_spaces.items()},
        "leakage": {layer: space.leakage(statistics.covariances[layer]) for layer, space in null_spaces.items()},
    }


def _measure(
    name: str,
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    windows: Sequence[Sequence[int]],
    progress: bool,
    seconds: float = 0.0,
    drifts: dict[int, float] | None = None,
    leakages: dict[int, float] | None = None,
) -> Row:
    scores = score(model, tokenizer, facts, progress=progress)
    return Row(
        variant=name,
        metrics=scores.means(),
        intervals=scores.intervals(),
        per_fact={  # JSON has no nan
            metric: [None if isnan(value) else value for value in values] for metric, values in vars(scores).items()
        },
        perplexity=perplexity(model, windows, progress=progress),
        seconds=seconds,
        drift=drifts or {},
        leakage=leakages or {},
    )


def held_out_windows(text: str, tokenizer: Any) -> list[list[int]]:
    """A text as windows of 256 tokens, for perplexity."""
    ids = tokenizer(text)["input_ids"]
    windows = [ids[i : i + PERPLEXITY_WINDOW] for i in range(0, len(ids), PERPLEXITY_WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise CorpusError("the held-out text is empty: perplexity needs some")
    return windows


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a number."""
    return {
        "alphaedit_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
