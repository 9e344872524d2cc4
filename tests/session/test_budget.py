"""Edits under a budget: every bound holds, what fits is written as if there were none, and what does not is named."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support import taught
from support.interrupting import interrupted
from support.mishaps import Interrupted
from support.paths import ROOT
from support.scoring import kl_by_hand
from support.sessions import (
    BATCHES,
    CONTEXTS,
    FACTS,
    HYPERPARAMETERS,
    LAYERS,
    assert_folder_holds,
    assert_same_session,
    assert_state,
    covariances_of,
    large_targets,
    model_of_kind,
    raised,
    session_of,
    state,
    write,
)
from support.tiny import tiny
from support.tries import tries
from support.weights import assert_same, everything, matrices

from alphaedit_plugin.editors import verdict
from alphaedit_plugin.editors.layered import LayeredEditor
from alphaedit_plugin.editors.requests import parse_requests
from alphaedit_plugin.editors.verdict import Reason
from alphaedit_plugin.errors import EditError, RequestError
from alphaedit_plugin.model.divergence import Divergence
from alphaedit_plugin.session.budget import Budget, Excess, Gauge, parts_that_fit
from alphaedit_plugin.session.session import Session

SOME = {
    "memit": 0.6, "alphaedit": 0.15, "rome": 0.4, "memit-seq+P": 0.4, "prune+P": 0.6, "memit-seq+rect+aligned+P": 0.4
}  # fmt: skip
"""method → drift within which some of FACTS[:6] fit in the tiny Llama, in several parts, and some do not."""
several_methods = pytest.mark.parametrize("method", SOME)


def held_out_windows(tokenizer) -> list[list[int]]:
    """The first 1,600 tokens of the text, 64 at a time, each with the tokens that open a text."""
    ids = tokenizer((ROOT / "examples/heldout.txt").read_text(encoding="utf-8"))["input_ids"]
    opening, ids = (ids[:1], ids[1:]) if ids[0] == tokenizer.bos_token_id else ([], ids)
    step = 64 - len(opening)
    return [opening + ids[start : start + step] for start in range(0, len(ids), step)][:25]


def spent(unedited, session: Session, covariances=None) -> dict[str, float]:
    """What of a budget the session's model has spent, from dense matrices and all logits, in float64."""
    layers = session.hyperparameters.layers
    before, after = matrices(unedited, layers), matrices(session.model, layers)
    drifts, leaks = [], []
    for layer in layers:
        w = before[layer].double()
        delta = after[layer].double() - w
        drifts.append(float(delta.norm() / w.norm()))
        if covariances is not None:
            c = covariances[layer].matrix
            leaks.append(math.sqrt(max(0.0, float(torch.trace(delta @ c @ delta.T) / torch.trace(w @ c @ w.T)))))
    kl = kl_by_hand(unedited, session.model, held_out_windows(session.tokenizer), 8)
    return {"drift": max(drifts), "leakage": max(leaks, default=0.0), "kl": kl}


def assert_within(found: dict[str, float], budget: dict[str, float]) -> None:
    for name, bound in budget.items():
        assert found[name] <= bound * (1 + 1e-4) + 1e-9, (name, found[name], bound)


def assert_named(found, facts: list) -> None:
    """Each fact is asked for once, and is either among the session's or left out with a reason; in order."""
    assert list(found) == parse_requests(facts)
    left = [request for request, why in found.left_out if why]
    assert len(left) == len(found.left_out)
    if found.verdicts:
        assert [one.request for one in found.verdicts] == list(found)
        assert [one.request for one in found.verdicts if one.left_out] == left
    for one in found.verdicts:
        assert (one.reason is None) == one.now.agrees
        if one.left_out:
            assert not one.written
            assert one.left_out in one.why
            assert one.now.agrees or (one.reason, one.detail) == (Reason.BUDGET, one.left_out)


