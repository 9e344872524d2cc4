"""Facts taken back from the middle of a sequence, and two sequences made one."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from support.mishaps import cut
from support.sessions import (
    BATCHES,
    FACTS,
    HYPERPARAMETERS,
    LAYERS,
    METHODS,
    assert_same_session,
    assert_state,
    edited,
    every_method,
    model_of_kind,
    raised,
    session_of,
    state,
    write,
)
from support.weights import differ, everything, matrices

from alphaedit_plugin.editors.requests import parse_requests
from alphaedit_plugin.editors.verdict import Reason
from alphaedit_plugin.errors import AlphaEditError, EditError, SessionError, WrongModelError
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.session import Session

GONE = [FACTS[2], FACTS[3], FACTS[6]]  # half of batch 1, all of batch 2, half of batch 4
WRITTEN = range(5)


@every_method
def test_what_is_left_is_the_session_that_never_held_them(method, tokenizer):
    session = edited("llama", tokenizer, method, *WRITTEN)
    never = edited("llama", tokenizer, method, 0)
    for batch in session.batches[1:]:
        rows = [row for row, request in enumerate(batch.requests) if request not in parse_requests(GONE)]
        if rows:
            never.edit([batch.requests[row] for row in rows], batch.targets(rows))
    before = everything(session.model)
    assert session.remove(GONE) == parse_requests(GONE)
    assert differ(everything(session.model), before)
    assert_same_session(session, never)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "rect+P", "evoedit", "alphaedit@blue=true"])
def test_with_targets_of_the_unedited_model_nothing_tells_them_apart(method, tokenizer):
    """What is kept of targets is theirs but for rounding; so is what it leads to."""
    here, there = (session_of(model_of_kind(), tokenizer, method) for _ in range(2))
    found = [here.editor.fixed_targets(parse_requests(BATCHES[number])) for number in WRITTEN]
    for number, targets in zip(WRITTEN, found, strict=True):
        here.edit(BATCHES[number], targets)
        rows = [row for row, fact in enumerate(BATCHES[number]) if fact not in GONE]
        if rows:
            there.edit([BATCHES[number][row] for row in rows], targets.of(rows))
    here.remove(GONE)
    found, expected = matrices(here.model, LAYERS), matrices(there.model, LAYERS)
    for layer, start in matrices(model_of_kind(), LAYERS).items():
        moved = float((expected[layer] - start).norm())
        assert float((found[layer] - expected[layer]).norm()) <= 1e-4 * moved


@every_method
def test_taking_back_all_is_the_unedited_model_and_the_last_batch_is_undo(method, tokenizer):
    session, other = (edited("llama", tokenizer, method, 0, 1, 2) for _ in range(2))
    session.remove(BATCHES[2])
    other.undo()
    assert_same_session(session, other)
    session.remove([*BATCHES[0], *BATCHES[1]])
    assert_same_session(session, session_of(model_of_kind(), tokenizer, method))
    assert session.remove([]) == []


@pytest.mark.parametrize("method", METHODS)
def test_on_disk_as_in_memory(method, tokenizer, tmp_path):
    session = edited("llama", tokenizer, method, *WRITTEN)
    session.save(tmp_path / "session")
    resumed = Session.resume(tmp_path / "session", model_of_kind(), tokenizer)
    resumed.remove(GONE)
    session.remove(GONE)
    assert_same_session(resumed, session)
    resumed.close()
    assert_same_session(Session.resume(tmp_path / "session", model_of_kind(), tokenizer), session)


def test_without_kept_targets_they_are_found_anew(tokenizer):
    """As in a session that an earlier version saved."""
    session = edited("llama", tokenizer, "alphaedit", 0, 1, 2)
    session.batches = [replace(batch, written=replace(batch.written, z_star=None)) for batch in session.batches]
    session.remove(BATCHES[0])
    assert_same_session(session, edited("llama", tokenizer, "alphaedit", 1, 2))


def test_what_was_superseded_is_in_force_again(tokenizer):
    session, never = (session_of(model_of_kind(), tokenizer, "alphaedit") for _ in range(2))
    old, new = FACTS[1], {**FACTS[1], "target_new": "Rome"}
    for each in (session, never):
        each.edit([old, FACTS[2]])
    session.edit([new])
    assert session.verdicts([old]).verdicts[0].reason is Reason.OVERWRITTEN
    session.remove([new])
    assert_same_session(session, never)
    assert session.verdicts([old]).verdicts[0].reason is not Reason.OVERWRITTEN


def test_a_fact_that_is_not_there_is_named_and_nothing_changes(tokenizer):
    session = edited("llama", tokenizer, "memit", 0, 1)
    before = state(session)
    with pytest.raises(EditError, match="Mary"):
        session.remove([FACTS[0], FACTS[3]])
    assert_state(session, before)


def test_a_failure_on_the_way_leaves_all_as_it_was(tokenizer, tmp_path, monkeypatch):
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "session")
    write(session, *WRITTEN)
    before, calls = state(session), []
    edit = session.editor.edit

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise EditError("no more")
        return edit(*arguments)

    monkeypatch.setattr(session.editor, "edit", fails)
    with pytest.raises(EditError, match="no more"):
        session.remove(GONE)
    assert_state(session, before)
    session.close()
    assert_same_session(Session.resume(tmp_path / "session", model_of_kind(), tokenizer), session)


# ------------------------------------------------------------------------------------------------------------ merge


def saved(tokenizer, method: str, path, *numbers: int) -> Session:
    session = edited("llama", tokenizer, method, *numbers)
    session.save(path)
    return session


@every_method
def test_merged_is_written_one_after_the_other_for_the_same_targets(method, tokenizer, tmp_path):
    theirs = saved(tokenizer, method, tmp_path / "theirs", 3, 4)
    session, expected = (edited("llama", tokenizer, method, 0, 1) for _ in range(2))
    assert session.merge(tmp_path / "theirs") == theirs.facts
    for batch in theirs.batches:
        expected.edit(batch.requests, batch.targets(range(len(batch.requests))))
    assert_same_session(session, expected)


def test_what_is_in_force_already_is_not_written_twice_and_the_rest_supersedes(tokenizer, tmp_path):
    session = edited("llama", tokenizer, "alphaedit", 0, 1)
    theirs = session_of(model_of_kind(), tokenizer, "alphaedit")
    changed = {**FACTS[2], "target_new": "Rome"}
    theirs.edit([FACTS[0], changed, FACTS[5]])
    theirs.save(tmp_path / "theirs")
    assert session.merge(tmp_path / "theirs") == parse_requests([changed, FACTS[5]])
    assert session.merge(tmp_path / "theirs") == []


def test_what_is_superseded_there_does_not_come_into_force_here(tokenizer, tmp_path):
    """Nor does a session that is merged with itself change, not even one that was finished."""
    old, new = FACTS[0], {**FACTS[0], "target_new": "Warsaw"}
    theirs = session_of(model_of_kind(), tokenizer, "memit")
    for fact in (old, new, FACTS[1]):
        theirs.edit([fact])
    theirs.save(tmp_path / "theirs")
    mine = session_of(model_of_kind(), tokenizer, "memit")
    mine.edit([{**new, "case_id": "another"}])
    assert mine.merge(tmp_path / "theirs") == parse_requests([FACTS[1]])
    assert theirs.merge(tmp_path / "theirs") == []
    damped = edited("llama", tokenizer, "prune+P", 0, 1)
    damped.finish()
    damped.save(tmp_path / "damped")
    before = state(damped)
    assert damped.merge(tmp_path / "damped") == []
    assert_state(damped, before)


def test_whoever_counts_cases_otherwise_means_the_same_fact(tokenizer):
    session = session_of(model_of_kind(), tokenizer, "memit")
    session.edit(FACTS[:2])
    session.remove([{key: value for key, value in FACTS[0].items() if key != "case_id"}])
    assert session.facts == parse_requests(FACTS[1:2])


@pytest.mark.parametrize("changes", [{"method": "alphaedit@blue=true"}, {"layers": (0, 1)}, {"module": "o_proj"}])
def test_targets_of_another_place_are_found_anew(changes, tokenizer, tmp_path):
    theirs_in = replace(HYPERPARAMETERS, layers=changes.get("layers", (0, 2)))
    ours_in = replace(HYPERPARAMETERS, layers=(0, 2))
    if "module" in changes:
        theirs_in = replace(theirs_in, rewrite_module_tmp="model.layers.{}.self_attn.o_proj")
    method = "memit" if "method" not in changes else "alphaedit"
    options = {"covariances": None, "preparation": Preparation(tokens=64)} if "module" in changes else {}
    theirs = session_of(model_of_kind(), tokenizer, changes.get("method", method), hyperparameters=theirs_in, **options)
    theirs.edit(BATCHES[1])
    theirs.save(tmp_path / "theirs")
    here, expected = (session_of(model_of_kind(), tokenizer, method, hyperparameters=ours_in) for _ in range(2))
    here.merge(tmp_path / "theirs")
    expected.edit(BATCHES[1])
    assert_same_session(here, expected)


@pytest.mark.parametrize("method", ["alphaedit", "rome", "memit-seq"])
def test_in_bfloat16_the_same_is_written_again(method, tokenizer):
    kind = "llama bfloat16"
    session = edited(kind, tokenizer, method, 0, 1)
    found = [batch.targets(range(len(batch.requests))) for batch in session.batches]
    again = session_of(model_of_kind(kind), tokenizer, method, kind)
    for batch, targets in zip(session.batches, found, strict=True):
        again.edit(batch.requests, targets)
    for one, other in zip(session.batches, again.batches, strict=True):
        for here, there in zip(one.written.updates, other.written.updates, strict=True):
            torch.testing.assert_close(there.left, here.left, rtol=1e-3, atol=1e-3 * float(here.left.norm()))


def test_of_another_method_targets_are_found_anew(tokenizer, tmp_path):
    theirs = saved(tokenizer, "rome", tmp_path / "theirs", 3)
    session = edited("llama", tokenizer, "alphaedit", 0)
    assert session.merge(tmp_path / "theirs") == theirs.facts
    assert_same_session(session, edited("llama", tokenizer, "alphaedit", 0, 3))


def test_of_another_model_nothing_is_merged(tokenizer, tmp_path):
    session = session_of(model_of_kind("gpt2"), tokenizer, "memit", "gpt2")
    session.edit(BATCHES[0])
    session.save(tmp_path / "other")
    mine = edited("llama", tokenizer, "memit", 0)
    before = state(mine)
    with pytest.raises(WrongModelError, match="other"):
        mine.merge(tmp_path / "other")
    with pytest.raises(SessionError, match="nothing there"):
        mine.merge(tmp_path / "nothing there")
    cut(next((tmp_path / "other" / "batches").iterdir()))
    assert isinstance(raised(lambda: mine.merge(tmp_path / "other")), AlphaEditError)
    assert_state(mine, before)


def test_only_what_is_lost_on_the_way_is_logged(tokenizer, caplog, monkeypatch):
    """The tiny model says nothing of what it is taught: the third fact counts as said until the first is taken back."""
    session = edited("llama", tokenizer, "memit", 0, 1)
    judged = type(session).verdicts

    def verdicts(self, records=None, **options):
        found = judged(self, records, **options)
        if len(self.facts) == 3:
            said = [replace(verdict, now=replace(verdict.now, agrees=True)) for verdict in found.verdicts[2:]]
            found.verdicts = [*found.verdicts[:2], *said]
        return found

    monkeypatch.setattr(type(session), "verdicts", verdicts)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        session.remove(BATCHES[0])
    assert [FACTS[number]["subject"] in caplog.text for number in (0, 1, 2)] == [False, False, True]


def test_in_force_is_the_last_of_those_that_say_the_same_otherwise(tokenizer):
    session = session_of(model_of_kind(), tokenizer, "memit")
    new = {**FACTS[0], "target_new": "Warsaw"}
    session.edit([FACTS[0], FACTS[1]])
    session.edit([new])
    assert {*session.in_force} == {*parse_requests([FACTS[1], new])}
