"""What the tests of comparisons compare: a tiny model, facts as CounterFact has them, and statistics that fit."""

from __future__ import annotations

from dataclasses import replace

import torch

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.results import Comparison, Row
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.model.fingerprint import fingerprints
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Statistics
from support.editing import HYPERPARAMETERS, LAYERS, RECORDS
from support.spaces import random_covariance
from support.tiny import model_of

HELD_OUT = "When the king came home from the war, the people of the village had already forgotten his name."
# Steps so long that singular values outgrow the weights', or PRUNE would have nothing to damp.
LONG = replace(HYPERPARAMETERS, v_lr=50.0, clamp_norm_factor=300.0, null_space=Criterion(nullity=15), L2=0.1)
OTHERS = {
    "rome": replace(LONG, layers=(1,), v_lr=0.2, clamp_norm_factor=4.0),
    "rect+prune": replace(LONG, v_num_grad_steps=3),  # not the edits of rect
}


def facts_of(count: int) -> list[Fact]:
    return [
        Fact(
            (Request.parse({**record, "case_id": number}, "fact"),),
            "Paris",
            (f"They said that {record['subject']} is in",),
            ("The Louvre is in", "Leonardo da Vinci was born in"),
        )
        for number, record in enumerate([*RECORDS, {**RECORDS[0], "subject": "Leonardo"}][:count])
    ]


def statistics_of(model) -> Statistics:
    prints = fingerprints(model, LAYERS)
    provenance = {"model": "tiny", "fingerprints": {str(layer): prints[layer] for layer in LAYERS}, "template": None}
    return Statistics({layer: random_covariance(24, layer) for layer in LAYERS}, provenance)


def compared(model, tokenizer, names: list[str], *, facts: int | list[Fact] = 3, **options) -> Comparison:
    canonical = [str(Variant.parse(name)) for name in names]
    options = {
        "hyperparameters": {name: OTHERS.get(name, LONG) for name in canonical},
        "statistics": statistics_of(model),
        "batch_size": 2,
        "measures": [FactScores(), Perplexity(HELD_OUT, tokenizer)],
        **options,
    }
    given = facts_of(facts) if isinstance(facts, int) else facts
    return compare(model, tokenizer, given, names, **options)


def timeless(row: Row) -> Row:
    return replace(row, seconds=0.0)


def fresh():
    return model_of(dtype=torch.float32)
