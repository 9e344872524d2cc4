"""A share of the campaign of faults (`benchmarks/faults.py`), with another seed each time; and that it can fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.faults import fuzz
from support.faults.campaign import made, row, tried
from support.faults.compare_kills import CompareKills
from support.faults.flips import Batches, CacheEntries, RunTensors
from support.faults.fullness import Fullness
from support.faults.fuzz import Fuzz
from support.faults.guards import Guards
from support.faults.interrupts import CALLS, Call, Interrupts
from support.faults.kills import Kills
from support.faults.kind import Kind
from support.faults.kinds import KINDS
from support.faults.races import CacheRaces

from alphaedit_plugin.comparison.run_folder import RunFolder
from alphaedit_plugin.session.folder import SessionFolder
from alphaedit_plugin.storage import tensors
from alphaedit_plugin.storage.store import Store

SECONDS = 120
SEED = int(os.environ["ALPHAEDIT_FAULT_SEED"])
"""Another one for each run; pytest prints it at its beginning. Set the variable to repeat what a run found."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_share_of_the_campaign_breaks_no_promise(kind: type[Kind]) -> None:
    print(f"ALPHAEDIT_FAULT_SEED={SEED}")
    count = max(1, kind.full // 10)
    with made(kind) as one:
        if isinstance(one, Kills):
            one.legs = 1
        if one.absent():
            pytest.skip(f"{kind.name}: {one.absent()}")
        tally = tried(one, SEED, count, SECONDS / len(KINDS))
    print(row(tally))
    found = "\n".join(f"python benchmarks/faults.py --only {kind.name}:{seed}: {why}" for seed, why in tally.failures)
    assert not tally.failures, f"ALPHAEDIT_FAULT_SEED={SEED}\n{found}"
    assert tally.tried > 0


# ------------------------------------------------------------------------------- a campaign that could not fail

Plant = Callable[[pytest.MonkeyPatch], None]


def a_batch_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    save = SessionFolder._save_manifest
    patch.setattr(SessionFolder, "_save_manifest", lambda self, values, names: save(self, values, names[:-1]))


def sessions_are_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunFolder, "finished", lambda self, session: None)


def a_hook_is_left(patch: pytest.MonkeyPatch) -> None:
    def hooked(make: Callable[..., Call]) -> Callable[..., Call]:
        def made_so(kind: Interrupts, place: Path) -> Call:
            call = make(kind, place)
            call.call = lambda: call.model.register_forward_hook(lambda *_: None)
            return call

        return made_so

    for name, make in list(CALLS.items()):
        patch.setitem(CALLS, name, hooked(make))


def nothing_is_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensors, "_checksum", lambda *_: "always the same")


def errors_are_raw(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def plain(path: Path, error: type) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    patch.setattr(tensors, "atomic", plain)


def nobody_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "lock", lambda self, name: nullcontext())


def everything_is_a_record(patch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("prompt")

    patch.setattr(fuzz, "parse_requests", broken)


PLANTS: list[tuple[type[Kind], Plant, int]] = [
    (Kills, a_batch_is_forgotten, 1),
    (CompareKills, sessions_are_left, 1),
    (Interrupts, a_hook_is_left, 3),
    (Batches, nothing_is_checked, 40),
    (CacheEntries, nothing_is_checked, 40),
    (RunTensors, nothing_is_checked, 40),
    (Fullness, errors_are_raw, 20),
    (CacheRaces, nobody_waits, 16),
    (Fuzz, everything_is_a_record, 20),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "plant", "count"), PLANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_campaign_finds_a_broken_promise(
    kind: type[Kind], plant: Plant, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(kind) as one:
        if isinstance(one, Kills):
            one.legs = 1
            assert one.course  # made before anything is broken
        plant(monkeypatch)
        tally = tried(one, 1, count)
    assert tally.failures


def test_the_campaign_finds_a_guard_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scenarios come from elsewhere: here one that always fails, and none."""

    class Scenarios:
        @staticmethod
        def scenario(seed: int) -> str:
            raise AssertionError(f"scenario {seed} left the null space")

    with made(Guards) as one:
        monkeypatch.setattr(Guards, "absent", lambda self: None)
        monkeypatch.setattr("support.faults.guards.importlib.import_module", lambda name: Scenarios)
        assert len(tried(one, 1, 5).failures) == 5


def test_the_same_seed_tries_the_same_faults_again() -> None:
    with made(Fuzz) as one:
        first, second = (tried(one, 7, 30) for _ in range(2))
    assert first.failures == second.failures
    assert first.tried == second.tried == 30
