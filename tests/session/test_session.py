"""A session is its history: undone and finished, it is what those edits alone would have made it."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.sessions import (
    BATCHES,
    CONTEXTS,
    FACTS,
    HYPERPARAMETERS,
    LAYERS,
    METHODS,
    assert_same_session,
    assert_state,
    covariances_of,
    edited,
    every_method,
    every_trial,
    in_memory,
    large_targets,
    model_of_kind,
    reference,
    session_of,
    spaces_of,
    state,
    width_of,
    write,
)
from support.tries import tries
from support.weights import assert_same, differ, everything

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import EditError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.manifest import MANIFEST, is_session
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.store import Store

pytestmark = pytest.mark.slow

# --------------------------------------------------------------------------------------------------------- undo


@every_trial
def test_undo_leaves_what_was_never_edited(method, kind, tokenizer):
    base = everything(model_of_kind(kind))
    editing = edited(kind, tokenizer, method, 0, 1, 2)
    assert differ(everything(editing.model), everything(reference(kind, tokenizer, method, 0, 1).model))
    undone = editing.undo()
    assert [fact.case_id for fact in undone] == [record["case_id"] for record in BATCHES[2]]
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1))
    write(editing, 3)
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1, 3))
    undone = editing.undo(2)
    assert [fact.case_id for fact in undone] == [record["case_id"] for record in BATCHES[1] + BATCHES[3]]
    assert_same_session(editing, reference(kind, tokenizer, method, 0))
    editing.undo(1)
    assert editing.facts == []
    assert in_memory(editing) == {}
    assert_same(everything(editing.model), base)
    write(editing, 4, 5)
    assert_same_session(editing, reference(kind, tokenizer, method, 4, 5))


@pytest.mark.parametrize("method", ["memit-seq", "alphaedit"])
def test_undo_from_more_facts_than_dimensions_to_fewer_is_exact_for_the_weights(method, tokenizer):
    """The memory is then formed anew: what is edited afterwards agrees up to rounding."""
    model = model_of_kind("gpt2 float64")
    editing = session_of(model, tokenizer, method, "gpt2 float64")
    fewer = session_of(model_of_kind("gpt2 float64"), tokenizer, method, "gpt2 float64")
    for seed in range(4):
        editing.edit(FACTS[:10], large_targets(model, 10, seed))
        if seed < 2:
            fewer.edit(FACTS[:10], large_targets(model, 10, seed))
    assert editing.editor.memory[0].count > width_of("gpt2 float64")
    editing.undo(2)
    assert 0 < editing.editor.memory[0].count < width_of("gpt2 float64")
    assert_same(everything(model), everything(fewer.model))
    for each in (editing, fewer):
        each.edit(FACTS[10:], large_targets(model, 6, 9))
    for layer, projection in fewer.projections.items():
        assert torch.allclose(editing.projections[layer].matrix, projection.matrix, rtol=0, atol=1e-8)


@pytest.mark.parametrize("batches", [4, 100, 0, -1, True, 1.0, "1", None])
@pytest.mark.parametrize("method", ["memit", "alphaedit", "prune"])
def test_undoing_what_there_is_not_is_refused_and_changes_nothing(method, batches, tokenizer, tmp_path):
    editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    write(editing, 0, 1, 2)
    editing.finish()
    before, on_disk = state(editing), (tmp_path / "s" / MANIFEST).read_bytes()
    with pytest.raises(EditError, match="3"):
        editing.undo(batches)
    assert_state(editing, before)
    assert (tmp_path / "s" / MANIFEST).read_bytes() == on_disk


def test_a_session_without_edits_has_nothing_to_undo(tokenizer):
    with pytest.raises(EditError, match="0"):
        session_of(model_of_kind(), tokenizer, "memit").undo()


# ------------------------------------------------------------------------------------------------------- finish


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@pytest.mark.parametrize("method", ["prune", "prune+P"])
def test_finishing_damps_once_and_is_taken_back_by_whatever_follows(method, kind, tokenizer):
    editing, untouched = (edited(kind, tokenizer, method, 0, 1, 2) for _ in range(2))
    editing.finish()
    assert editing.finished
    damped = everything(editing.model)
    assert differ(damped, everything(untouched.model)), "nothing was large enough to be damped"
    editing.finish()
    assert_same(everything(editing.model), damped)
    for each in (editing, untouched):
        write(each, 3)
    assert not editing.finished
    assert_same_session(editing, untouched)

    editing.finish()
    editing.undo()
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1, 2))
    editing.finish()
    assert_same(everything(editing.model), damped)
    editing.undo(3)
    assert_same(everything(editing.model), everything(model_of_kind(kind)))


@pytest.mark.parametrize("method", [method for method in METHODS if "prune" not in method])
def test_finishing_means_nothing_to_other_methods(method, tokenizer):
    editing = edited("llama", tokenizer, method, 0)
    before = state(editing)
    editing.finish()
    assert_state(editing, before)


def test_finishing_before_anything_was_edited_does_nothing(tokenizer):
    editing = session_of(model_of_kind(), tokenizer, "prune")
    before = state(editing)
    editing.finish()
    assert_state(editing, before)


def test_a_failed_edit_leaves_a_finished_session_finished(tokenizer):
    editing = edited("llama", tokenizer, "prune", 0, 1)
    editing.finish()
    before = state(editing)
    poison = large_targets(editing.model, 1, 0)
    poison.delta.fill_(torch.nan)
    with pytest.raises(EditError):
        editing.edit(FACTS[:1], poison)
    assert_state(editing, before)
    write(editing, 2)
    assert_same_session(editing, reference("llama", tokenizer, "prune", 0, 1, 2))


# ------------------------------------------------------------------------------------------- with nothing else given


def assert_reported_inside(session: Session) -> None:
    """Rounding W + ΔW to their own precision is all that leads out of the null spaces."""
    report = session.report()
    assert set(report.outside) == set(report.drift)
    for layer, share in report.outside.items():
        assert 0 <= share < 4 * torch.finfo(session.model.dtype).eps * (1 + 1 / report.drift[layer])


def with_small_keys():
    """Keys with variances around the paper's threshold, as real models have them, so that some directions are null."""
    model = model_of_kind()
    for block in Decoder(model).blocks:
        block.mlp.up_proj.weight *= 0.2
    return model


