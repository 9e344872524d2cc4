"""The search: better than where it began, only by what the method has, and never longer than it may take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import TuningError
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.tuning import search as search_module
from alphaedit_plugin.tuning.budget import Budget
from alphaedit_plugin.tuning.search import MARGIN, tune
from alphaedit_plugin.tuning.trials import Trials

LAMBDAS = {"mom2_update_weight", "L2"}
OPTIMISER = {"clamp_norm_factor"}


def changed(trials) -> set[str]:
    """The names of the settings that differ among trials."""
    found = [trial.hyperparameters.as_dict() for trial in trials]
    return {key for key in found[0] if len({str(values[key]) for values in found}) > 1}


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("memit", {"mom2_update_weight"}),
        ("memit+P", {"mom2_update_weight", "null_space"}),
        ("alphaedit", {"L2", "null_space"}),
        ("rome", set()),
        ("rect", {"mom2_update_weight"}),
    ],
)
def test_it_ends_no_worse_than_it_began_and_moves_what_the_method_has(
    method, own, model, tokenizer, pilot, preparation, start
):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = tune(model, tokenizer, pilot, method, start=start, preparation=preparation)
    assert found.finished
    assert all(found.best.score > trial.score - MARGIN for trial in found.trials)
    assert changed(found.trials) == {"layers", *OPTIMISER, *own}
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_what_is_kept_stays(model, tokenizer, pilot, preparation, start):
    found = tune(
        model,
        tokenizer,
        pilot,
        "alphaedit@v_lr=0.25",
        start=start,
        keep={"layers", "null_space"},
        preparation=preparation,
    )
    assert changed(found.trials) == {"L2", "clamp_norm_factor"}
    assert found.best.hyperparameters.v_lr == 0.25
    assert found.best.hyperparameters.layers == start.layers
    assert found.trace is None


def over_during(monkeypatch, trial: int, passes: int) -> None:
    """The time is over when the trial of this number, from 1, has run so many forward passes."""
    begun, made = [], Trials._made
    monkeypatch.setattr(Trials, "_made", lambda self, *given: begun.append(0) or made(self, *given))

    def left(_budget) -> float:
        if len(begun) < trial:
            return 60.0
        begun[-1] += 1
        return float(passes - begun[-1])

    monkeypatch.setattr(Budget, "left", property(left))


@pytest.mark.parametrize(("trial", "passes"), [(2, 1), (2, 4), (3, 9)])
def test_when_the_time_is_over_the_best_so_far_counts(
    trial, passes, model, tokenizer, pilot, preparation, start, tmp_path, monkeypatch
):
    """Whatever was under way is taken back; the same call with the same ledger goes on."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = {"start": start, "preparation": preparation, "ledger": tmp_path / "ledger.json"}
    with monkeypatch.context() as patched:
        over_during(patched, trial, passes)
        first = tune(model, tokenizer, pilot, "memit", **arguments)
    assert not first.finished
    assert first.best in first.trials
    assert len(first.trials) == trial - 1
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not model._forward_pre_hooks
    edits, edit = [], Session.edit
    monkeypatch.setattr(
        Session, "edit", lambda self, *given, **options: edits.append(1) or edit(self, *given, **options)
    )
    second = tune(model, tokenizer, pilot, "memit", **arguments)
    assert second.finished
    assert list(second.trials[: len(first.trials)]) == list(first.trials)
    assert len(edits) == len(second.trials) - len(first.trials)


def test_a_budget_too_small_for_one_trial_is_an_error_and_changes_nothing(model, tokenizer, pilot, preparation, start):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(TuningError, match="--minutes"):
        tune(model, tokenizer, pilot, "memit", minutes=1e-6, start=start, preparation=preparation)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not model._forward_pre_hooks


def test_a_slow_model_is_tried_with_fewer_facts(model, tokenizer, pilot, preparation, start, monkeypatch, caplog):
    monkeypatch.setattr(search_module.Trials, "seconds_per_fact", lambda *_: 20.0)
    many: list[Fact] = [
        replace(fact, requests=(replace(fact.requests[0], case_id=number),)) for number in range(4) for fact in pilot
    ]
    found = tune(model, tokenizer, many, "memit", start=start, preparation=preparation)
    assert found.facts == 5
    assert "5 facts instead of 12" in caplog.text


def test_it_begins_with_what_is_derived_in_the_traced_layers_and_in_the_derived_ones(
    model, tokenizer, pilot, preparation
):
    derived = Hyperparameters.derived("rome", model)
    found = tune(model, tokenizer, pilot[:1], "rome", preparation=preparation, minutes=5)
    assert found.trace is not None
    layers = [trial.hyperparameters.layers for trial in found.trials]
    assert layers[0] == found.trace.best_layers(1)
    assert derived.layers in layers[:2]


def test_no_facts_are_an_error(model, tokenizer):
    with pytest.raises(TuningError, match="no facts"):
        tune(model, tokenizer, [])
