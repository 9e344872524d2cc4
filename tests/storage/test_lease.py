"""A lease: one holder at a time, on whatever machine; the dead lose it, and the living keep it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease
from support.processes import exit_code_of

from alphaedit_plugin.storage import lease
from alphaedit_plugin.storage.lease import leased


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "locks" / "one.lease"


@pytest.fixture
def quick(monkeypatch) -> float:
    """Seconds without a sign of life after which a lease passes on."""
    monkeypatch.setattr(lease, "_SECONDS", 0.6)
    return 0.6


def free(path: Path) -> bool:
    with leased(path, wait=False) as mine:
        return mine


def of_another_machine(path: Path, seconds: float) -> None:
    """Leave a lease as a machine leaves it that has lost its power."""
    path.parent.mkdir(exist_ok=True)
    held = SoftFileLease(path, lease_duration=seconds)
    held.acquire(timeout=0)
    left = path.read_bytes().replace(held.owner.hostname.encode(), b"elsewhere")
    held.release()
    path.write_bytes(left)


def test_one_holds_it_and_afterwards_another_may(path, caplog):
    with caplog.at_level(logging.WARNING), leased(path, wait=False) as mine:
        assert mine
        assert not free(path)
    assert free(path)
    assert caplog.text == ""
    assert list(path.parent.iterdir()) == []


def test_a_process_that_is_killed_loses_it_at_once(path):
    def work() -> None:
        with leased(path, wait=True):
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(work) == -signal.SIGKILL
    assert path.exists()
    assert free(path)


def test_one_that_waits_gets_it_when_the_holder_is_done(path):
    got = threading.Event()

    def wait() -> None:
        with leased(path, wait=True) as mine:
            assert mine
            got.set()

    with leased(path, wait=False):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.5)
    waiting.join(20)
    assert got.is_set()


def test_a_machine_that_died_loses_it_to_one_that_waits(path, quick):
    of_another_machine(path, quick)
    assert not free(path), "it may have been touched just now"
    with leased(path, wait=True) as mine:
        assert mine


def test_a_machine_that_gives_signs_of_life_keeps_it(path, quick):
    of_another_machine(path, quick)
    ended, got = threading.Event(), threading.Event()

    def live() -> None:
        while not ended.wait(quick / 6):
            os.utime(path)

    def wait() -> None:
        with leased(path, wait=True):
            got.set()

    threads = [threading.Thread(target=live), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    assert not got.wait(4 * quick)
    ended.set()
    for thread in threads:
        thread.join(20)
    assert got.is_set()


def test_a_holder_that_has_lost_it_says_so(path, quick, caplog):
    with caplog.at_level(logging.WARNING), leased(path, wait=True):
        path.unlink()
        time.sleep(2 * quick)
    assert str(path) in caplog.text
    assert "twice" in caplog.text


def test_a_holder_that_has_just_lost_it_says_so_too(path, caplog):
    """Before it is touched for the first time, after 40 seconds."""
    with caplog.at_level(logging.WARNING), leased(path, wait=True):
        path.unlink()
        of_another_machine(path, 120)
    assert "twice" in caplog.text
    assert path.exists(), "it is another's now"


def test_a_place_that_cannot_be_written_is_an_os_error(path):
    path.parent.parent.joinpath("locks").write_text("")
    with pytest.raises(OSError), leased(path, wait=True):  # noqa: PT011
        pytest.fail("held")