@pytest.mark.parametrize("method", ["alphaedit", "memit+P"])
def test_everything_a_method_needs_is_prepared_once(method, tokenizer, monkeypatch):
    """No hyperparameters, no statistics, no null spaces, no contexts: they are derived, written and stored."""
    model = with_small_keys()
    editing = Session(model, tokenizer, method)
    editing.edit(FACTS[:3])
    assert differ(everything(model), everything(with_small_keys()))
    assert set(editing.report().outside) == set(editing.hyperparameters.layers)
    assert_reported_inside(editing)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this is in the store")

    monkeypatch.setattr("alphaedit_plugin.nullspace.statistics.collect", never)
    monkeypatch.setattr("alphaedit_plugin.model.sampling.self_written", never)
    monkeypatch.setattr(NullSpace, "of", never)
    again = Session(with_small_keys(), tokenizer, method)
    again.edit(FACTS[:3])
    assert_same_session(again, editing)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "prune+P"])
def test_what_was_prepared_is_saved_with_the_session(method, tokenizer, tmp_path, monkeypatch):
    """A resumed session needs no store."""
    chosen = Hyperparameters(layers=(1, 2), v_num_grad_steps=3, null_space=Criterion(nullity=0.5))
    first = Session(model_of_kind(), tokenizer, method, hyperparameters=chosen, autosave=tmp_path / "s")
    first.edit(FACTS[:2])
    monkeypatch.setenv("ALPHAEDIT_CACHE", str(tmp_path / "another"))
    resumed = Session.resume(tmp_path / "s", model_of_kind(), read_only=True)
    assert_same_session(resumed, first)
    for each in (first, resumed):
        each.edit(FACTS[2:4])
    assert_same_session(resumed, first)
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(("method", "more"), [("rome", set()), ("alphaedit", {"null-space"})])
def test_nothing_is_prepared_that_the_method_does_not_need(method, more, tokenizer, tmp_path):
    store = Store(tmp_path / "store")
    chosen = Hyperparameters(layers=(1,), v_num_grad_steps=3, null_space=Criterion(nullity=0.5))
    Session(model_of_kind(), tokenizer, method, hyperparameters=chosen, preparation=Preparation(store=store))
    assert {entry.kind for entry in store.entries()} == {"text", "covariance"} | more
    assert not (tmp_path / "alphaedit-cache").exists()


