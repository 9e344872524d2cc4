"""The ledger: numbers, times and what supersedes what, from a session and from its folder alike."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import taught
from support.paths import ROOT, SAVED
from support.sessions import assert_same_session, batch_files, contents, edited, manifest, model_of_kind, write
from support.tries import tries

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import SessionDamagedError, SessionError
from alphaedit_plugin.session import batch as batch_module
from alphaedit_plugin.session.ledger import Ledger
from alphaedit_plugin.session.manifest import TIMES, Listed, listed, times_in
from alphaedit_plugin.session.session import Session

THEN = datetime(2020, 2, 29, 12, 30, tzinfo=UTC)


@pytest.fixture
def clock(monkeypatch):
    """A minute passes from one batch to the next."""
    minutes = itertools.count()

    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return THEN + timedelta(minutes=next(minutes))

    monkeypatch.setattr(batch_module, "datetime", Clock)


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=3), max_size=5))
@tries(60)
def test_facts_are_numbered_as_they_were_written_and_the_last_of_a_text_is_in_force(batches):
    batches = [tuple(Request("of {}", subject, target) for subject, target in batch) for batch in batches]
    ledger = Ledger.of(Listed("memit", "tiny", [(batch, None) for batch in batches]))
    facts = [fact for batch in batches for fact in batch]
    assert [entry.request for entry in ledger] == facts
    assert [entry.number for entry in ledger] == list(range(1, len(facts) + 1))
    assert [entry.batch for entry in ledger] == [n for n, batch in enumerate(batches, start=1) for _ in batch]
    assert {entry.request.text: entry.request for entry in ledger if entry.in_force} == {f.text: f for f in facts}
    for entry in ledger:
        later = [n for n, fact in enumerate(facts, start=1) if n > entry.number and fact.text == entry.request.text]
        assert entry.superseded_by == (later[0] if later else None)


def test_a_folder_lists_what_its_session_lists_and_needs_neither_model_nor_torch(tokenizer, tmp_path, clock):
    session = edited("llama", tokenizer, "alphaedit", 0, 1, 2)
    session.save(tmp_path / "s")
    ledger = session.ledger(asking=False)
    assert list(Ledger.of(listed(tmp_path / "s"))) == list(ledger)
    assert [entry.time for entry in ledger] == [THEN + timedelta(minutes=entry.batch - 1) for entry in ledger]
    code = (
        "import sys; from pathlib import Path; from alphaedit_plugin.session.ledger import Ledger;"
        "from alphaedit_plugin.session.manifest import listed; print(Ledger.of(listed(Path(sys.argv[1]))));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip("\n") == repr(ledger), done.stderr


def test_a_ledger_has_the_verdict_on_each_fact_now(tokenizer):
    session = taught.twice(tokenizer)
    ledger = session.ledger()
    assert tuple(entry.verdict for entry in ledger) == session.verdicts().verdicts
    written = [entry.verdict.written for entry in ledger]
    assert (written[0], written[2]) == (False, True)
    assert f"3 facts, 1 of them superseded; {sum(written[1:])} of 2 in force are said" in " ".join(repr(ledger).split())
    assert "superseded by 3" in repr(ledger)
    assert taught.session(tokenizer).ledger() == []


def test_times_survive_save_resume_and_undo(tokenizer, tmp_path, clock):
    session = edited("llama", tokenizer, "alphaedit", 0, 1, 2)
    session.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert resumed.ledger(asking=False) == session.ledger(asking=False)
    resumed.undo()
    write(resumed, 3)
    times = list(dict.fromkeys(entry.time for entry in resumed.ledger(asking=False)))
    assert times == [THEN, THEN + timedelta(minutes=1), THEN + timedelta(minutes=3)]
    assert [time for _, time in listed(tmp_path / "s").batches] == times
    assert set(times_in(tmp_path / "s")) >= {path.name for path in batch_files(tmp_path / "s")}


def test_the_time_is_no_part_of_what_a_session_is(tokenizer, tmp_path, clock):
    """Two that were written at other times are the same, file by file."""
    for name in ("one", "other"):
        edited("llama", tokenizer, "alphaedit", 0, 1).save(tmp_path / name)
    one, other = tmp_path / "one", tmp_path / "other"
    assert manifest(one) == manifest(other)
    for path, twin in zip(batch_files(one), batch_files(other), strict=True):
        assert contents(path)[0] == contents(twin)[0]
    assert times_in(one) != times_in(other)


@pytest.mark.parametrize("damage", ["absent", "cut short", "no times", "a list"])
def test_without_its_times_a_session_is_the_same_and_nobody_knows_when(damage, tokenizer, tmp_path):
    session = edited("llama", tokenizer, "alphaedit", 0, 1)
    session.save(tmp_path / "s")
    path = tmp_path / "s" / TIMES
    text = {"cut short": path.read_text()[:20], "no times": '{"000000.safetensors": "soon"}', "a list": "[]"}
    path.unlink()
    if damage != "absent":
        path.write_text(text[damage])
    assert {time for _, time in listed(tmp_path / "s").batches} == {None}
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert_same_session(resumed, session)
    assert {entry.time for entry in resumed.ledger(asking=False)} == {None}
    write(resumed, 2)
    assert [time is None for _, time in listed(tmp_path / "s").batches] == [True, True, False]


def test_what_version_0_1_saved_is_listed_without_times(tmp_path):
    shutil.copytree(SAVED / "edited" / "session", tmp_path / "s")
    ledger = Ledger.of(listed(tmp_path / "s"))
    assert len(ledger) > 0
    assert {entry.time for entry in ledger} == {None}
    assert " –  " in repr(ledger)


def test_a_folder_without_a_session_or_with_a_swapped_batch_is_refused_by_name(tokenizer, tmp_path):
    with pytest.raises(SessionError, match="holds no session"):
        listed(tmp_path)
    edited("llama", tokenizer, "alphaedit", 0, 1).save(tmp_path / "s")
    first, second = batch_files(tmp_path / "s")
    shutil.copy(first, second)
    with pytest.raises(SessionDamagedError, match=second.name):
        listed(tmp_path / "s")
    names = json.loads((tmp_path / "s" / "session.json").read_text())["batches"]
    assert len(names) == 2


def test_a_session_shows_its_ledger(tokenizer):
    session = edited("llama", tokenizer, "alphaedit", 0)
    assert repr(session) == repr(session.ledger(asking=False))
    assert "<pre" in session._repr_html_()
