"""Files that are whole or absent: atomic writes, and safetensors with a checksum and JSON metadata."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import AlphaEditError
from .fingerprint import tensor_digest


@contextmanager
def atomic(path: Path, error: type[AlphaEditError]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when not.

    An OSError (full disk, no permission) becomes `error`, naming the file; what `path` held before stays.
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
        os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 would shut out those who share a cache
        os.fsync(file.fileno())


def file_digest(path: Path, error: type[AlphaEditError]) -> str:
    """SHA-256 of a file's content. Raises `error`, naming the file, where it cannot be read."""
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], error: type[AlphaEditError]
) -> None:
    """safetensors; `metadata` travels as JSON beside a sha256 of everything."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        seen = {other.data_ptr() for other in plain.values()}
        plain[name] = value.clone() if value.data_ptr() in seen else value  # safetensors refuses shared memory
    text = json.dumps(metadata, sort_keys=True)
    with atomic(path, error) as temporary:
        save_file(plain, temporary, metadata={"alphaedit": text, "sha256": _checksum(plain, text)})


def read_tensors(path: Path, error: type[AlphaEditError]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata). A file that is absent, cut short, altered or not ours raises `error`, naming it."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # copies: a file's own tensors may start at any address, and kernels round by alignment
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as failure:
        raise error(f"cannot read {path}: {failure}. Is it complete? Delete it and make it again") from failure
    if "alphaedit" not in header or "sha256" not in header:
        raise error(f"{path} was not written by alphaedit-plugin: it lacks our metadata")
    if _checksum(tensors, header["alphaedit"]) != header["sha256"]:
        raise error(f"{path} is damaged: its checksum does not match. Delete it and make it again")
    return tensors, json.loads(header["alphaedit"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    lines = [text, *(f"{name} {tensor_digest(tensors[name])}" for name in sorted(tensors))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