def test_given_statistics_and_null_spaces_are_used_as_they_are(tokenizer, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("everything was given")

    monkeypatch.setattr(Preparation, "statistics", never)
    for method in METHODS:
        write(session_of(model_of_kind(), tokenizer, method), 0)
    only_spaces = Session(model_of_kind(), tokenizer, "alphaedit", spaces_of(), hyperparameters=HYPERPARAMETERS)
    only_spaces.edit(FACTS[:1])
    assert only_spaces.report().leakage == {}
    assert set(only_spaces.report().outside) == set(LAYERS)


# ------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@every_method
def test_the_report_is_what_the_weights_say(method, kind, tokenizer):
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    before, after = (Decoder(model).out_projections(list(LAYERS)) for model in (model_of_kind(kind), editing.model))
    report = editing.report()
    assert (report.method, report.edits, report.batches) == (method, 3, 2)
    layers = set(editing.hyperparameters.layers)
    assert set(report.drift) == set(report.leakage) == layers
    for layer in layers:
        start, now = before[layer].matrix.double(), after[layer].matrix.double()
        delta, c = now - start, covariances_of(kind)[layer].matrix
        assert report.drift[layer] == pytest.approx(float(delta.norm() / start.norm()))
        assert report.drift[layer] > 0
        moved, output = (torch.trace(matrix @ c @ matrix.T) for matrix in (delta, start))
        assert report.leakage[layer] == pytest.approx(float((moved / output).sqrt()), rel=1e-6)
        if layer in report.outside:
            beyond = delta - delta @ spaces_of(kind)[layer].dense()
            assert report.outside[layer] == pytest.approx(float(beyond.norm() / delta.norm()), rel=1e-3, abs=1e-6)
    if editing.variant.projected:
        assert_reported_inside(editing)


@pytest.mark.parametrize("method", ["memit", "rect", "rome"])
def test_plain_edits_that_are_given_null_spaces_are_reported_outside_of_them(method, tokenizer):
    report = edited("llama", tokenizer, method, 0, 1).report()
    assert set(report.outside) == set(report.drift)
    for layer, share in report.outside.items():
        assert share > 100 * torch.finfo(torch.float32).eps / report.drift[layer]


def test_a_report_without_edits_is_all_zeros(tokenizer):
    report = session_of(model_of_kind(), tokenizer, "alphaedit").report()
    assert (report.edits, report.batches) == (0, 0)
    for values in (report.drift, report.leakage, report.outside):
        assert list(values.values()) == [0.0] * len(LAYERS)


@every_method
def test_a_resumed_session_reports_the_same(method, tokenizer, tmp_path):
    """But for what the method does not need and so is not saved: AlphaEdit's covariances, null spaces of plain ones."""
    first = edited("llama", tokenizer, method, 0, 1)
    first.save(tmp_path / "s")
    found, expected = Session.resume(tmp_path / "s", model_of_kind()).report(), first.report()
    if not first.variant.needs_covariances and not found.leakage:
        expected = replace(expected, leakage={})
    if not first.variant.projected and not found.outside:
        expected = replace(expected, outside={})
    assert found == expected


# ------------------------------------------------------------------------------------------- any order of calls

calls = st.one_of(
    st.tuples(st.just("edit"), st.integers(0, len(BATCHES) - 1)),
    st.tuples(st.just("undo"), st.integers(1, 3)),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("save and resume"), st.none()),
)


@pytest.mark.slow
@pytest.mark.parametrize("autosave", [False, True], ids=["saved", "saves itself"])
@pytest.mark.parametrize("method", ["memit-seq", "alphaedit", "rect+P", "prune+P"])
@tries(8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(calls, min_size=1, max_size=8))
def test_any_order_of_calls_comes_to_the_edits_that_are_left(method, autosave, history, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s"
        session = session_of(model_of_kind(), tokenizer, method, autosave=place if autosave else None)
        left: list[int] = []
        for call, argument in history:
            if call == "edit" and sum(len(BATCHES[n]) for n in [*left, argument]) <= 16:
                write(session, argument)
                left.append(argument)
            elif call == "undo" and argument <= len(left):
                session.undo(argument)
                del left[-argument:]
            elif call == "undo":
                with pytest.raises(EditError):
                    session.undo(argument)
            elif call == "finish":
                session.finish()
            elif call == "save and resume":
                if not autosave or not is_session(place):
                    session.save(place)
                session.close()
                session = Session.resume(place, model_of_kind())
            expected = reference("llama", tokenizer, method, *left)
            if session.finished:
                expected = edited("llama", tokenizer, method, *left)
                expected.finish()
            assert_same_session(session, expected)


def test_a_session_on_a_copy_of_its_model_goes_on_apart(tokenizer, tmp_path):
    model = model_of_kind()
    start = {"hyperparameters": HYPERPARAMETERS, "covariances": covariances_of("llama"), "contexts": CONTEXTS}
    session = Session(model, tokenizer, "memit-seq", **start, autosave=tmp_path / "s", check_model=False)
    session.edit(FACTS[:1])
    copied = copy.deepcopy(model)
    twin = session.on_copy(copied)
    twin.edit(FACTS[1:2])
    assert (session.facts, len(twin.facts)) == (twin.facts[:1], 2)
    assert len(Session.resume(tmp_path / "s", model_of_kind(), read_only=True).batches) == 1
    session.edit(FACTS[1:2])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(copied.named_parameters())[name])
    twin.undo(2)
    for name, parameter in model_of_kind().named_parameters():
        assert torch.equal(parameter, dict(copied.named_parameters())[name])
    assert len(session.facts) == 2
