"""Files are whole or absent, killed writers leave nothing for long, and a place is known to be writable or not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from support.processes import exit_code_of

from alphaedit_plugin.errors import StoreError
from alphaedit_plugin.storage import files
from alphaedit_plugin.storage.files import atomic, atomic_folder, check_place, write_text


def test_text_is_written_atomically_too(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old é", StoreError)
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(StoreError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "new", StoreError)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old é"


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x", StoreError)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def killed_while_writing(path: Path) -> None:
    def work() -> None:
        with atomic(path, StoreError) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(work) == -signal.SIGKILL


def test_the_next_write_removes_what_a_killed_writer_left(tmp_path):
    path = tmp_path / "values.json"
    write_text(path, "old", StoreError)
    killed_while_writing(path)
    killed_while_writing(tmp_path / "other.json")
    assert len(leftovers(tmp_path)) == 2
    assert path.read_text() == "old"
    write_text(path, "new", StoreError)
    (left,) = leftovers(tmp_path)
    assert left.startswith(".other.json.")
    assert path.read_text() == "new"


def test_what_a_living_writer_is_writing_stays(tmp_path):
    """In this process and in another one; both writes succeed, and the last one to end counts."""
    path = tmp_path / "values.json"
    with atomic(path, StoreError) as first:
        first.write_text("first")
        assert exit_code_of(lambda: write_text(path, "of another process", StoreError)) == 0
        write_text(path, "second", StoreError)
        assert path.read_text() == "second"
        assert leftovers(tmp_path) == [first.name]
    assert path.read_text() == "first"
    assert leftovers(tmp_path) == []


def test_many_writers_of_one_file_never_fail_and_leave_one_whole_file(tmp_path):
    path = tmp_path / "values.json"
    texts = [str(number) * 50_000 for number in range(4)]

    def work(text: str) -> None:
        for _ in range(20):
            write_text(path, text, StoreError)

    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=work, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert path.read_text() in texts
    assert leftovers(tmp_path) == []


def test_what_is_no_leftover_of_this_file_and_machine_stays(tmp_path):
    """Another file's, another machine's (whose locks may not be seen here), and a user's own hidden files."""
    names = [".values.json.0a1b2c3d.abcdefgh.json", ".values.json.original.json", ".values.json.bak", ".values.json"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write_text(tmp_path / "values.json", "new", StoreError)
    assert leftovers(tmp_path) == sorted(names)


def test_half_a_character_is_an_error_that_names_the_file(tmp_path):
    write_text(tmp_path / "a", "old", StoreError)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "a"))):
        write_text(tmp_path / "a", "\ud800", StoreError)
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_is_checked_before_anything_is_written(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    check_place(tmp_path / "new" / "deep" / "place", StoreError, folder=folder)
    check_place(tmp_path / ("folder" if folder else "file"), StoreError, folder=folder)
    wrong = [tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", tmp_path / ("x" * 300)]
    for place in [*wrong, tmp_path / ("file" if folder else "folder")]:
        with pytest.raises(StoreError, match=re.escape(str(place))):
            check_place(place, StoreError, folder=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="permission"):
        check_place(tmp_path / "closed" / "new" / "file", StoreError)


# -------------------------------------------------------------------------------------------------------- folders


def written_folder(path: Path, text: str) -> None:
    with atomic_folder(path, StoreError) as new:
        (new / "a.txt").write_text(text)


def test_a_folder_is_replaced_whole(tmp_path):
    written_folder(tmp_path / "f", "one")
    (tmp_path / "f" / "of mine.txt").write_text("from before")
    written_folder(tmp_path / "f", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert [path.read_text() for path in (tmp_path / "f").iterdir()] == ["two"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), SafetensorError("full"), Exception("No space left")])
def test_a_folder_that_cannot_be_written_leaves_the_one_before(failure, tmp_path):
    written_folder(tmp_path / "f", "one")

    def write() -> None:
        with atomic_folder(tmp_path / "f", StoreError) as new:
            (new / "a.txt").write_text("half")
            raise failure

    with pytest.raises(StoreError, match=r"/f: .*Free some space"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a.txt").read_text() == "one"


def test_the_next_folder_removes_what_a_killed_writer_left(tmp_path):
    def work() -> None:
        with atomic_folder(tmp_path / "f", StoreError) as new:
            (new / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(work) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    written_folder(tmp_path / "f", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_error_of_somebody_elses_in_the_block_is_theirs(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / "f", StoreError):
        raise KeyError("a name")
    assert list(tmp_path.iterdir()) == []
