"""Runs kinds of faults, as many as asked for or as the time allows, and counts what held."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .kind import Kind, Outcome

PATIENCE = 300
"""Seconds that one attempt may take on a slow and busy machine."""


@dataclass
class Tally:
    """What came of a kind. `failures` are (seed, what was broken)."""

    name: str
    promise: str
    tried: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    absent: str | None = None

    @property
    def held(self) -> int:
        return self.tried - len(self.failures)

    def add(self, seed: int, outcome: Outcome) -> None:
        self.tried += outcome.faults
        if outcome.broken is not None:
            self.failures.append((seed, outcome.broken))


def seeds(kind: str, seed: int) -> Iterator[int]:
    """The seeds of a kind's attempts in the campaign of this seed; consecutive, so that `seed % n` takes every turn."""
    return itertools.count(random.Random(f"{seed}/{kind}").getrandbits(32))


def attempted(kind: Kind, seed: int, keep: bool = True) -> Outcome:
    """One attempt, in a folder that is kept (and named) only if a promise was broken."""
    place = Path(tempfile.mkdtemp(prefix=f"fault-{kind.name.replace('/', '-')}-{seed}-"))
    try:
        with no_longer_than(PATIENCE):
            faults = kind.attempt(seed, place)
    except Exception as failure:
        said = "".join(traceback.format_exception_only(failure)).strip()
        if not isinstance(failure, AssertionError):
            at = traceback.extract_tb(failure.__traceback__)[-1]
            said = f"{said} (at {Path(at.filename).name}:{at.lineno})"
        if keep and any(place.iterdir()):
            said = f"{said}; kept in {place}"
        else:
            shutil.rmtree(place, ignore_errors=True)
        return Outcome(1, said)
    shutil.rmtree(place, ignore_errors=True)
    return Outcome(faults)


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in a block that hangs: that is a fault too."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not over after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def campaign(
    kinds: Sequence[type[Kind]],
    seed: int,
    *,
    scale: float = 1.0,
    seconds: float = float("inf"),
    on_tally: Callable[[Tally], None] = lambda tally: None,
    keep: bool = False,
) -> list[Tally]:
    """Try `scale` × the full count of every kind; within `seconds`, of which each kind has a fair share.

    What a kind leaves of its share goes to those that come after it. `keep` the folders of attempts that failed.
    """
    started, tallies = time.monotonic(), []
    for number, chosen in enumerate(kinds):
        left = seconds - (time.monotonic() - started)
        with made(chosen) as kind:
            tally = tried(kind, seed, round(max(1, scale * kind.full)), left / (len(kinds) - number), keep)
        on_tally(tally)
        tallies.append(tally)
    return tallies


def tried(kind: Kind, seed: int, count: int, seconds: float = float("inf"), keep: bool = False) -> Tally:
    """At least one attempt, then more until there were `count` faults or the time is over."""
    tally = Tally(kind.name, kind.promise, absent=kind.absent())
    started = time.monotonic()
    for each in seeds(kind.name, seed) if tally.absent is None else ():
        tally.add(each, attempted(kind, each, keep))
        tally.seconds = time.monotonic() - started
        if tally.tried >= count or tally.seconds >= seconds:
            break
    return tally


@contextmanager
def made(kind: type[Kind]) -> Iterator[Kind]:
    """The kind, with a folder for what its attempts share."""
    with tempfile.TemporaryDirectory(prefix="faults-") as shared:
        yield kind(Path(shared))


def table(tallies: Sequence[Tally]) -> str:
    """A row per kind, in Markdown."""
    rows = ["| fault | tried | held | failed | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    rows += [row(tally) for tally in tallies]
    return "\n".join(rows)


def row(tally: Tally) -> str:
    if tally.absent is not None:
        return f"| {tally.name} | 0 | | | absent: {tally.absent} |"
    failed = len(tally.failures)
    return f"| {tally.name} | {tally.tried} | {tally.held} | {failed} | {tally.seconds:.0f} |"
