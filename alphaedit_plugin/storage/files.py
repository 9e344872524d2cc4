"""Files that are whole or absent: atomic writes, and safetensors with a checksum and JSON metadata."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import AlphaEditError


@contextmanager
def atomic(path: Path, error: type[AlphaEditError]) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is removed otherwise.

    An OSError (full disk, no permission) is raised as `error`, naming the file; the previous file at `path` stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as failure:
        raise error(
            f"cannot write {path}: {failure}. Free some space or choose another place; nothing was changed"
        ) from failure
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with path.open("rb+") as file:
        os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 would shut out others who share a cache
        os.fsync(file.fileno())


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