def recorded(session: Session, monkeypatch) -> list:
    """The facts and targets of every call to the editor."""
    calls, edit = [], session.editor.edit

    def edited(requests, targets=None):
        calls.append((list(requests), targets))
        return edit(requests, targets)

    monkeypatch.setattr(session.editor, "edit", edited)
    return calls


# ---------------------------------------------------------------------------------------------- bounds hold

bounds = st.fixed_dictionaries(
    {},
    optional={
        "drift": st.floats(-7, 1).map(math.exp),
        "leakage": st.floats(-10, -3).map(math.exp),
        "kl": st.floats(-9, 1).map(math.exp),
    },
)


@several_methods
@tries(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budget=bounds, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), how=st.sampled_from(["allow", "ignore"])
)
def test_whatever_the_bounds_they_hold_after_every_call(method, budget, sizes, how, tokenizer):
    unedited, session = model_of_kind(), session_of(model_of_kind(), tokenizer, method)
    at, written = 0, 0
    for size in sizes:
        facts = FACTS[at : at + size]
        at += size
        found = session.edit(facts, on_failure=how, budget=budget)
        assert_within(spent(unedited, session, covariances_of()), budget)
        assert_named(found, facts)
        left = {request for request, _ in found.left_out}
        assert session.facts[written:] == [request for request in found if request not in left]
        written = len(session.facts)
    if budget:
        session.finish()
        assert_within(spent(unedited, session, covariances_of()), budget)


@pytest.mark.parametrize("kind", ["gpt2", "llama bfloat16", "gpt2 float64"])
def test_bounds_hold_in_every_precision_and_layout(kind, tokenizer):
    unedited, session = model_of_kind(kind), session_of(model_of_kind(kind), tokenizer, "memit", kind)
    budget = {"drift": 0.5, "leakage": 0.5, "kl": 0.05}
    found = session.edit(FACTS[:6], on_failure="allow", budget=budget)
    assert_within(spent(unedited, session, covariances_of(kind)), budget)
    assert_named(found, FACTS[:6])


def test_a_model_that_nobody_tuned_for_keeps_its_bounds(bos_tokenizer):
    """Gemma 2: a soft cap on the logits, norms behind the out-projections, so targets with a δ for every layer."""
    unedited, model = (tiny("gemma2", vocab_size=512) for _ in range(2))
    session = Session(
        model, bos_tokenizer, "memit", hyperparameters=HYPERPARAMETERS, covariances=covariances_of(), contexts=CONTEXTS
    )
    assert not session.editor.direct
    session.edit(FACTS[:4], on_failure="allow")
    whole = spent(unedited, session)
    session.undo()
    budget = {"drift": whole["drift"] / 2, "kl": whole["kl"] / 2}
    found = session.edit(FACTS[:4], on_failure="allow", budget=budget)
    assert session.facts, "nothing fitted"
    assert found.left_out, "all fitted"
    assert_within(spent(unedited, session), budget)
    session.undo(len(session.batches))
    assert_same(everything(model), everything(unedited))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "cohere", "falcon", "granite"])
def test_kl_is_that_of_all_logits(architecture, tokenizer):
    unedited, edited = (tiny(architecture, vocab_size=512) for _ in range(2))
    windows = [*held_out_windows(tokenizer)[:9], [5, 6, 7]]
    divergence = Divergence(edited, windows, every=10)
    assert divergence.places == 9 * 64 // 10
    assert abs(divergence.now()) < 1e-12
    before = everything(edited)
    for weight in matrices(edited, [1, 2]).values():
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    assert divergence.now() == pytest.approx(kl_by_hand(unedited, edited, windows, 10), rel=1e-5)
    assert divergence.now() == divergence.now() > 1e-4
    edited.load_state_dict(unedited.state_dict())
    assert_same(everything(edited), before)


def test_kl_of_logits_that_are_not_numbers_is_above_every_bound(tokenizer):
    model = model_of_kind()
    divergence = Divergence(model, [[1, 2, 3, 4]], every=2)
    matrices(model, [1])[1].fill_(torch.nan)
    assert math.isnan(divergence.now())
    assert Excess("KL", math.nan, 1.0, " nats").said("would be") == "KL would be nan nats, above 1"


