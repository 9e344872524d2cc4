"""Several processes in one folder, several threads in one guard."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alphaedit_plugin import guard
from alphaedit_plugin.errors import GuardError, SessionError, WrongModelError
from alphaedit_plugin.storage.store import Store
from support.spaces import outside
from support.weights import everything, matrices

from . import bench
from .flips import rows_of, run_of
from .kind import Kind

MANY = 8
PATIENCE = 30  # seconds, of a slow machine


def together(count: int, work: Callable[[int, Any], Any]) -> list[Any]:
    """What `work(number, barrier)` returns in each of so many processes; an exception's text fails the attempt."""
    barrier = multiprocessing.get_context("fork").Barrier(count)

    def working(number: int) -> Any:
        try:
            return work(number, barrier)
        except BaseException:
            barrier.abort()  # or the others would wait for this one
            raise

    children = [bench.Child(functools.partial(working, number)) for number in range(count)]
    answers = [child.join() for child in children]
    wrong = [said for ended, said in answers if not ended]
    wrong = [said for said in wrong if said and not said.startswith("BrokenBarrier")] or wrong
    assert not wrong, f"{len(wrong)} of {count} processes failed: {wrong[0]}"
    return [said for _, said in answers]


class FolderRaces(Kind):
    name = "races/session"
    promise = "of processes that want one session folder one has it, and its edits alone are there"
    full = 30 * MANY

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        folder = place / "session"
        begun = chance.choice((0, 1, 2))
        if begun:
            session = bench.new_session(autosave=folder)
            bench.edit(session, *bench.FACTS[:begun])
            bench.close(session)
            del session
        answers = together(MANY, functools.partial(own, folder))
        owners = [answer for answer in answers if answer is not None]
        assert len(owners) == 1, f"{len(owners)} of {MANY} processes own the folder"
        written = [*range(begun), *owners[0]]
        session = bench.look(folder)
        assert bench.cases(session) == written, f"{bench.cases(session)} are there, of {written}"
        assert bench.same(everything(session.model), bench.after(*written)), "the weights are no session's"
        return MANY


def own(folder: Path, number: int, barrier: Any) -> list[int] | None:
    """The facts that this process wrote as the folder's owner, or None if it was refused.

    In a folder without a session yet, the first to save owns it.
    """
    facts = [100 * number + at for at in range(100, 103)]
    barrier.wait(PATIENCE)
    try:
        if (folder / "session.json").exists():
            session = bench.resume(folder)
        else:
            session = bench.new_session(autosave=folder)
            bench.edit(session, bench.FACTS[facts[0]])
    except SessionError:
        session = None
    barrier.wait(PATIENCE)  # the owner holds it until all have asked
    if session is None:
        barrier.wait(PATIENCE)
        return None
    bench.edit(session, *(bench.FACTS[each] for each in facts if each not in bench.cases(session)))
    barrier.wait(PATIENCE)
    bench.close(session)
    return facts


class SecondObject(Kind):
    name = "races/two objects"
    promise = "a second session on a folder, in the same process, is refused"
    full = 40

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        first = bench.new_session(autosave=place / "session")
        bench.edit(first, bench.FACTS[0])
        written = [0]
        second = None
        with contextlib.suppress(SessionError):
            second = bench.resume(place / "session")
        for number in range(1, 4):
            if second is not None and chance.random() < 0.5:
                try:
                    bench.edit(second, bench.FACTS[100 + number])
                except SessionError:
                    continue
                raise AssertionError("both sessions wrote into the folder")
            bench.edit(first, bench.FACTS[number])
            written.append(number)
        bench.close(first)
        assert second is None, "the folder was resumed twice"
        assert bench.cases(bench.look(place / "session")) == written
        return 1


class CacheRaces(Kind):
    name = "races/cache"
    promise = "of processes that want one entry of the cache one computes it, and all get the same"
    full = 30 * MANY

    def attempt(self, seed: int, place: Path) -> int:
        expected = torch.rand(200, generator=torch.Generator().manual_seed(seed)).tolist()
        log = place / "made"
        answers = together(MANY, functools.partial(get, place / "cache", log, seed, random.Random(seed).random() / 20))
        assert all(answer == expected for answer in answers), "not all got the same"
        assert log.stat().st_size == 1, f"it was computed {log.stat().st_size} times"
        assert not bench.litter(place), f"litter: {bench.litter(place)}"
        return MANY


def get(root: Path, log: Path, seed: int, seconds: float, _number: int, barrier: Any) -> list[float]:
    def make(_missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        with log.open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(seconds)
        return {0: {"x": torch.rand(200, generator=torch.Generator().manual_seed(seed))}}

    barrier.wait(PATIENCE)
    return Store(root).get_or_make("covariance", {0: {"seed": seed}}, make)[0]["x"].tolist()


class RunRaces(Kind):
    name = "races/run folder"
    promise = "processes that make one comparison share the work, and all end with the result of one alone"
    full = 8 * 4

    def attempt(self, seed: int, place: Path) -> int:
        folder = place / "cell"
        answers = together(4, functools.partial(run, folder))
        assert all(answer == self._alone for answer in answers), "not all got the result of one alone"
        left = [str(path.relative_to(folder)) for path in folder.rglob("sessions/*")] + bench.litter(folder)
        assert not left, f"left behind: {left}"
        return 4

    @functools.cached_property
    def _alone(self) -> dict[tuple[str, int], str]:
        return rows_of(run_of(None))


def run(folder: Path, _number: int, barrier: Any) -> dict[tuple[str, int], str]:
    barrier.wait(PATIENCE)
    return rows_of(run_of(folder))


class GuardRaces(Kind):
    name = "races/guard"
    promise = "threads enter a guard one at a time, or are refused; no weight stays guarded or leaves the null space"
    full = 100

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        model, spaces = bench.new_model(), bench.spaces_of()
        (weight,) = matrices(model, [bench.LAYER]).values()
        start = weight.clone()
        furniture = bench.furniture(model)
        count = chance.choice((2, 2, 8))
        ready = threading.Barrier(count)
        wrong: list[BaseException] = []

        def enter() -> None:
            ready.wait(60)
            try:
                with guard(model, spaces), torch.no_grad():
                    parameter = model.model.layers[bench.LAYER].mlp.down_proj.weight
                    parameter.add_(torch.randn(weight.shape), alpha=0.01)
                    time.sleep(0.001)
            except (GuardError, WrongModelError):  # by another thread: guarded, or edited already
                pass
            except BaseException as failure:
                wrong.append(failure)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=enter) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            sys.setswitchinterval(interval)
        assert not wrong, f"{wrong[0]!r}"
        changed = bench.differences(furniture, bench.furniture(model))
        assert not changed, f"left behind: {', '.join(changed)}"
        (now,) = matrices(model, [bench.LAYER]).values()
        out, size = outside(spaces[bench.LAYER], start, now, False)
        assert size > 0, "no thread could write"
        assert out <= 1e-4 * size, f"{out / size:.2g} of what was written lies outside the null space"
        return 1


RACES: tuple[type[Kind], ...] = (FolderRaces, SecondObject, CacheRaces, RunRaces, GuardRaces)
