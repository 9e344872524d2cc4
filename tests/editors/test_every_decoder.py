"""Of every architecture: is the fact learned? Models that know a small world are taught otherwise, with one setting.

Whether the parts of a decoder are found says little: edits of models that norm what their out-projections put out went
wrong while such tests passed. So these ask for the outcome. `python benchmarks/architectures.py` prints it as a table.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support.bed import FACTS, REQUESTS, Bed
from support.learned import DECODERS
from support.weights import assert_same, everything

from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.nullspace.guard import guard

QUICK = ("llama", "gemma2")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in DECODERS],
)
def bed(request, tmp_path_factory):
    return Bed(request.param, tmp_path_factory.mktemp("bed"))


MOST = 0.6
"""Of eight facts. The models are trained where the test runs, and its rounding decides what they become: the
worst case seen is five."""


def test_there_are_thirty_architectures_and_more():
    assert len(set(DECODERS)) >= 30


def test_facts_are_learned_and_neighbours_kept(bed):
    """By plain and projected MEMIT and by AlphaEdit; and the hidden state moves to where it was asked."""
    before = bed.before
    assert before["efficacy"] == 0
    assert before["specificity"] >= 0.95
    for method in ("memit", "memit+P", "alphaedit"):
        found = bed.outcome(method)
        assert found.scores["efficacy"] >= MOST, method
        assert found.scores["specificity"] >= 0.5, method
        assert found.cosine > 0.95, method
        assert abs(found.length - 1) < 0.3, method
        if method != "memit":
            assert max(found.outside.values()) < 1e-4, method


def test_rome_learns_each_fact(bed):
    found = bed.outcome("rome")
    assert found.scores["efficacy"] >= 0.5
    assert found.scores["specificity"] >= 0.35


def test_a_session_is_undone_bit_for_bit_and_its_adapter_says_the_same(bed, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    weights = everything(bed.model)
    session = bed.session("alphaedit")
    session.edit(REQUESTS, bed.targets(), on_failure="ignore")
    said = score(bed.model, bed.tokenizer, FACTS).means()
    session.to_lora(tmp_path / "lora")
    session.undo()
    assert_same(everything(bed.model), weights)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(bed.model), str(tmp_path / "lora"))
    found = score(adapted, bed.tokenizer, FACTS).means()
    assert found == pytest.approx(said, abs=0.1)


def test_under_the_guard_facts_are_learned_inside_the_null_space(bed):
    start = {layer: weight.clone() for layer, weight in matrices(bed).items()}
    with guard(bed.model, bed.null_spaces):
        bed.session("memit").edit(REQUESTS, bed.targets(), on_failure="ignore")
    moved = {layer: weight - start[layer] for layer, weight in matrices(bed).items()}
    learned = score(bed.model, bed.tokenizer, FACTS).means()
    with torch.no_grad():
        for layer, weight in matrices(bed).items():
            weight.copy_(start[layer])
    assert learned["efficacy"] >= MOST
    for layer, change in moved.items():
        assert float(change.norm()) > 0
        assert float((change - bed.null_spaces[layer].project(change)).norm() / change.norm()) < 1e-4


def matrices(bed):
    return {layer: projection.matrix for layer, projection in bed.session("memit").projections.items()}