# ------------------------------------------------------------------------------- as if there were no budget


@several_methods
@pytest.mark.parametrize("budget", [None, {}, {"drift": math.inf}, {"drift": 1e9, "leakage": 1e9, "kl": 1e9}, Budget()])
def test_a_budget_that_is_not_used_up_changes_nothing(method, budget, tokenizer):
    plain, bounded = (session_of(model_of_kind(), tokenizer, method) for _ in range(2))
    for facts in (FACTS[:3], FACTS[3:5]):
        expected = plain.edit(facts, on_failure="allow")
        found = bounded.edit(facts, on_failure="allow", budget=budget)
        assert (found, found.verdicts, found.warnings) == (expected, expected.verdicts, expected.warnings)
        assert found.left_out == ()
    assert_same_session(bounded, plain)
    assert [batch.asked for batch in bounded.batches] == [batch.asked for batch in plain.batches]


@several_methods
def test_what_was_written_is_what_its_parts_write_one_after_the_other(method, tokenizer, monkeypatch):
    """With the same targets, to the last bit. (Targets found in another batch differ by rounding; ROME takes none.)"""
    session = session_of(model_of_kind(), tokenizer, method)
    calls = recorded(session, monkeypatch)
    session.edit(FACTS[:6], on_failure="allow", budget={"drift": SOME[method]})
    assert 1 < len(session.batches) <= len(session.facts) < 6
    session.edit(FACTS[6:9], on_failure="allow", budget={"drift": 2 * SOME[method], "kl": 0.5})
    again = session_of(model_of_kind(), tokenizer, method)
    for batch in session.batches:
        (targets,) = [found for requests, found in calls if tuple(requests) == batch.requests][-1:]
        again.edit(batch.requests, targets, on_failure="allow")
    assert_same_session(session, again)


@pytest.mark.parametrize(("method", "drift"), [("memit", 0.8), ("alphaedit", 0.1)])
def test_and_with_targets_of_their_own_but_for_rounding(method, drift, tokenizer):
    session, again = (session_of(model_of_kind("gpt2 float64"), tokenizer, method, "gpt2 float64") for _ in range(2))
    session.edit(FACTS[:6], on_failure="allow", budget={"drift": drift})
    assert 1 < len(session.batches) <= len(session.facts) < 6
    for batch in session.batches:
        again.edit(batch.requests, on_failure="allow")
    for layer, projection in again.projections.items():
        assert torch.allclose(session.projections[layer].matrix, projection.matrix, rtol=0, atol=1e-9)


def test_targets_are_found_again_only_when_something_was_written(tokenizer, monkeypatch):
    asked: list[int] = []
    find = LayeredEditor.targets
    monkeypatch.setattr(
        LayeredEditor, "targets", lambda self, requests: asked.append(len(requests)) or find(self, requests)
    )
    session = session_of(model_of_kind(), tokenizer, "memit")
    session.edit(FACTS[:8], on_failure="allow", budget={"drift": 1e-6})
    assert (asked, session.facts) == ([8], [])
    given = large_targets(session.model, 8, 0)
    session.edit(FACTS[:8], given, on_failure="allow", budget={"drift": 1e-6})
    assert (asked, session.facts) == ([8], [])
    fixed = session.editor.fixed_targets(parse_requests(FACTS[:6]))
    session.edit(FACTS[:6], fixed, on_failure="allow", budget={"drift": SOME["memit"]})
    assert asked == [8, 6], "targets that are fixed hold on any model"
    assert session.facts


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def attempt(rows) -> str:
        tried.append([*rows])
        return "" if 3 not in rows and len(rows) < 3 else f"{len(rows)} too many"

    assert parts_that_fit(5, attempt) == {3: "1 too many"}
    assert tried == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1], [2], [3, 4], [3], [4]]


