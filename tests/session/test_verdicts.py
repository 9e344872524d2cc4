"""What a session says of its facts: against what the model says, and with reasons that were brought about."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from support import taught
from support.sessions import BATCHES, assert_same_session, assert_state, model_of_kind, raised, session_of, state
from support.weights import assert_same, everything

from alphaedit_plugin.editors import verdict
from alphaedit_plugin.editors.requests import parse_requests
from alphaedit_plugin.editors.verdict import Reason
from alphaedit_plugin.errors import EditError
from alphaedit_plugin.session.session import Session


@pytest.fixture
def far(monkeypatch):
    """The tiny model needs larger updates than a real one: what is usual here is more."""
    monkeypatch.setattr(verdict, "USUAL_DRIFT", 100.0)


def written(tokenizer, **options) -> Session:
    """Two facts, learned."""
    session = taught.session(tokenizer, **options)
    session.edit([taught.fact(0, 0), taught.fact(1, 1)], taught.towards(session, 0, 1), on_failure="allow")
    return session


def test_a_fact_that_is_learned_is_said_and_how_likely_it_was_and_is(tokenizer, far):
    session = taught.session(tokenizer)
    facts = [taught.fact(0, 0), taught.fact(1, 1)]
    ids = [tokenizer(f"They spoke of {one['subject']}")["input_ids"] for one in facts]
    objects = [tokenizer(f" {one['target_new']}")["input_ids"][0] for one in facts]

    def likely() -> tuple[list[float], list[str]]:
        rows = [session.model(torch.tensor([row])).logits[0, -1].double().softmax(-1) for row in ids]
        return [float(row[token]) for row, token in zip(rows, objects, strict=True)], [
            tokenizer.decode([int(row.argmax())]).strip() for row in rows
        ]

    before, said_before = likely()
    edited = session.edit(facts, taught.towards(session, 0, 1))
    now, says_now = likely()
    assert edited == parse_requests(facts), "the list is still that of the requests"
    assert [one.before.probability for one in edited.verdicts] == pytest.approx(before, rel=1e-4)
    assert [one.now.probability for one in edited.verdicts] == pytest.approx(now, rel=1e-4)
    assert [one.before.words for one in edited.verdicts] == said_before != [one["target_new"] for one in facts]
    assert [one.now.words for one in edited.verdicts] == says_now == [one["target_new"] for one in facts]
    assert all(one.written and one.reason is None for one in edited.verdicts)
    assert (edited.failed, edited.summary) == ([], "2 of 2 facts written")


@pytest.mark.parametrize("method", ["memit", "alphaedit", "rome"])
def test_asking_changes_nothing(method, tokenizer):
    """Weights, memory and random states, bit for bit."""
    asked, silent = (session_of(model_of_kind(), tokenizer, method) for _ in range(2))
    torch.manual_seed(7)
    drawn = torch.random.get_rng_state()
    for session, how in ((asked, "allow"), (silent, "ignore")):
        for batch in BATCHES[:3]:
            assert session.edit(batch, on_failure=how) == parse_requests(batch)
    assert_same_session(asked, silent)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert [len(asked.verdicts().verdicts), len(asked.edit(BATCHES[3], on_failure="ignore").verdicts)] == [4, 0]


def test_a_fact_that_is_not_learned_is_not_reached_and_is_logged(tokenizer, far, caplog):
    session = taught.session(tokenizer)
    targets = taught.towards(session, 0, 2)  # the second on its way to another object
    with caplog.at_level(logging.WARNING, logger="alphaedit_plugin"):
        edited = session.edit([taught.fact(0, 0), taught.fact(1, 1)], targets)
    right, wrong = edited.verdicts
    assert (right.written, wrong.written, wrong.reason) == (True, False, Reason.NOT_REACHED)
    assert wrong.now.words == taught.OBJECTS[2]
    assert edited.failed == [wrong]
    assert "1 of 2 facts written" in caplog.text
    assert f"{taught.OBJECTS[2]!r} instead of {taught.OBJECTS[1]!r}" in caplog.text


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"missed": torch.tensor([0.1, 0.8])}, "80% of the way to z* was left"),
        ({"losses": torch.tensor([0.04, 3.2])}, "the loss stayed at 3.2"),
    ],
    ids=["missed", "losses"],
)
def test_what_the_method_knows_of_its_targets_is_the_reason(known, said, tokenizer, far, monkeypatch, tmp_path):
    session = taught.session(tokenizer)
    edit = session.editor.edit
    monkeypatch.setattr(session.editor, "edit", lambda *given: replace(edit(*given), **known))
    edited = session.edit([taught.fact(0, 0), taught.fact(1, 1)], taught.towards(session, 0, 2), on_failure="allow")
    assert edited.failed[0].reason is Reason.NOT_REACHED
    assert said in edited.failed[0].detail
    assert any("missed by more than half for 1 of 2 facts" in one for one in edited.warnings) == ("missed" in known)
    assert session.report().warnings == edited.warnings
    session.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind(taught.KIND))
    assert resumed.verdicts().verdicts == edited.verdicts
    assert resumed.report().warnings == edited.warnings


def test_an_overwritten_fact_is_seen_when_asked_again(tokenizer, far):
    session = written(tokenizer)
    assert session.verdicts().failed == []
    session.edit([taught.fact(0, 2)], taught.towards(session, 2), on_failure="allow")
    first, second, third = session.verdicts().verdicts
    assert (first.written, first.reason, first.now.words) == (False, Reason.OVERWRITTEN, taught.OBJECTS[2])
    assert repr(taught.OBJECTS[2]) in first.detail
    assert third.written
    assert second.before == session.batches[0].asked.before[1]
    (again,) = session.verdicts([taught.fact(0, 2)]).verdicts
    assert (again.request, again.before, again.written) == (third.request, third.before, True)
    session.undo()
    assert session.verdicts().failed == []


def test_a_fact_that_others_made_fail_is_overwritten_too(tokenizer, far):
    session = written(tokenizer)
    # The next fact's key is nearly that of the first: what is written there is read here.
    like_the_first = {"prompt": "They spoke of {}", "subject": "the Marie Curie", "target_new": taught.OBJECTS[2]}
    session.edit([like_the_first], taught.towards(session, 2, length=3000.0), on_failure="allow")
    first = session.verdicts().verdicts[0]
    assert (first.written, first.reason) == (False, Reason.OVERWRITTEN)
    assert "said after its own batch" in first.detail


def test_drift_above_the_usual_is_said_by_edit_and_by_the_report(tokenizer, caplog):
    session = taught.session(tokenizer)
    edited = session.edit([taught.fact(0, 0)], taught.towards(session, 1, length=900.0), on_failure="allow")
    assert edited.failed[0].reason is Reason.DRIFT
    (warning,) = edited.warnings
    assert "‖ΔW‖/‖W‖" in warning
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="alphaedit_plugin"):
        report = session.report()
    assert report.warnings == (warning,)
    assert warning in caplog.text
    assert report.drift[taught.LAST] > verdict.USUAL_DRIFT
    session.undo()
    assert session.report().warnings == ()


def test_a_batch_that_fails_is_taken_back_on_demand(tokenizer, far, tmp_path):
    session = written(tokenizer, autosave=tmp_path / "s")
    before, manifest = state(session), (tmp_path / "s" / "session.json").read_bytes()
    facts = [taught.fact(2, 2), taught.fact(3, 3)]
    with pytest.raises(EditError, match="1 of 2 facts written, and the batch is taken back") as failure:
        session.edit(facts, taught.towards(session, 2, 0), on_failure="raise")
    assert "the old town" in str(failure.value)
    assert "not reached" in str(failure.value)
    assert "the king" not in str(failure.value)
    assert_state(session, before)
    assert (tmp_path / "s" / "session.json").read_bytes() == manifest
    session.edit(facts, taught.towards(session, 2, 3, length=3000.0), on_failure="raise")
    assert len(session.facts) == 4


def test_a_batch_that_drifts_is_taken_back_on_demand(tokenizer):
    session = taught.session(tokenizer)
    before = state(session)
    failure = raised(lambda: session.edit([taught.fact(0, 0)], taught.towards(session, 0), on_failure="raise"))
    assert isinstance(failure, EditError)
    assert "‖ΔW‖/‖W‖" in str(failure)
    assert_state(session, before)


@pytest.mark.parametrize("wrong", ["", "never", None])
def test_another_word_for_what_happens_on_failure_is_refused(wrong, tokenizer):
    session = taught.session(tokenizer)
    before = everything(session.model)
    with pytest.raises(EditError, match="report, raise, allow, ignore"):
        session.edit([taught.fact(0, 0)], on_failure=wrong)
    assert_same(everything(session.model), before)


def test_a_resumed_session_knows_what_was_said_before(tokenizer, far, tmp_path):
    session = written(tokenizer)
    session.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind(taught.KIND))
    assert resumed.verdicts().verdicts == session.verdicts().verdicts
    assert all(one.before is not None for one in resumed.verdicts().verdicts)


def test_facts_that_were_never_asked_about_are_judged_without_a_before(tokenizer, far, tmp_path):
    session = taught.session(tokenizer)
    session.edit([taught.fact(0, 0)], taught.towards(session, 0), on_failure="ignore")
    session.save(tmp_path / "s")
    for each in (session, Session.resume(tmp_path / "s", model_of_kind(taught.KIND))):
        (found,) = each.verdicts().verdicts
        assert (found.written, found.before) == (True, None)


def test_a_fact_that_the_session_does_not_hold_has_no_verdict(tokenizer, far):
    with pytest.raises(EditError, match="Michael Jordan"):
        written(tokenizer).verdicts([taught.fact(1, 0)])
    assert taught.session(tokenizer).verdicts() == []
