"""What a session's folder says of itself at once: read without its tensors, and without torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ..editors.requests import Request
from ..errors import SessionDamagedError, SessionError
from ..storage.json_file import read_json
from ..storage.tensor_header import stored_checksum, stored_metadata

T = TypeVar("T")

FORMAT = 1
MANIFEST, BATCHES = "session.json", "batches"
TIMES = "times.json"
"""When each batch was written, apart from all that decides a result. Without it, or if it is damaged, nobody knows."""
_BATCH_NAME = re.compile(r"\d{6,}(-\d+)?\.safetensors")
_ALWAYS = {"method", "model", "dtype", "hyperparameters", "fingerprints", "contexts", "batches", "identity"}
_PATIENCE = 5
"""How often a folder is read again because its owner saved meanwhile."""


@dataclass(frozen=True)
class Listed:
    """What was written, by which method and into which model; of each batch its facts, and the time if it is known."""

    method: str
    model: str
    batches: list[tuple[tuple[Request, ...], datetime | None]]


def listed(folder: Path) -> Listed:
    """What the session in a folder holds, as the headers of its files say; whether they are whole, `resume` checks.

    Raises SessionError, naming the file, if there is no session, or if the manifest or a header is damaged.
    """
    return settled(folder, lambda: _listed(folder))[0]


def _listed(folder: Path) -> Listed:
    values = read_manifest(folder)
    with reading(folder / MANIFEST):
        names, sums = names_of(values), dict(values.get("sums", {}))
    batches, times = [], times_in(folder)
    for name in names:
        path = folder / BATCHES / name
        metadata = stored_metadata(path, SessionDamagedError)
        check_sum(path, sums.get(name))
        with reading(path):
            batches.append((requests_of(metadata), times.get(name)))
    return Listed(str(values["method"]), str(values["model"]), batches)


def is_session(folder: Path) -> bool:
    """Whether a session was saved there."""
    return (folder / MANIFEST).exists()


def batches_in(folder: Path) -> int:
    """How many batches the session there has; 0 if there is none, or a damaged one."""
    try:
        return len(read_manifest(folder)["batches"])
    except (SessionError, LookupError, TypeError):
        return 0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a session. Raises SessionError, naming the file, if there is no session or it is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        raise SessionError(f"{folder} holds no session: there is no {path}")
    values = read_json(path, SessionDamagedError)
    if values.get("format") != FORMAT:
        raise SessionDamagedError(f"{path} is no session of this version of alphaedit-plugin")
    if absent := sorted(_ALWAYS - values.keys()):
        raise SessionDamagedError(f"{path} is damaged: it does not say {', '.join(absent)}. Begin anew")
    return values


def names_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the batches' files, in order. Raises ValueError for names that are no batches' of a session."""
    names = list(manifest["batches"])
    if len({*names}) < len(names) or not all(_BATCH_NAME.fullmatch(name) for name in names):
        raise ValueError("a batch's name is no plain file name, or occurs twice")
    return names


def requests_of(metadata: Mapping[str, Any]) -> tuple[Request, ...]:
    """The facts of a batch's file. Raises KeyError or TypeError for the metadata of anything else."""
    return tuple(Request(**request) for request in metadata["requests"])


def check_sum(batch: Path, expected: str | None) -> None:
    """Raises SessionDamagedError for another batch's file in the place of the one that the manifest vouches for."""
    if expected not in (None, stored_checksum(batch, SessionError)):
        raise SessionDamagedError(f"{batch} is not the batch that {MANIFEST} names, but another one")


def times_in(folder: Path) -> dict[str, datetime]:
    """Name of a batch's file → when it was written, for those of which it is known."""
    try:
        values = read_json(folder / TIMES, SessionError)
        return {name: datetime.fromisoformat(value) for name, value in values.items()}
    except (SessionError, ValueError, TypeError):
        return {}


def stamp_of(manifest: Mapping[str, Any]) -> str:
    """What tells a manifest from others."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def stamp_in(folder: Path) -> str | None:
    """Of the manifest in a folder; None if there is none."""
    return stamp_of(read_manifest(folder)) if is_session(folder) else None


def settled(folder: Path, read: Callable[[], T]) -> tuple[T, str]:
    """(what is read, the stamp of the manifest it belongs to). If the folder's owner saves meanwhile, it is read again.

    Raises SessionError, naming the file, if something is damaged.
    """
    for left in reversed(range(_PATIENCE)):
        before = stamp_in(folder)
        try:
            found = read()
        except SessionError as failure:
            if left and before != stamp_in(folder):
                continue
            why = failure.__cause__
            if isinstance(why, OSError) and not isinstance(why, FileNotFoundError):  # not read, so not damaged
                raise SessionError(str(failure)) from why
            raise
        if before == stamp_in(folder):
            return found, str(before)
    raise SessionError(f"{folder} is being written all the time: resume it when its owner has ended")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Re-raises any read error as a SessionError that names the file."""
    try:
        yield
    except SessionError:
        raise
    except Exception as failure:
        raise SessionDamagedError(
            f"{path} is damaged: {failure!r}. Take a copy of the session, or begin anew"
        ) from failure
