"""Ctrl-C at a random instant of every call that changes a model, if only for a while."""

from __future__ import annotations

import copy
import functools
import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from alphaedit_plugin import NullSpaces, Session, apply_patch, guard, null_space_constrained, revert_patch
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.storage.store import Store
from support.comparing import HELD_OUT, facts_of
from support.sessions import large_targets
from support.weights import everything, matrices

from . import bench
from .kind import Kind


@dataclass
class Call:
    """One call to be interrupted: on `model`, leaving weights and history as in `before` or as in `after`."""

    model: nn.Module
    call: Callable[[], object]
    history: Callable[[], Any] = lambda: None
    quiet: bool = False  # leaves all random states as they were
    checked: Callable[[], None] = field(default=lambda: None)

    def state(self) -> tuple[dict[str, torch.Tensor], Any]:
        return everything(self.model), self.history()


class Interrupts(Kind):
    name = "interrupts"
    promise = "after Ctrl-C a model, its history and the process are as before the call or as after it"
    full = 2000

    def __init__(self, shared: Path) -> None:
        super().__init__(shared)
        self.lasts: dict[str, tuple[float, tuple]] = {}

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        names = list(CALLS)
        name = names[seed % len(names)]
        seconds, after = self._undisturbed(name)
        call = CALLS[name](self, place)
        before, furniture, states = call.state(), bench.furniture(call.model), bench.random_states()
        share = chance.choice((chance.random(), chance.random(), 0.2 * chance.random(), 1 - 0.2 * chance.random()))
        with interrupting(share * seconds) as interrupter:
            furniture = bench.furniture(call.model)
            failure = interrupter.run(call.call)
            changed = bench.differences(furniture, bench.furniture(call.model))
        assert failure is None or isinstance(failure, KeyboardInterrupt), f"{name}: {failure!r} came out of Ctrl-C"
        assert not changed, f"{name}: left behind: {', '.join(changed)}"
        now = call.state()
        assert any(as_in(now, state) for state in (before, after)), f"{name}: neither as before the call nor as after"
        assert failure is not None or interrupter.came or as_in(now, after), f"{name}: undisturbed, but not done"
        if call.quiet:
            assert bench.random_states() == states, f"{name}: a random state was moved"
        call.checked()
        assert not bench.litter(place), f"{name}: litter: {bench.litter(place)}"
        return 1

    def _undisturbed(self, name: str) -> tuple[float, tuple]:
        """How long the call takes, and how it leaves things: a second time, when all that is lazy has been done."""
        if name not in self.lasts:
            for turn in range(2):
                place = self.shared / f"{name} {turn}"
                place.mkdir()
                call = CALLS[name](self, place)
                started = time.perf_counter()
                call.call()
                self.lasts[name] = (time.perf_counter() - started, call.state())
        return self.lasts[name]

    @functools.cached_property
    def session(self) -> Session:
        """One that has written a fact."""
        session = bench.new_session()
        bench.edit(session, bench.FACTS[0])
        return session

    @functools.cached_property
    def damped(self) -> Session:
        """One of PRUNE, with something to damp."""
        session = bench.new_session(method="prune+P")
        session.edit([bench.FACTS[0]], large_targets(session.model, 1, 0), on_failure="ignore")
        return session

    @functools.cached_property
    def folder(self) -> Path:
        self.session.save(self.shared / "session")
        return self.shared / "session"

    @functools.cached_property
    def patch(self) -> Path:
        self.session.to_patch(self.shared / "patch.safetensors")
        return self.shared / "patch.safetensors"


def as_in(state: tuple, other: tuple) -> bool:
    return bench.same(state[0], other[0]) and state[1] == other[1]


# ------------------------------------------------------------------------------------------------- the calls

CALLS: dict[str, Callable[[Interrupts, Path], Call]] = {}


def calling(make: Callable[[Interrupts, Path], Call]) -> Callable[[Interrupts, Path], Call]:
    CALLS[make.__name__] = make
    return make


def twin_of(session: Session) -> Session:
    return session.on_copy(copy.deepcopy(session.model))


def history_of(session: Session) -> tuple:
    return bench.cases(session), session.finished


def of_session(session: Session, call: Callable[[], object], **options: Any) -> Call:
    return Call(session.model, call, lambda: history_of(session), **options)


@calling
def edits(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.session)
    return of_session(session, lambda: session.edit([bench.FACTS[1]]))


@calling
def edits_unasked(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.session)
    return of_session(session, lambda: bench.edit(session, bench.FACTS[1]))


@calling
def undo(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.session)
    return of_session(session, session.undo)


@calling
def finish(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.damped)
    return of_session(session, session.finish)


@calling
def at(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.damped)

    def measure() -> None:
        with session.at(0):
            forward(session.model)
        with session.at(1, end=session.at_end):
            forward(session.model)

    return of_session(session, measure, quiet=True)


@calling
def save(kind: Interrupts, place: Path) -> Call:
    session = twin_of(kind.session)
    folder = place / "session"

    def whole() -> None:
        if (folder / "session.json").exists():
            assert bench.cases(bench.look(folder)) == bench.cases(session), "the folder holds another session"

    return of_session(session, lambda: session.save(folder), checked=whole)


