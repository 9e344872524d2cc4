"""What is said of any decoder works on a second real model, whose blocks norm what their out-projections put out."""

from __future__ import annotations

from importlib import util

import pytest
import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.model.gguf import PACKAGED
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped

GEMMA = "gemma-3-270m"
MISSING = next((package for package, _ in PACKAGED[GEMMA].parts if util.find_spec(package) is None), None)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed: {PACKAGED[GEMMA].install}"),
]


@pytest.fixture(scope="module")
def gemma():
    """(model, tokenizer, eight facts, the hyperparameters that ship, statistics)."""
    model, tokenizer = load(GEMMA)
    facts = load_facts(shipped("examples/facts.json"))[::20][:8]
    hyperparameters = Hyperparameters.for_model("memit", model, GEMMA)
    statistics = prepare_statistics(
        model, tokenizer, hyperparameters.layers, source=shipped("examples/heldout.txt"), tokens=4000
    )
    return model, tokenizer, facts, hyperparameters, statistics


@pytest.fixture(scope="module")
def edited(gemma):
    """(session after its edit, its targets, the hidden states that were asked for, those reached)."""
    model, tokenizer, facts, hyperparameters, statistics = gemma
    requests = [fact.request for fact in facts]
    session = Session(model, tokenizer, "memit", hyperparameters=hyperparameters, covariances=statistics.covariances)
    targets = session.editor.targets(requests)
    before = hidden_states(session, requests)
    session.edit(requests, targets)
    yield session, targets, before, hidden_states(session, requests)
    session.undo()


def hidden_states(session, requests):
    """n × layers × d, by Hugging Face's own forward, one prompt at a time."""
    found = []
    with torch.no_grad():
        for request in requests:
            text = request.prompt.partition("{}")[0] + request.subject
            states = session.model(**session.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
            found.append(torch.stack([states.hidden_states[layer + 1][0, -1] for layer in session.projections]))
    return torch.stack(found)


def test_memit_teaches_facts_and_keeps_neighbours(gemma, edited):
    model, tokenizer, facts, *_ = gemma
    means = score(model, tokenizer, facts).means()
    assert means["efficacy"] >= 0.95
    assert means["generalization"] >= 0.80
    assert means["specificity"] >= 0.45  # of 80 prompts about neighbours


def test_weights_move_by_less_than_half(edited):
    session, *_ = edited
    assert all(drift < 0.5 for drift in session.report().drift.values())


def test_hidden_states_move_to_where_they_were_asked(edited):
    _, targets, before, after = edited
    wanted, achieved = targets.delta.double(), (after - before).double()
    assert torch.nn.functional.cosine_similarity(achieved, wanted, dim=-1).median() > 0.95
    assert 0.75 < (achieved.norm(dim=-1) / wanted.norm(dim=-1)).median() < 1.1


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_methods_in_the_null_space_teach_facts_too(gemma, edited, method):
    model, tokenizer, facts, hyperparameters, statistics = gemma
    session, targets, *_ = edited
    session.undo()
    try:
        spaces = null_spaces_of(statistics, hyperparameters.null_space)
        projected = Session(
            model,
            tokenizer,
            method,
            spaces,
            hyperparameters=Hyperparameters.for_model(method.partition("+")[0], model, GEMMA),
            covariances=statistics.covariances,
            contexts=session.editor.contexts,
        )
        projected.edit([fact.request for fact in facts], targets)
        means, report = score(model, tokenizer, facts).means(), projected.report()
        projected.undo()
    finally:
        session.edit([fact.request for fact in facts], targets)
    assert means["efficacy"] >= 0.95
    assert means["specificity"] >= 0.45
    assert all(outside < 1e-3 for outside in report.outside.values())
    assert all(drift < 0.5 for drift in report.drift.values())
