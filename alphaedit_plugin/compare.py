"""Run variants of an editor side by side: same start, same facts, same order."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from . import __version__
from .editors.keys import context_templates
from .editors.targets import Targets
from .errors import CorpusError, EditError
from .evaluation.counterfact import Fact, score
from .evaluation.scoring import perplexity
from .evaluation.weights import drift, leakage
from .files import write_text
from .hparams import Hyperparameters
from .nullspace import NullSpaces
from .prepare import Statistics
from .session import Session, Variant, put_back
from .trace import evaluating

log = logging.getLogger(__name__)

PERPLEXITY_WINDOW = 256


@dataclass(frozen=True)
class Row:
    """One variant, or the model before any edit ("before"). Shares from 0 to 1; drift and leakage by layer."""

    variant: str
    efficacy: float
    generalization: float
    specificity: float
    perplexity: float
    seconds: float = 0.0
    drift: dict[int, float] = field(default_factory=dict)
    leakage: dict[int, float] = field(default_factory=dict)
    per_fact: dict[str, list[float]] = field(default_factory=dict)

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
                {**vars(row), "mean_drift": row.mean_drift, "mean_leakage": row.mean_leakage} for row in self.rows
            ],
        }

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False), EditError)


def compare(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    variants: Sequence[str],
    hyperparameters: Hyperparameters,
    statistics: Statistics,
    null_spaces: NullSpaces,
    *,
    batch_size: int,
    held_out: str,
    progress: bool = False,
    settings: dict[str, Any] | None = None,
) -> Comparison:
    """Edit `facts` in sequential batches with each of `variants` and measure; the model ends as it began.

    The targets of the first batch are computed once: every variant starts from the same weights. Their time is
    counted for each.
    """
    names = [str(Variant.parse(variant)) for variant in variants]
    requests = [fact.request for fact in facts]
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    windows = held_out_windows(held_out, tokenizer)
    rows = [_measure("before", model, tokenizer, facts, windows, progress)]

    if any(Variant.parse(name).projected for name in names):
        null_spaces.check(model)
    with evaluating(model):
        contexts = context_templates(model, tokenizer)
    first: Targets | None = None
    first_seconds = 0.0
    for name in names:
        session = Session(
            model,
            tokenizer,
            name,
            hyperparameters,
            statistics.covariances,
            null_spaces,
            contexts=contexts,
            check_model=False,
            progress=progress,
        )
        projections = session.editor.projections
        with (
            put_back(projections) as before,
            tqdm(total=len(requests), desc=name, unit="fact", disable=not progress) as bar,
        ):
            started = time.perf_counter()
            if first is None:
                first = session.editor.targets(batches[0])
                first_seconds = time.perf_counter() - started
                started = time.perf_counter()
            for index, batch in enumerate(batches):
                session.edit(batch, first if index == 0 else None)
                bar.update(len(batch))
            seconds = time.perf_counter() - started + first_seconds
            after = {layer: p.matrix for layer, p in projections.items()}
            rows.append(
                _measure(
                    name,
                    model,
                    tokenizer,
                    facts,
                    windows,
                    progress,
                    seconds=seconds,
                    drifts={layer: drift(before[layer], after[layer]) for layer in after},
                    leakages={
                        layer: leakage(before[layer], after[layer], statistics.covariances[layer]) for layer in after
                    },
                )
            )
    return Comparison(
        rows,
        {
            **(settings or {}),
            "variants": names,
            "edits": len(requests),
            "batch_size": batch_size,
            "hyperparameters": hyperparameters.as_dict(),
            "contexts": list(contexts),
            "statistics": statistics.provenance,
            "null_spaces": {
                "criterion": null_spaces.provenance.get("criterion"),
                "nullity": {layer: space.nullity for layer, space in null_spaces.items()},
                "leakage": {
                    layer: space.leakage(statistics.covariances[layer]) for layer, space in null_spaces.items()
                },
            },
            "held_out_tokens": sum(map(len, windows)),
            "environment": environment(),
        },
    )


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
        **scores.means(),
        perplexity=perplexity(model, windows, progress=progress),
        per_fact={metric: list(values) for metric, values in vars(scores).items()},
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
