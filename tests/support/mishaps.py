"""What can go wrong: a file is cut or a bit of it flipped; a disk is full; an interrupt comes that nothing catches."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cut(path: Path, share: float = 0.5) -> None:
    """Keep this share of the file, from its beginning."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path: Path, place: int = -1, bits: int = 1) -> None:
    """Flip bits of one byte: of the last, unless a place is given."""
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


class Interrupted(BaseException):
    """What no `except Exception` catches, as a user's Ctrl-C."""


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Within the block this process can write no file of more bytes: as on a disk that is full, every library fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal, so that writing fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