def autosaved(place: Path, *facts: int) -> tuple[Session, Callable[[], None]]:
    """A session that has written these facts, and a check that its folder holds what it holds."""
    session = bench.new_session(autosave=place / "session")
    for fact in facts:
        bench.edit(session, bench.FACTS[fact])

    def whole() -> None:
        held = history_of(session)
        bench.close(session)
        assert history_of(bench.look(place / "session")) == held, "the folder holds another history than the session"

    return session, whole


@calling
def autosaves(kind: Interrupts, place: Path) -> Call:
    session, whole = autosaved(place, 0)
    return of_session(session, lambda: bench.edit(session, bench.FACTS[1]), checked=whole)


@calling
def removes(kind: Interrupts, place: Path) -> Call:
    session, whole = autosaved(place, 0, 1)
    return of_session(session, lambda: session.remove([bench.FACTS[0]]), checked=whole)


@calling
def merges(kind: Interrupts, place: Path) -> Call:
    session, whole = autosaved(place, 1)
    folder = kind.folder
    return of_session(session, lambda: session.merge(folder), checked=whole)


@calling
def resume(kind: Interrupts, place: Path) -> Call:
    model = bench.new_model()
    return Call(model, lambda: bench.look(kind.folder, model))


@calling
def guarded(kind: Interrupts, _place: Path) -> Call:
    model = bench.new_model()

    def write() -> None:
        with guard(model, bench.spaces_of()):
            editor(model)

    return Call(model, write)


@calling
def decorated(kind: Interrupts, _place: Path) -> Call:
    model = bench.new_model()
    constrained = null_space_constrained(bench.spaces_of())(editor)
    return Call(model, lambda: constrained(model))


@calling
def verdicts(kind: Interrupts, _place: Path) -> Call:
    session = twin_of(kind.session)
    return of_session(session, session.verdicts, quiet=True)


@calling
def fact_scores(kind: Interrupts, _place: Path) -> Call:
    model = bench.new_model()
    return Call(model, lambda: FactScores()(model, bench.tokenizer_of(), facts_of(2), None), quiet=True)


@calling
def perplexity(kind: Interrupts, _place: Path) -> Call:
    model = bench.new_model()
    measure = Perplexity(HELD_OUT, bench.tokenizer_of())
    return Call(model, lambda: measure(model, bench.tokenizer_of(), facts_of(2), None), quiet=True)


@calling
def prepare(kind: Interrupts, place: Path) -> Call:
    model = bench.new_model()
    text = place / "text.txt"
    text.write_text("\n".join([HELD_OUT] * 20), encoding="utf-8")
    store = Store(place / "cache")

    def made() -> None:
        NullSpaces.prepare(model, bench.tokenizer_of(), [bench.LAYER], nullity=10, corpus=text, tokens=240, store=store)

    return Call(model, made, quiet=True)


@calling
def patch(kind: Interrupts, _place: Path) -> Call:
    model = bench.new_model()
    return Call(model, lambda: apply_patch(model, kind.patch))


@calling
def unpatch(kind: Interrupts, _place: Path) -> Call:
    model = copy.deepcopy(kind.session.model)
    return Call(model, lambda: revert_patch(model, kind.patch))


def editor(model: nn.Module) -> None:
    """A user's: looks, writes, looks and writes again."""
    (weight,) = matrices(model, [bench.LAYER]).values()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        forward(model)
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)
    forward(model)


@torch.no_grad()
def forward(model: nn.Module) -> None:
    model(torch.tensor([[5, 9, 11, 3]]))


# ------------------------------------------------------------------------------------------------- the signal


class Interrupter:
    """A process beside this one that sends it SIGINT: a thread could do so only where Python changes threads."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers = orders, answers
        self.armed = self.came = False

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.armed:
            self.came = True
            raise KeyboardInterrupt

    def run(self, call: Callable[[], object]) -> BaseException | None:
        """What comes out of the call, during which SIGINT is sent."""
        failure: BaseException | None = None
        self.armed = True
        try:
            try:
                os.write(self._orders, b"g")
                call()
            finally:
                self.armed = False
        except BaseException as raised:
            failure = raised
        self.armed = False
        os.write(self._orders, b"o")
        os.read(self._answers, 1)
        return failure


@contextmanager
def interrupting(delay: float) -> Iterator[Interrupter]:
    """An Interrupter that waits so many seconds; its handler is the process's while the block lasts."""
    orders, giving = os.pipe()
    answers, answering = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.read(orders, 1)
            if not select.select([orders], [], [], delay)[0]:
                os.kill(parent, signal.SIGINT)
            os.read(orders, 1)
            os.write(answering, b".")
        finally:
            os._exit(0)
    interrupter = Interrupter(giving, answers)
    previous = signal.signal(signal.SIGINT, interrupter.handle)
    try:
        yield interrupter
    finally:
        signal.signal(signal.SIGINT, previous)
        os.waitpid(child, 0)
        for end in (orders, giving, answers, answering):
            os.close(end)
