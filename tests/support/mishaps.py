"""What can go wrong: a file is cut short or a bit of it flipped; an interrupt comes that nothing catches."""

from __future__ import annotations

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
