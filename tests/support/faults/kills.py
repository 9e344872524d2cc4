"""SIGKILL while a session edits and saves itself."""

from __future__ import annotations

import functools
import random
import shutil
import time
from pathlib import Path

from support.weights import everything

from . import bench
from .kind import Kind

LEG = 25
LEGS = 20
KILLS = 10


class Kills(Kind):
    name = "kills"
    promise = "a session that is killed resumes to exactly its first facts, and ends as one that was not"
    full = LEGS * KILLS

    legs = LEGS
    """Fewer make a shorter session."""

    def attempt(self, seed: int, place: Path) -> int:
        """A leg of the 500 edits: from a place where the uninterrupted session stood to the next, with kills between.

        Each worker is killed at a random instant, while it resumes or within a few edits; the next one resumes, and
        checks that it stands where the uninterrupted session stood after as many facts.
        """
        chance = random.Random(seed)
        leg = seed % self.legs
        course = self.course
        folder = place / "session"
        if leg:
            shutil.copytree(self.shared / str(leg * LEG), folder)
        last, written = (leg + 1) * LEG, leg * LEG
        resuming = 0.05 + 0.0015 * written  # seconds, about
        killed = 0
        while killed < KILLS:
            worker = bench.Child(functools.partial(work, folder, last, course))
            time.sleep(chance.uniform(0, resuming + 0.05 * 2 * LEG / KILLS))
            worker.kill()
            ended, said = worker.join()
            assert ended or said is None, said
            killed += 1
        ended, said = bench.Child(functools.partial(work, folder, last, course)).join()
        assert ended, said
        expected = course[last]
        session = bench.resume(folder)
        assert bench.cases(session) == list(range(last)), "not all facts are there"
        assert bench.same(everything(session.model), expected), "the weights differ from the uninterrupted session's"
        bench.close(session)
        assert not bench.litter(folder), f"litter: {bench.litter(folder)}"
        files = sorted(path.name for path in (folder / "batches").iterdir())
        assert len(files) == last, f"{len(files)} files for {last} batches"
        return killed

    @functools.cached_property
    def course(self) -> list[dict]:
        """The weights after each fact of a session that nobody disturbs; its folder at the beginning of each leg."""
        folder = self.shared / "undisturbed"
        session = bench.new_session(autosave=folder)
        course = [everything(session.model)]
        for number in range(self.legs * LEG):
            if number and number % LEG == 0:
                shutil.copytree(folder, self.shared / str(number), ignore=shutil.ignore_patterns("*lock"))
            bench.edit(session, bench.FACTS[number])
            course.append(everything(session.model))
        bench.close(session)
        return course


def work(folder: Path, last: int, course: list[dict]) -> None:
    """Go on where the session stands, up to `last` facts. Raises AssertionError if it stands nowhere in the course."""
    session = bench.resume(folder) if (folder / "session.json").exists() else bench.new_session(autosave=folder)
    count = len(session.facts)
    assert bench.cases(session) == list(range(count)), f"resumed as {bench.cases(session)}"
    assert bench.same(everything(session.model), course[count]), f"other weights after {count} facts"
    bench.edit(session, *bench.FACTS[count:last])
    bench.close(session)
