"""A session under everything that can happen to it, against the simplest model of one: a list of facts.

Killed means: a process of its own resumes the folder and goes on, and ends without a farewell just before its n-th
change of a directory entry (a rename, the removal of a file).
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.faults import bench
from support.tries import tries
from support.weights import everything

from alphaedit_plugin import AlphaEditError

FEW = st.integers(0, 5)
BAD = st.sampled_from([{}, {"prompt": "no subject"}, {**bench.FACTS[0], "target_new": ""}, "no record"])


class SessionMachine(RuleBasedStateMachine):
    """Invariant: history and weights are those of a session that has only ever written these facts."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="session-machine-"))
        self.folder = self.place / "session"
        self.session = bench.new_session(autosave=self.folder)
        self.facts: list[int] = []

    @rule(fact=FEW)
    def edit(self, fact: int) -> None:
        bench.edit(self.session, bench.FACTS[fact])
        self.facts.append(fact)

    @rule(record=BAD)
    def edit_what_cannot_be(self, record: object) -> None:
        with pytest.raises(AlphaEditError):
            self.session.edit([record])

    @precondition(lambda self: self.facts)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.facts)))
        self.session.undo(count)
        del self.facts[-count:]

    @rule()
    def finish(self) -> None:
        self.session.finish()

    @precondition(lambda self: self.facts)
    @rule()
    def look_back(self) -> None:
        with self.session.at(len(self.facts) - 1):
            assert bench.same(everything(self.session.model), bench.after(*self.facts[:-1]))

    @rule()
    def save_elsewhere(self) -> None:
        folder = self.place / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        self.session.save(folder)
        assert bench.cases(bench.look(folder)) == self.facts

    @precondition(lambda self: (self.folder / "session.json").exists())
    @rule()
    def resume(self) -> None:
        bench.close(self.session)
        self.session = bench.resume(self.folder)

    @precondition(lambda self: (self.folder / "session.json").exists())
    @rule(fact=FEW, undo=st.booleans(), step=st.integers(0, 5))
    def killed(self, fact: int, undo: bool, step: int) -> None:
        undo = undo and bool(self.facts)
        bench.close(self.session)
        after = self.facts[:-1] if undo else [*self.facts, fact]
        bench.Child(lambda: killed_while(self.folder, fact, undo, step)).join()
        self.session = bench.resume(self.folder)
        found = bench.cases(self.session)
        assert found in (self.facts, after), f"{found} is neither {self.facts} nor {after}"
        self.facts = found

    @invariant()
    def as_if_nothing_else_had_happened(self) -> None:
        assert bench.cases(self.session) == self.facts
        assert bench.same(everything(self.session.model), bench.after(*self.facts))

    def teardown(self) -> None:
        bench.close(self.session)
        shutil.rmtree(self.place, ignore_errors=True)


def killed_while(folder: Path, fact: int, undo: bool, step: int) -> None:
    """Resume and go on, in a process that is killed before its `step`-th change of a directory entry."""
    session = bench.resume(folder)
    left = step

    def counted(change):
        def changed(*args, **kwargs):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*args, **kwargs)

        return changed

    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
    if undo:
        session.undo()
    else:
        bench.edit(session, bench.FACTS[fact])


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = tries(15, stateful_step_count=12)
