"""A trial tells what an edit would do, costs no more than it has to, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.weights import matrices

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.layered import LayeredEditor
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import TuningError
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.tuning.trials import DRIFT_COST, PARTS, Trial, Trials


@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit", "rome", "rect", "prune"])
def test_a_trial_tells_what_a_session_with_these_settings_does(method, model, tokenizer, pilot, preparation, start):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trial = Trials(model, tokenizer, Variant.parse(method), pilot, preparation)(start)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    session = Session(model, tokenizer, method, hyperparameters=start, preparation=preparation)
    session.edit([fact.request for fact in pilot])
    session.finish()
    found = score(model, tokenizer, pilot).means()
    assert trial.scores == pytest.approx({part: found[part] for part in PARTS})
    assert trial.drift == pytest.approx(max(session.report().drift.values()))
    assert trial.drift > 0


def test_targets_are_shared_where_they_are_the_same(model, tokenizer, pilot, preparation, start, monkeypatch):
    made = []
    targets = LayeredEditor.targets
    monkeypatch.setattr(LayeredEditor, "targets", lambda self, requests: made.append(1) or targets(self, requests))
    settings = [
        start,
        replace(start, mom2_update_weight=3.0),
        start.with_layers((2,)),
        replace(start, v_lr=0.1),
        start.with_layers((0, 1)),
    ]
    shared = Trials(model, tokenizer, Variant.parse("memit"), pilot, preparation)
    together = [shared(each) for each in settings]
    assert len(made) == 3
    for each, trial in zip(settings, together, strict=True):
        alone = Trials(model, tokenizer, Variant.parse("memit"), pilot, preparation)(each)
        assert (alone.scores, alone.drift) == (trial.scores, trial.drift)


def test_a_trial_that_fails_says_why_and_scores_below_all_others(model, tokenizer, pilot, preparation, start):
    before = {layer: matrix.clone() for layer, matrix in matrices(model, start.layers).items()}
    trials = Trials(model, tokenizer, Variant.parse("alphaedit"), pilot, preparation)
    trial = trials(replace(start, null_space=Criterion(threshold=1e-30)))
    assert "null" in trial.failure
    assert trial.score < trials(start).score
    assert all(torch.equal(matrix, before[layer]) for layer, matrix in matrices(model, start.layers).items())


def test_what_is_in_the_ledger_is_not_tried_again(model, tokenizer, pilot, preparation, start, tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    variant = Variant.parse("memit")
    first = Trials(model, tokenizer, variant, pilot, preparation, path)(start)
    with monkeypatch.context() as patched:
        patched.setattr(Session, "edit", lambda *_, **__: pytest.fail("it was tried before"))
        assert Trials(model, tokenizer, variant, pilot, preparation, path)(start) == first
    others = [
        Trials(model, tokenizer, variant, pilot[:2], preparation, path)(start),
        Trials(model, tokenizer, Variant.parse("rect"), pilot, preparation, path)(start),
    ]
    assert all(other.seconds != first.seconds for other in others)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"scores": {}}}'])
def test_another_file_is_no_ledger(content, model, tokenizer, pilot, preparation, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text(content)
    with pytest.raises(TuningError, match=r"ledger\.json"):
        Trials(model, tokenizer, Variant.parse("memit"), pilot, preparation, path)
    assert path.read_text() == content


def test_the_score_is_the_harmonic_mean_less_the_drift():
    settings = Hyperparameters(layers=(0,))
    shares = dict(zip(PARTS, (1.0, 0.5, 0.25), strict=True))
    assert Trial(settings, shares, 0.5).score == pytest.approx(3 / (1 + 2 + 4) - DRIFT_COST * 0.5)
    assert Trial(settings, {"efficacy": 0.5}).score == 0.5
    assert Trial(settings, {**shares, "efficacy": 0.0}).score == 0
