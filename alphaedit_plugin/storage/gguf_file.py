"""GGUF files: where their tensors lie, and the same file again with some of them replaced.

A file is a header (metadata, then name, shape, type and place of each tensor), padding, and the tensors' bytes. The
package `gguf` reads these too, but makes an object of every token of the vocabulary (20 s for Gemma 3's), and cannot
write a file that differs from another in a few tensors only.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AlphaEditError
from .files import atomic

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """One tensor: `shape` is rows first, `kind` the number of its type in GGML, `start` and `size` are bytes of the
    file, and `entry` is where in the header its kind stands, followed by its place.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int
    entry: int


class GgufFile:
    """What the header of a GGUF file says.

    Invariant: every tensor lies in the file, whole, aligned, and apart from all others. `metadata` has None for lists.
    Raises `error`, which names the file and the remedy, for a file that is no GGUF file, is cut off or damaged, and if
    the package `gguf` is not installed.
    """

    def __init__(self, path: Path, error: type[AlphaEditError]) -> None:
        self.path, self._error = path, error
        try:
            with path.open("rb") as file:
                self.length = os.fstat(file.fileno()).st_size
                if file.read(4) != MAGIC:
                    raise error(f"{path} is no GGUF file: its first bytes are not {MAGIC.decode()}")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    self._read(_Header(content))
        except OSError as failure:
            raise error(f"cannot read {path}: {failure}") from failure
        except struct.error as failure:
            raise error(f"{path} is cut off in its header: download it again") from failure
        except (ValueError, LookupError, RecursionError) as failure:
            raise error(f"{path} is damaged: {failure}. Download it again") from failure

    def _read(self, header: _Header) -> None:
        version, count, pairs = header.take("IQQ")
        if version not in VERSIONS:
            raise self._error(
                f"{self.path} is GGUF of version {version}, or big-endian: only little-endian files of version "
                f"{' or '.join(map(str, VERSIONS))} can be read"
            )
        self.metadata: dict[str, Any] = {header.text(): header.value(*header.take("I")) for _ in range(pairs)}
        found = [header.tensor(gguf_library(self._error).GGML_QUANT_SIZES) for _ in range(count)]
        self.alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(self.alignment, int) or self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise ValueError(f"its tensors are aligned to {self.alignment!r}, which is no power of two")
        self.data = self.padded(header.place)
        self.tensors = {
            name: Stored(name, shape, kind, self.data + place, size, entry)
            for name, shape, kind, place, size, entry in found
        }
        if not count or len(self.tensors) < count:
            raise ValueError("two tensors have one name" if count else "it holds no tensors")
        self._check_places()

    def _check_places(self) -> None:
        end = self.data
        for tensor in self.in_order:
            if tensor.start < end or (tensor.start - self.data) % self.alignment:
                raise ValueError(f"{tensor.name} overlaps another tensor, or is not aligned")
            end = tensor.start + tensor.size
        if end > self.length:
            raise self._error(
                f"{self.path} is cut off: it holds {self.length:,} bytes of at least {end:,}. Download it again"
            )

    def padded(self, size: int) -> int:
        """The size with the padding behind it."""
        return -(-size // self.alignment) * self.alignment

    @cached_property
    def in_order(self) -> list[Stored]:
        """The tensors as they lie in the file."""
        return sorted(self.tensors.values(), key=lambda tensor: (tensor.start, tensor.size))

    def bytes_of(self, tensor: Stored) -> bytes:
        """What the file holds of a tensor."""
        return self._part(tensor.start, tensor.size)

    def write(self, path: Path, replaced: Mapping[str, tuple[int, bytes]], error: type[AlphaEditError]) -> None:
        """Write this file to another place, with the tensors `replaced`: name → (kind, bytes).

        All else is the same byte for byte, but for the places of the tensors behind one whose size is another.
        Raises `error` if it cannot be written, or would be written over the file itself; then nothing is.
        """
        check_other(path, self.path, error)
        header = bytearray(self._part(0, self.in_order[0].start))
        place = len(header) - self.data
        for tensor, slot in self._slots():
            kind, content = replaced.get(tensor.name, (tensor.kind, None))
            struct.pack_into("<IQ", header, tensor.entry, kind, place)
            place += slot if content is None or len(content) == tensor.size else self.padded(len(content))
        with atomic(path, error) as temporary, temporary.open("wb") as target, self.path.open("rb") as source:
            target.write(header)
            for tensor, slot in self._slots():
                if tensor.name not in replaced:
                    _copy(source, target, tensor.start, slot)
                    continue
                content = replaced[tensor.name][1]
                target.write(content)
                if len(content) == tensor.size:
                    _copy(source, target, tensor.start + tensor.size, slot - tensor.size)
                else:
                    target.write(bytes(self.padded(len(content)) - len(content)))

    def _slots(self) -> list[tuple[Stored, int]]:
        """The tensors as they lie in the file, each with the bytes up to the next, or to the end of the file."""
        ends = [*(tensor.start for tensor in self.in_order[1:]), self.length]
        return [(tensor, end - tensor.start) for tensor, end in zip(self.in_order, ends, strict=True)]

    def _part(self, start: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                found = file.read(size)
        except OSError as failure:
            raise self._error(f"cannot read {self.path}: {failure}") from failure
        if len(found) < size:
            raise self._error(f"{self.path} was cut off while it was read")
        return found


class _Header:
    """Reads a header from its beginning. Raises struct.error where the file ends too early."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, len(MAGIC)

    def take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self.content, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return found

    def text(self) -> str:
        (length,) = self.take("Q")
        self._skip(length)
        return self.content[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of the metadata; None for a list, which is passed over."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._pass_over(*self.take("IQ"))
        if kind not in _SCALARS:
            raise ValueError(f"its metadata hold a value of the unknown type {kind}")
        return self.take(_SCALARS[kind])[0]

    def _pass_over(self, kind: int, count: int) -> None:
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        elif kind == _STRING:
            for _ in range(count):
                self._skip(*self.take("Q"))
        else:
            for _ in range(count):
                self.value(kind)

    def _skip(self, size: int) -> None:
        if self.place + size > len(self.content):
            raise struct.error
        self.place += size

    def tensor(self, sizes: Mapping[Any, tuple[int, int]]) -> tuple[str, tuple[int, ...], int, int, int, int]:
        """(name, shape, kind, place behind the header, size in bytes, where its kind stands)."""
        name = self.text()
        (dimensions,) = self.take("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = self.take(f"{dimensions}Q")[::-1]
        entry = self.place
        kind, place = self.take("IQ")
        if kind not in sizes:
            raise ValueError(f"{name} is of the type {kind}, which the installed gguf package does not know")
        block, block_size = sizes[kind]
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} numbers, in blocks of {block}")
        return name, shape, kind, place, math.prod(shape) // block * block_size, entry


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    while size > 0:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise OSError(f"{source.name} was cut off while it was read")
        target.write(chunk)
        size -= len(chunk)


def check_other(path: Path, source: Path, error: type[AlphaEditError]) -> None:
    """Raises `error` if the two are one file: what is written there would take the place of what it is made from."""
    if path.exists() and source.exists() and path.samefile(source):
        raise error(f"{path} is the file that the model comes from: write to another place")


def gguf_library(error: type[AlphaEditError]) -> Any:
    """The package `gguf`. Raises `error`, with the command that installs it, where it is missing."""
    try:
        import gguf
    except ImportError as failure:
        raise error(
            f"reading a GGUF model needs the gguf package: pip install 'alphaedit-plugin[gguf]' ({failure})"
        ) from failure
    return gguf
