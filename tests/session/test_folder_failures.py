"""Killed at any moment, or on a disk that is full: the folder holds the session before or after the call."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.paths import IMPORTS, SUPPORT
from support.processes import exit_code_of
from support.sessions import (
    LAYERS,
    assert_folder_holds,
    assert_same_session,
    assert_state,
    batch_files,
    edited,
    model_of_kind,
    raised,
    reference,
    session_of,
    state,
    write,
)
from support.weights import differ, everything

from alphaedit_plugin.errors import SessionError
from alphaedit_plugin.session.manifest import MANIFEST
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage import files, tensors

pytestmark = pytest.mark.slow

# -------------------------------------------------------------------------------------------- killed, for real


@pytest.mark.slow
@pytest.mark.parametrize("method", ["alphaedit"])
def test_a_process_killed_after_six_of_ten_batches_is_resumed_bit_for_bit(method, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    child = subprocess.Popen(
        [
            sys.executable, SUPPORT / "session_child.py",
            "llama", method, tmp_path / "tokenizer", tmp_path / "s", "0", "10",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTS},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        for number in range(6):
            assert child.stdout.readline() == f"{number}\n"
            if number < 5:
                child.stdin.write("\n")
                child.stdin.flush()
        child.kill()
    assert child.returncode == -signal.SIGKILL
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert len(resumed.batches) == 6
    write(resumed, *range(6, 10))
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(10)))


def _steps() -> Iterator[tuple[object, str]]:
    """Every call by which an edit reaches the disk."""
    yield files.tempfile, "mkstemp"
    yield tensors, "save_file"
    yield Path, "write_text"
    yield files.os, "fsync"
    yield files.os, "replace"
    yield Path, "mkdir"


@contextmanager
def failing(at: int, fail: Callable[[], object], *, after: bool = False) -> Iterator[list[str]]:
    """In the block, step number `at` fails, halfway through its file or right `after`. Yields the steps taken."""
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _steps():
            original = getattr(owner, name)

            def step(*args, _original=original, _name=name, **kwargs):
                taken.append(_name)
                mine = len(taken) - 1 == at
                writes = _name in ("save_file", "write_text")
                if mine and not after and not writes:
                    fail()
                result = _original(*args, **kwargs)
                if mine and not after:
                    path = Path(args[1] if _name == "save_file" else args[0])
                    os.truncate(path, path.stat().st_size // 2)
                if mine:
                    fail()
                return result

            patch.setattr(owner, name, step)
        yield taken


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rect+P", "alphaedit"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_process_killed_while_it_writes_weights_is_resumed_bit_for_bit(layer, method, tokenizer, tmp_path):
    """In the middle of the seventh batch."""

    def work() -> None:
        editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
        write(editing, *range(6))
        once = editing.editor.write

        def then_die(projection, update, *owed):
            once(projection, update, *owed)
            if update.layer == layer:
                kill()

        editing.editor.write = then_die
        write(editing, 6)

    assert exit_code_of(work) == -signal.SIGKILL
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(6)))
    write(resumed, *range(6, 10))
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(10)))


@pytest.mark.slow
def test_a_process_killed_at_any_moment_of_saving_is_resumed_bit_for_bit(tokenizer, tmp_path):
    """Before or after every single call: the folder holds six batches or seven, and nothing gets in the way later."""
    ten = reference("llama", tokenizer, "alphaedit", *range(10))
    edited("llama", tokenizer, "alphaedit", *range(6)).save(tmp_path / "six")
    found = set()
    for moment in range(100):

        def work(at: int = moment // 2, after: bool = moment % 2 == 1) -> None:
            editing = Session.resume(tmp_path / "s", model_of_kind())
            with failing(at, kill, after=after):
                write(editing, 6)

        shutil.copytree(tmp_path / "six", tmp_path / "s")
        if not exit_code_of(work):
            break
        resumed = Session.resume(tmp_path / "s", model_of_kind())
        found.add(len(resumed.batches))
        write(resumed, *range(len(resumed.batches), 10))
        assert_same_session(resumed, ten)
        assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())
        shutil.rmtree(tmp_path / "s")
    assert moment >= 16, "there are at least eight steps"
    assert found == {6, 7}


# ------------------------------------------------------------------------------------ a disk that does not take it


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_saying_so(failure: BaseException, fail: Callable[[], None], folder: Path) -> None:
    if fail is interrupt:
        assert isinstance(failure, KeyboardInterrupt)
        return
    assert isinstance(failure, SessionError)
    assert "No space left" in str(failure)
    assert str(folder) in str(failure)


CALLS: dict[str, Callable[[Session], object]] = {
    "edit": lambda session: write(session, 2),
    "undo": lambda session: session.undo(),
    "finish": lambda session: session.finish(),
    "edit after finish": lambda session: write(session, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("fail", [full, interrupt])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_cannot_be_saved_changes_nothing_in_memory_or_on_disk(call, fail, tokenizer, tmp_path):
    """Whichever step it is that fails. Then the disk is free again, and the same call does all of its work."""
    editing = session_of(model_of_kind(), tokenizer, "prune+P", autosave=tmp_path / "s")
    write(editing, 0, 1)
    if call == "edit after finish":
        editing.finish()
    before, on_disk = state(editing), (tmp_path / "s" / MANIFEST).read_bytes()
    for step in range(100):
        with failing(step, fail) as taken:
            failure = raised(lambda: CALLS[call](editing))
        if failure is None:
            break
        assert_saying_so(failure, fail, tmp_path / "s")
        assert len(taken) == step + 1, "the call went on"
        assert_state(editing, before)
        assert (tmp_path / "s" / MANIFEST).read_bytes() == on_disk
        assert_folder_holds(tmp_path / "s", editing)
    assert step >= 4, "there are at least so many steps"
    assert differ(everything(editing.model), before[0])
    expected = edited("llama", tokenizer, "prune+P", *{"undo": (0,), "finish": (0, 1)}.get(call, (0, 1, 2)))
    if call == "finish":
        expected.finish()
    assert_same_session(editing, expected)
    assert_folder_holds(tmp_path / "s", expected)
    assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("fail", [full, interrupt])
@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit"])
def test_a_first_save_that_fails_leaves_the_session_as_it_was_and_no_session_on_disk(method, fail, tokenizer, tmp_path):
    """Statistics, null spaces and tokenizer are written then, too."""
    editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    before = state(editing)
    for step in range(100):
        with failing(step, fail):
            failure = raised(lambda: write(editing, 0))
        if failure is None:
            break
        assert_saying_so(failure, fail, tmp_path / "s")
        assert_state(editing, before)
        with pytest.raises(SessionError, match="no session"):
            Session.resume(tmp_path / "s", model_of_kind())
    assert step >= 8
    assert_same_session(editing, reference("llama", tokenizer, method, 0))
    assert_folder_holds(tmp_path / "s", editing)


@pytest.mark.slow
def test_an_interrupt_right_after_any_step_leaves_a_whole_session_behind(tokenizer, tmp_path):
    """Memory is as before; the folder may have got further, but holds one of the two, and the next call mends it."""
    editing = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(editing, 0, 1)
    two, three = state(editing), reference("llama", tokenizer, "alphaedit", 0, 1, 2)
    for step in range(100):
        with failing(step, interrupt, after=True):
            failure = raised(lambda: write(editing, 2))
        if failure is None:
            break
        assert_state(editing, two)
        on_disk = Session.resume(tmp_path / "s", model_of_kind(), read_only=True)
        assert_same_session(on_disk, editing if len(on_disk.batches) == 2 else three)
    assert step >= 4
    assert_same_session(editing, three)
    assert_folder_holds(tmp_path / "s", three)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["halfway", "right after"])
def test_a_save_of_another_history_that_is_interrupted_leaves_the_one_or_the_other(after, tokenizer, tmp_path):
    """The batches that were undone since have the numbers of the new ones; their files are needed to the last."""
    old, new = (reference("llama", tokenizer, "alphaedit", *numbers) for numbers in ((0, 1, 2), (0, 3, 4)))
    editing = edited("llama", tokenizer, "alphaedit", 0, 1, 2)
    editing.save(tmp_path / "s")
    editing.undo(2)
    write(editing, 3, 4)
    found = set()
    for step in range(100):
        with failing(step, interrupt, after=after):
            failure = raised(lambda: editing.save(tmp_path / "s"))
        on_disk = Session.resume(tmp_path / "s", model_of_kind(), read_only=True)
        found.add(len(on_disk.facts))
        assert_same_session(on_disk, old if on_disk.facts == old.facts else new)
        if failure is None:
            break
    assert step >= 4
    assert_same_session(on_disk, new)
    assert found == {len(old.facts), len(new.facts)}
    assert len(found) == 2


@pytest.mark.parametrize("fail", [full, interrupt])
def test_what_goes_wrong_while_tidying_up_is_no_error_of_the_disks_and_is_mended(
    fail, tokenizer, tmp_path, monkeypatch
):
    """When the file of an undone batch is removed, the folder holds the new state already."""
    editing = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(editing, 0, 1)
    unlink = Path.unlink

    def failing_unlink(path: Path, *args: object, **kwargs: object) -> None:
        if path.parent.name == "batches" and not path.name.startswith("."):
            fail()
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing_unlink)
        failure = raised(editing.undo)
    if failure is not None:
        assert isinstance(failure, SessionError) == (fail is full)
        assert_same_session(editing, reference("llama", tokenizer, "alphaedit", 0, 1))
    if fail is full:
        assert_folder_holds(tmp_path / "s", editing)
    write(editing, 2)
    assert_folder_holds(tmp_path / "s", editing)
    assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())


@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit", "rome"])
def test_a_place_that_cannot_be_written_is_a_session_error(method, tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    editing = edited("llama", tokenizer, method, 0)
    before = state(editing)
    with pytest.raises(SessionError, match="file"):
        editing.save(tmp_path / "file")
    assert_state(editing, before)
    assert (tmp_path / "file").read_text() == "in the way"
