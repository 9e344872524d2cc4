"""SIGKILL while `compare` edits and measures in a folder."""

from __future__ import annotations

import functools
import random
import time
from pathlib import Path
from typing import Any

from . import bench
from .flips import rows_of, run_of
from .kind import Kind

KILLS = 3


class CompareKills(Kind):
    name = "compare kills"
    promise = "a comparison that is killed ends as one that was not, and leaves nothing but its results"
    full = 60

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        seconds, expected = self._undisturbed
        folder = place / "cell"
        for _ in range(KILLS):
            worker = bench.Child(functools.partial(found, folder))
            time.sleep(chance.uniform(0, seconds))
            worker.kill()
            ended, said = worker.join()
            assert ended or said is None, said
        ended, rows = bench.Child(functools.partial(found, folder)).join()
        assert ended, rows
        assert rows == expected, "the result is another than that of a run without interruption"
        left = [str(path.relative_to(folder)) for path in folder.rglob("sessions/*")] + bench.litter(folder)
        assert not left, f"left behind: {left}"
        return KILLS

    @functools.cached_property
    def _undisturbed(self) -> tuple[float, dict[tuple[str, int], str]]:
        started = time.perf_counter()
        expected = found(self.shared / "cell")
        return time.perf_counter() - started, expected


def found(folder: Path) -> dict[tuple[str, int], Any]:
    return rows_of(run_of(folder))
