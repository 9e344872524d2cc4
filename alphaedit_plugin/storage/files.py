"""Files that are whole or absent: atomic writes, checksums, and whether a place can be written at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import AlphaEditError
from ..restoring import swapping


@swapping
def atomic(path: Path, error: type[AlphaEditError]) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is removed otherwise.

    What killed writers of `path` left on this machine is removed too. An OSError (full disk, no permission), and text
    that is no UTF-8, are raised as `error`, naming the file; the previous file at `path` stays.
    """
    temporary, held = None, None
    try:
        with _saying(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            held, temporary = _begun(path)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


@swapping
def atomic_folder(path: Path, error: type[AlphaEditError]) -> Iterator[Path]:
    """Yield a new folder beside `path`. It replaces `path` if the block succeeds, and is removed otherwise.

    Errors and leftovers are dealt with as by `atomic`, also what tokenizers raises on a full disk. A process that is
    killed between the two renames at the end leaves the previous folder beside the place, under a name that says so.
    """
    temporary, held = None, None
    try:
        with _saying(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_prefix(path)}{_here()}.", suffix=path.suffix))
            held = os.open(temporary, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            new = temporary / "new"
            new.mkdir()
            yield new
            _replace_folder(path, new, temporary)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            os.close(held)


def _replace_folder(path: Path, new: Path, temporary: Path) -> None:
    """Put `new` in the place of `path`; what was there goes with `temporary`, or returns if this fails."""
    old = path.with_name(f"{path.name}.before")
    if not path.exists():
        new.rename(path)
        return
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    old.rename(temporary / "old")


@contextmanager
def _saying(path: Path, error: type[AlphaEditError]) -> Iterator[None]:
    """Raises `error`, naming the path, for what a full disk or a wrong place makes of writing it."""
    try:
        yield
    except UnicodeEncodeError as failure:
        raise error(
            f"cannot write {path}: {failure}. The text holds half a character; nothing was changed"
        ) from failure
    except Exception as failure:
        plain = type(failure) is Exception  # as tokenizers raises
        if not (plain or isinstance(failure, OSError | SafetensorError)):
            raise
        raise error(
            f"cannot write {path}: {failure}. Free some space or choose another place; nothing was changed"
        ) from failure


def _begun(path: Path) -> tuple[int, Path]:
    """A temporary file beside `path`, and a descriptor that holds its lock for as long as its writer lives."""
    while True:
        held, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_prefix(path)}{_here()}.", suffix=path.suffix)
        with suppress(OSError):  # a file system without locks: then nobody else gets one either
            fcntl.flock(held, fcntl.LOCK_EX)
        if os.fstat(held).st_nlink:  # not taken for a leftover before it was locked
            return held, Path(name)
        os.close(held)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose writers have died on this machine; those of a living writer stay.

    A lock says which is which, and is only asked on the machine that made the file: not every shared folder passes
    locks on. What cannot be removed stays.
    """
    ours = re.compile(rf"{re.escape(_prefix(path) + _here())}\.[a-z0-9_]{{8}}{re.escape(path.suffix)}")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for name in [entry.name for entry in entries if ours.fullmatch(entry.name)]:
            remove_leftover(path.parent / name)


def remove_leftover(temporary: Path) -> None:
    """Remove one temporary file or folder, unless its writer lives."""
    with suppress(OSError):
        held = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        finally:
            os.close(held)


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."


def _here() -> str:
    """This running machine, among those that may share a folder: its locks are known to it alone."""
    try:
        running = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        running = platform.node()
    return hashlib.sha256(running.encode()).hexdigest()[:8]


def _sync(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with path.open("rb+") as file:
        os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 would shut out others who share a cache
        os.fsync(file.fileno())


def check_place(path: Path, error: type[AlphaEditError], *, folder: bool = False) -> None:
    """Raises `error` if no file (or `folder`) can be written at `path`; asked before the work whose result goes there.

    Nothing is made. A disk may still fill up, or the place go, while the work is done.
    """
    try:
        if path.exists() and path.is_dir() != folder:
            raise error(f"cannot write {path}: it is a {'file' if folder else 'folder'}. Choose another place")
        there = path if folder else path.parent
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise error(f"cannot write {path}: {there} is a file. Choose another place")
        if not os.access(there, os.W_OK | os.X_OK):
            raise error(f"cannot write {path}: there is no permission to write in {there}. Choose another place")
    except OSError as failure:
        raise error(f"cannot write {path}: {failure}. Choose another place") from failure


def file_digest(path: Path, error: type[AlphaEditError]) -> str:
    """SHA-256 of a file's content. Raises `error`, naming the file, if it cannot be read."""
    try:
        with path.open("rb") as file:
            running = hashlib.sha256()
            while chunk := file.read(1 << 20):
                running.update(chunk)
            return running.hexdigest()
    except OSError as failure:
        raise error(f"cannot read {path}: {failure}") from failure


def write_text(path: Path, text: str, error: type[AlphaEditError]) -> None:
    with atomic(path, error) as temporary:
        temporary.write_text(text, encoding="utf-8")
