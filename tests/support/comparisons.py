"""Comparisons as a run would leave them, made up: nothing is edited. Numbers fall and rise as they do in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alphaedit_plugin.comparison.results import BEFORE, Comparison, Row
from alphaedit_plugin.evaluation.measure import Estimate, Measured, mean_of
from alphaedit_plugin.evaluation.metrics import METRICS, metric

VARIANTS = ("memit", "memit+P", "rect", "rect+P", "prune", "prune+P", "rome", "rome+P", "alphaedit")
MEASURES = ("facts", "answers", "texts", "multihop", "perplexity", "capability", "shift")
CHECKPOINTS = (100, 200, 300, 400, 500)
LAYERS = (4, 5, 6, 7, 8)

_RELATIONS = ("P27", "P103", "P413", "P176", "P495", "P1412")
_START = {"efficacy": 0.18, "generalization": 0.2, "specificity": 0.82, "exact": 0.01, "locality": 1.0}
_TASKS = {"sst": 0.76, "mrpc": 0.66, "cola": 0.55, "rte": 0.51, "mmlu": 0.29, "nli": 0.58}


def comparison(
    variants: Sequence[str] = VARIANTS,
    checkpoints: Sequence[int] = CHECKPOINTS,
    measures: Sequence[str] = MEASURES,
    *,
    facts: int = 120,
    seed: int | None = None,
    **settings: Any,
) -> Comparison:
    """Each of `variants` at each of `checkpoints`, with `measures`; `settings` come on top of those of a run."""
    random = np.random.default_rng(seed or 0)
    rows = [Row(BEFORE, 0, _measured(random, BEFORE, 0.0, measures, facts))]
    for index, variant in enumerate(variants):
        projected = variant.endswith("+P") or variant == "alphaedit"
        hold = 0.97 if variant == "alphaedit" else 0.9 - 0.04 * index if projected else 0.62 - 0.03 * index
        for edits in checkpoints:
            harm = (1 - hold) * edits / checkpoints[-1]
            size = (0.03 if projected else 0.16) * edits / checkpoints[-1] * (1 + 0.1 * index)
            rows.append(
                Row(
                    variant,
                    edits,
                    _measured(random, variant, harm, measures, facts),
                    seconds=edits * (1.1 + 0.07 * index),
                    drift={layer: size * (1 + 0.1 * (layer - 4)) for layer in LAYERS},
                    leakage={layer: size * (0.05 if projected else 0.8) * (9 - layer) / 5 for layer in LAYERS},
                )
            )
    spaces = [variant for variant in variants if variant.endswith("+P") or variant == "alphaedit"]
    return Comparison(
        rows,
        {
            "command": ["alphaedit", "compare", "HuggingFaceTB/SmolLM2-135M", "--data", "facts of the day.json"],
            "model": "HuggingFaceTB/SmolLM2-135M",
            "data": "../shared/data/counterfact/counterfact_500.json",
            "format": "counterfact",
            "seed": seed,
            "edits": checkpoints[-1],
            "batch_size": 50,
            "checkpoints": list(checkpoints),
            "variants": list(variants),
            "hyperparameters": {name: {"layers": list(LAYERS), "v_lr": 0.1, "clamp": 0.75} for name in variants},
            "statistics": {"corpus": "wikipedia", "tokens": 100_000},
            "null_spaces": {
                name: {
                    "criterion": "threshold 0.02",
                    "nullity": {str(layer): 1100 + 30 * layer for layer in LAYERS},
                    "leakage": {str(layer): 0.5 - 0.04 * layer for layer in LAYERS},
                }
                for name in spaces
            },
            "spectra": {
                str(layer): np.sort(10 ** np.linspace(-5 + 0.1 * layer, 1.5, 128)).tolist() for layer in LAYERS
            },
            "held_out": "examples/heldout.txt",
            "environment": {"alphaedit_plugin": "0.2.0", "torch": "2.13.0", "threads": 2},
            "left_out": ["facts.json, record 7: requested_rewrite.subject is missing"],
            "data_sha256": "ab" * 32,
            **settings,
        },
    )


def _measured(random: Any, variant: str, harm: float, measures: Sequence[str], facts: int) -> dict[str, Measured]:
    """`harm` from 0 (all is well) to 1."""
    edited = variant != BEFORE
    made = {
        "facts": lambda: _facts(random, harm, edited, facts),
        "answers": lambda: _answers(random, harm, edited, min(facts, 8)),
        "texts": lambda: _texts(random, variant, harm, min(facts, 8)),
        "multihop": lambda: Measured(_shares(random, {"multihop": 0.3 - 0.3 * harm, "hops": 0.6 - 0.5 * harm})),
        "perplexity": lambda: Measured({"perplexity": Estimate(22.4 * (1 + 60 * harm**2))}),
        "capability": lambda: Measured(
            _shares(random, {task: value * (1 - harm) for task, value in _TASKS.items()}), [{"task": "sst", "gold": 1}]
        ),
        "shift": lambda: _shift(random, harm, edited),
    }
    return {name: made[name]() for name in measures}


def _shares(random: Any, of: dict[str, float], items: int = 60) -> dict[str, Estimate]:
    return {name: _mean(random.random(items) < value) for name, value in of.items()}


def _mean(values: Any) -> Estimate:
    found = mean_of([float(value) for value in values])
    assert found is not None
    return found


def _facts(random: Any, harm: float, edited: bool, facts: int) -> Measured:
    target = {
        "efficacy": 0.99 - 0.5 * harm,
        "generalization": 0.93 - 0.6 * harm,
        "specificity": 0.8 - 0.5 * harm,
        "exact": 0.9 - 0.8 * harm,
        "locality": 0.9 - 0.8 * harm,
    }
    columns = {name: random.random(facts) < (value if edited else _START[name]) for name, value in target.items()}
    estimates = {name: _mean(values) for name, values in columns.items()}
    three = [estimates[name].value for name in ("efficacy", "generalization", "specificity")]
    score = 3 / sum(1 / max(value, 1e-9) for value in three)
    records = [
        {
            "number": i,
            "case_id": i,
            "subject": f"Subject {i}",
            "relation": _RELATIONS[i % len(_RELATIONS)],
            "prompt": f"The mother tongue of Subject {i} is",
            "target_new": "English",
            **{
                name: float(values[i]) if (i % 7 or name != "specificity") else None for name, values in columns.items()
            },
        }
        for i in range(facts)
    ]
    return Measured({**estimates, "score": Estimate(score, score - 0.03, score + 0.02)}, records)


def _answers(random: Any, harm: float, edited: bool, facts: int) -> Measured:
    estimates, right = {}, (random.random(facts) > harm) & edited
    for kind in ("efficacy", "generalization", "specificity"):
        shares = {"forced": 0.99 - 0.3 * harm, "written": 0.9 - 0.6 * harm, "exact": 0.5 - 0.4 * harm}
        estimates |= _shares(random, {f"{how}_{kind}": share * (edited or 0.2) for how, share in shares.items()})
        gap = estimates[f"forced_{kind}"].value - estimates[f"written_{kind}"].value
        estimates[f"gap_{kind}"] = Estimate(gap, gap - 0.1, gap + 0.1)
    records = [
        {
            "number": i,
            "case_id": i,
            "subject": f"Subject {i}",
            "prompt": f"The mother tongue of Subject {i} is",
            "target_new": "English",
            "written": f" {'English' if right[i] else 'French'}, and so on.",
            "written_efficacy": float(right[i]),
            "judged_efficacy": None,
        }
        for i in range(facts)
    ]
    return Measured(estimates, records)


def _texts(random: Any, variant: str, harm: float, facts: int) -> Measured:
    records = []
    for i in range(facts):
        words = "and the the the the the the the" if harm > 0.6 else "who was born in Toulouse and moved to London"
        prompts = [f"Subject {i} was born in", f"Subject {i}'s favourite book is", f"Where Subject {i} lives, people"]
        records.append(
            {
                "subject": f"Subject {i}",
                "prompt": f"The mother tongue of Subject {i} is",
                "target_new": "English",
                "texts": [{"prompt": p, "text": f" a place ({variant}) {words}. " * 3} for p in prompts],
                "fluency": 600 * (1 - harm),
                "consistency": None,
            }
        )
    fluency = 610 * (1 - 0.7 * harm)
    return Measured(
        {
            "fluency": Estimate(fluency, fluency - 5, fluency + 5),
            "consistency": Estimate(0.25 - 0.1 * harm, 0.22 - 0.1 * harm, 0.27 - 0.1 * harm),
        },
        records,
    )


def _shift(random: Any, harm: float, edited: bool, prompts: int = 80) -> Measured:
    if not edited:
        return Measured({})
    before = random.normal(size=(prompts, 2))
    after = before + 4 * harm * (1 + random.normal(size=(prompts, 2)) / 4)
    records = [
        {"prompt": f"prompt {i}", "before": before[i].tolist(), "after": after[i].tolist(), "shift": harm}
        for i in range(prompts)
    ]
    lost = {"prompt": "lost", "before": None, "after": None, "shift": None}
    names = [name for name in ("shift_d1", "shift_d2") if name in METRICS]
    return Measured({**{name: Estimate(1 - harm) for name in names}, "hausdorff": Estimate(3 * harm)}, [*records, lost])


PLAIN = {"edits": 20, "batch_size": 10}


def row(variant: str, efficacy: float, *, edits: int = 20, drift: float = 0.05, **metrics: float) -> Row:
    estimates = {"efficacy": Estimate(efficacy, efficacy - 0.02, efficacy + 0.01), "specificity": Estimate(0.8)}
    estimates |= {name: Estimate(value) for name, value in metrics.items()}
    by_measure: dict[str, dict[str, Estimate]] = {}
    for name, estimate in estimates.items():
        by_measure.setdefault(metric(name).group, {})[name] = estimate
    return Row(
        variant,
        edits,
        {name: Measured(found) for name, found in by_measure.items()},
        100.0,
        {4: drift, 5: drift} if drift else {},
        {4: 0.001, 5: 0.003} if drift else {},
    )


ROWS = [
    row("before", 0.1, edits=0, drift=0.0, perplexity=55.5),
    row("memit@mom2_update_weight=0+P", 0.5, edits=10, perplexity=57.0),
    row("memit@mom2_update_weight=0+P", 0.9, perplexity=60.0),
    row("alphaedit", 0.95, perplexity=55.5),
]
COMPARISON = Comparison(ROWS, PLAIN)
UNDER_WAY = Comparison(
    [
        ROWS[0],
        row("memit", 0.5, edits=2),
        row("memit", 0.95, edits=4),
        row("memit+P", 0.6, edits=2),
    ],
    {"edits": 4, "batch_size": 2, "variants": ["memit", "memit+P", "alphaedit"]},
)
"""memit has finished, memit+P is half done, alphaedit has not begun."""