# ------------------------------------------------------------------------------------------- nothing fits


@several_methods
@pytest.mark.parametrize("bound", ["drift", "leakage", "kl"])
def test_without_any_budget_nothing_is_written_and_nothing_is_touched(method, bound, tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    before = state(session)
    found = session.edit(FACTS[:3], on_failure="allow", budget={bound: 0})
    assert_state(session, before)
    assert_named(found, FACTS[:3])
    assert [request for request, _ in found.left_out] == found
    assert all("would be" in why and why.endswith("above 0") for _, why in found.left_out)
    assert found.summary == "0 of 3 facts written, 3 left out"
    assert not (tmp_path / "s" / "session.json").exists()
    session.edit(FACTS[:1], on_failure="allow")
    assert_folder_holds(tmp_path / "s", session)


def test_a_finished_session_stays_finished_where_nothing_fits(tokenizer):
    session = session_of(model_of_kind(), tokenizer, "prune")
    write(session, 0, 1)
    session.finish()
    before = state(session)
    for budget in ({"drift": 1e-3}, {"drift": 1e3, "kl": 1e-9}):
        assert len(session.edit(BATCHES[2], on_failure="ignore", budget=budget).left_out) == len(BATCHES[2])
        assert_state(session, before)


def test_what_finishing_would_make_of_it_is_counted(tokenizer):
    """Below 1 the logarithm that PRUNE takes makes what it damps larger."""
    small = model_of_kind()
    for weight in matrices(small, LAYERS).values():
        weight.mul_(0.02)
    session = session_of(small, tokenizer, "prune", hyperparameters=replace(HYPERPARAMETERS, layers=(0,)))
    session.edit(FACTS[1:2], on_failure="ignore")
    plain = session.report().drift[0]
    session.finish()
    finished = session.report().drift[0]
    session.undo()
    bound = (plain + finished) / 2
    assert plain < 0.9 * bound < bound < 0.9 * finished
    ((_, why),) = session.edit(FACTS[1:2], on_failure="ignore", budget={"drift": bound}).left_out
    assert why.startswith("drift of layer 0, once finished, would be")
    session.edit(FACTS[:6], on_failure="ignore", budget={"drift": bound})
    session.finish()
    assert session.report().drift[0] <= bound


def test_what_is_spent_already_is_said_at_once(tokenizer, monkeypatch, caplog):
    session = session_of(model_of_kind(), tokenizer, "memit")
    session.edit(FACTS[:2], on_failure="ignore")
    before, calls = state(session), recorded(session, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="alphaedit_plugin"):
        found = session.edit(FACTS[2:6], on_failure="allow", budget={"drift": 0.01, "kl": 5})
    assert calls == []
    assert_state(session, before)
    (why,) = {why for _, why in found.left_out}
    worst = max(session.report().drift, key=session.report().drift.get)
    assert why.startswith(f"drift of layer {worst} already is ")
    assert why.endswith(", above 0.01")
    assert sum("✗ left out" in record.message for record in caplog.records) == 4


# ------------------------------------------------------------------------------------------ what is said


@pytest.fixture
def said(tokenizer, monkeypatch):
    """A session that has learned a fact, and the budget that this has spent."""
    monkeypatch.setattr(verdict, "USUAL_DRIFT", 100.0)
    session = taught.session(tokenizer)
    session.edit([taught.fact(0, 0)], taught.towards(session, 0))
    return session, {"drift": max(session.report().drift.values()) * 1.001}


@pytest.mark.parametrize("how", ["report", "allow", "ignore"])
def test_a_fact_that_is_left_out_is_named_even_if_it_is_said_already(how, said, caplog):
    session, budget = said
    facts = [taught.fact(0, 0), taught.fact(1, 1)]  # the first is known
    with caplog.at_level(logging.WARNING, logger="alphaedit_plugin"):
        found = session.edit(facts, taught.towards(session, 1, 1), on_failure=how, budget=budget)
    assert [request for request, _ in found.left_out] == parse_requests(facts) == found
    assert all("drift of layer 3 would be" in why for _, why in found.left_out)
    assert sum("✗ left out" in record.message for record in caplog.records) == 2
    assert session.facts == parse_requests(facts[:1])
    if how == "ignore":
        assert found.verdicts == ()
        return
    known, unknown = found.verdicts
    assert known.now.agrees
    assert (known.reason, known.written) == (None, False)
    assert "said anyway" in known.why
    assert "said anyway" in str(known)
    assert (unknown.reason, unknown.written, unknown.detail) == (Reason.BUDGET, False, unknown.left_out)
    assert found.summary == "0 of 2 facts written, 2 left out"
    assert found.failed == [known, unknown]


def test_a_session_does_not_claim_what_was_left_out(said):
    session, budget = said
    found = session.edit([taught.fact(1, 1)], taught.towards(session, 1), on_failure="allow", budget=budget)
    assert session.verdicts() == parse_requests([taught.fact(0, 0)])
    assert session.verdicts().left_out == ()
    with pytest.raises(EditError, match="holds no fact"):
        session.verdicts([taught.fact(1, 1)])
    assert session.to_do(found) == [0]
    again = session.verdicts(left_out=found.verdicts)
    assert [one.written for one in again.verdicts] == [True, False]
    assert again.left_out == found.left_out
    assert again.verdicts[1].why == found.verdicts[0].why
    assert again.verdicts[1].before == found.verdicts[0].before


@pytest.mark.parametrize("facts", [[taught.fact(1, 1)], [taught.fact(0, 0)]], ids=["unknown", "known"])
def test_on_demand_all_is_taken_back_if_anything_is_left_out(facts, said):
    session, budget = said
    before = state(session)
    with pytest.raises(EditError, match=r"left out, and the batch is taken back.*over budget.*drift of layer 3"):
        session.edit(facts, taught.towards(session, 1), on_failure="raise", budget=budget)
    assert_state(session, before)


def test_on_demand_parts_that_fit_are_taken_back_too(tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, "memit", autosave=tmp_path / "s")
    session.edit(FACTS[6:7], on_failure="ignore")
    before, saved = state(session), (tmp_path / "s" / "session.json").read_bytes()
    with pytest.raises(EditError, match="left out"):
        session.edit(FACTS[:6], on_failure="raise", budget={"drift": 0.5})
    assert_state(session, before)
    assert (tmp_path / "s" / "session.json").read_bytes() == saved


def test_the_numbers_of_a_reason_can_be_told_apart():
    assert Excess("drift of layer 7", 0.2312, 0.2).said("would be") == "drift of layer 7 would be 0.231, above 0.2"
    assert Excess("KL", 0.2000001, 0.2, " nats").said("would be") == "KL would be 0.2000001 nats, above 0.2"


# --------------------------------------------------------------------------------------- history and folder


@several_methods
def test_parts_are_saved_resumed_and_undone_one_by_one(method, tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    session.edit(FACTS[:6], on_failure="allow", budget={"drift": SOME[method]})
    assert len(session.batches) > 1
    assert_folder_holds(tmp_path / "s", session)
    session.close()
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    for each in (session, resumed):
        each.autosave = None
        each.edit(FACTS[6:9], on_failure="allow", budget={"drift": 0.6, "kl": 1.0})
    assert_same_session(resumed, session)
    for left in reversed(range(len(resumed.batches))):
        resumed.undo()
        assert len(resumed.batches) == left
    assert_same(everything(resumed.model), everything(model_of_kind()))


@pytest.mark.slow
def test_an_interrupt_anywhere_leaves_all_or_nothing(tokenizer, tmp_path):
    """Ctrl-C at points spread over the call, and near its end: of three facts two are written, each by itself."""
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    session.edit(FACTS[6:7], on_failure="ignore")
    targets = session.editor.fixed_targets(parse_requests(FACTS[:3]))
    budget = {"drift": 0.1, "kl": 10.0}

    def run() -> None:
        session.edit(FACTS[:3], targets, on_failure="ignore", budget=budget)

    last = interrupted(run, None).points
    after = everything(session.model)
    assert (len(session.facts), len(session.batches)) == (3, 3)
    places = random.Random(0).sample(range(1, last), 8)
    for at in (*places, *range(last - 3, last + 1)):
        if len(session.batches) > 1:
            session.undo(2)
        before = state(session)
        manifest = (tmp_path / "s" / "session.json").read_bytes()
        outcome = interrupted(run, at)
        if len(session.batches) == 1:
            assert_state(session, before)
            assert (tmp_path / "s" / "session.json").read_bytes() == manifest, outcome.where
        else:
            assert_same(everything(session.model), after)
            assert_folder_holds(tmp_path / "s", session)


@pytest.mark.parametrize("what", ["edit", "measure", "ask", "save"])
@pytest.mark.parametrize("failure", [Interrupted, EditError, OSError])
def test_a_failure_at_any_step_leaves_all_as_it_was(what, failure, tokenizer, tmp_path, monkeypatch):
    session = session_of(model_of_kind(), tokenizer, "memit", autosave=tmp_path / "s")
    session.edit(FACTS[6:7], on_failure="ignore")
    owner, name = {
        "edit": (session.editor, "edit"),
        "measure": (Gauge, "excess"),
        "ask": (session, "_answers"),
        "save": (session, "save"),
    }[what]
    real, manifest = getattr(owner, name), (tmp_path / "s" / "session.json").read_bytes()
    calls = Counter()

    def failing(*arguments, **options):
        calls[what] += 1
        if calls[what] == at:
            raise failure("here")
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)
    before = state(session)
    at = 1
    while True:
        calls.clear()
        try:
            session.edit(FACTS[:6], on_failure="allow", budget={"drift": 0.6})
            break
        except failure:
            assert_state(session, before)
            assert (tmp_path / "s" / "session.json").read_bytes() == manifest
            at += 1
    assert at > 1
    assert len(session.batches) > 2, "some of it was written before some of the failures"
    assert_folder_holds(tmp_path / "s", session)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"drift": -0.1}, "drift must be a number from 0 up, not -0.1"),
        ({"kl": math.nan}, "kl must be a number"),
        ({"kl": -math.inf}, "kl must be a number"),
        ({"leakage": "0.1"}, "leakage must be a number"),
        ({"drift": True}, "drift must be a number"),
        ({"drift": None}, "drift must be a number"),
        ({"norm": 1.0}, "no 'norm': it may name drift, leakage, kl"),
        ({1: 1.0}, "no 1: it may name"),
        (0.2, "maps names"),
        (["drift"], "maps names"),
    ],
)
def test_what_is_no_budget_is_refused_before_anything_is_touched(budget, said, tokenizer):
    session = session_of(model_of_kind(), tokenizer, "memit")
    before = state(session)
    failure = raised(lambda: session.edit(FACTS[:1], budget=budget))
    assert isinstance(failure, EditError)
    assert said in str(failure)
    assert_state(session, before)


def test_leakage_cannot_be_bounded_without_covariances(tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    session.edit(FACTS[:1], on_failure="ignore", budget={"leakage": 1e9})
    session.close()
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    with pytest.raises(EditError, match=r"needs covariances, and there are none of layers \[0, 1, 2\]"):
        resumed.edit(FACTS[1:2], on_failure="ignore", budget={"leakage": 1e9})


def test_facts_that_are_refused_without_a_budget_are_refused_with_one(tokenizer):
    session = session_of(model_of_kind(), tokenizer, "memit")
    with pytest.raises(RequestError):
        session.edit([FACTS[0], {**FACTS[0], "target_new": "Paris"}], budget={"drift": 1.0})
    with pytest.raises(RequestError):
        session.edit([], budget={"drift": 1.0})
