"""The folder of a comparison: measurements, and unfinished sessions, so that a killed run can continue."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CompareError
from ..evaluation.measure import Estimate, Measured
from ..storage.files import write_text
from ..storage.tensors import read_tensors, write_tensors
from .results import BEFORE, Comparison, Row

SETTINGS, _WEIGHTS = "settings.json", "weights.json"
_SESSIONS, _SECONDS, _LOCKS = "sessions", "seconds.json", ".locks"


class RunFolder:
    """One cell of a run: VARIANT/EDITS/MEASURE.json, with the records as .jsonl and tensors as .safetensors beside it.

    Invariants: a measurement is reused only if everything that determines it is the same (its identity); a file is
    complete or absent; several processes may work on one folder, but only one at a time edits a trajectory. Without a
    path everything stays in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._measured: dict[tuple[str, int, str], tuple[str, Measured]] = {}
        self._weights: dict[tuple[str, int], dict[str, Any]] = {}

    # ----------------------------------------------------------------------------------------------- measurements

    def load(self, variant: str, edits: int, measure: str, identity: str) -> Measured | None:
        """An earlier measurement with this `identity`, or None. Raises CompareError if a file is damaged."""
        key = (variant, edits, measure)
        if self._measured.get(key, ("", None))[0] != identity and self.path is not None:
            stem = self._place(variant, edits) / measure
            values = _read(stem.with_suffix(".json"))
            if values is not None and values.get("identity") == identity:
                self._measured[key] = (identity, _measured(stem, values))
        found, measured = self._measured.get(key, ("", None))
        return measured if found == identity else None

    def save(self, variant: str, edits: int, measure: str, identity: str, measured: Measured) -> None:
        self._measured[variant, edits, measure] = (identity, measured)
        if self.path is None:
            return
        stem = self._place(variant, edits) / measure
        stem.with_suffix(".json").unlink(missing_ok=True)  # it describes the other files
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in measured.records)
        write_text(stem.with_suffix(".jsonl"), lines, CompareError)
        if measured.tensors:
            write_tensors(stem.with_suffix(".safetensors"), measured.tensors, {"identity": identity}, CompareError)
        estimates = {name: list(vars(estimate).values()) for name, estimate in measured.estimates.items()}
        values = {"identity": identity, "tensors": bool(measured.tensors), "estimates": estimates}
        write_text(stem.with_suffix(".json"), json.dumps(values, indent=1), CompareError)  # last: now it counts

    def weights(self, variant: str, edits: int, identity: str) -> dict[str, Any] | None:
        """Seconds, drift and leakage of a point with this `identity`, or None."""
        key = (variant, edits)
        if self._weights.get(key, {}).get("identity") != identity and self.path is not None:
            values = _read(self._place(variant, edits) / _WEIGHTS)
            if values is not None:
                self._weights[key] = values
        values = self._weights.get(key)
        return values if values is not None and values.get("identity") == identity else None

    def save_weights(self, variant: str, edits: int, identity: str, values: Mapping[str, Any]) -> None:
        self._weights[variant, edits] = {"identity": identity, **values}
        if self.path is not None:
            text = json.dumps(self._weights[variant, edits], indent=1)
            write_text(self._place(variant, edits) / _WEIGHTS, text, CompareError)

    def add_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Save and return them, merged with those of earlier variants and measures here on the same facts."""
        merged = dict(settings)
        if self.path is None:
            return merged
        with self.claim("settings", wait=True):
            old = _read(self.path / SETTINGS)
            if isinstance(old, dict) and old.get("cell") == settings["cell"] and _agree(old, settings):
                for key in ("hyperparameters", "null_spaces", "measures", "trajectories"):
                    merged[key] = {**old[key], **settings[key]}
                merged["date"] = old.get("date")
                merged["variants"] = list(dict.fromkeys([*old["variants"], *settings["variants"]]))
                kept = {
                    variant: of
                    for variant, of in old["points"].items()
                    if settings["trajectories"].get(variant) in (None, old["trajectories"].get(variant))
                }
                merged["points"] = {
                    variant: {**kept.get(variant, {}), **settings["points"].get(variant, {})}
                    for variant in (BEFORE, *merged["variants"])
                }
            write_text(self.path / SETTINGS, json.dumps(merged, indent=1, ensure_ascii=False), CompareError)
        return merged

    def _place(self, variant: str, edits: int) -> Path:
        assert self.path is not None
        return self.path / _file_name(variant) / str(edits)

    # --------------------------------------------------------------------------------------------------- sessions

    def session(self, name: str, identity: str) -> Path | None:
        """The folder for the session of a trajectory; None in memory."""
        return self.path / _SESSIONS / f"{_file_name(name)}-{identity[:12]}" if self.path is not None else None

    def finished(self, session: Path) -> None:
        """Remove a session that is no longer needed: all of its points are measured and saved."""
        shutil.rmtree(session, ignore_errors=True)
        with suppress(OSError):  # other sessions lie there, or another process was quicker
            session.parent.rmdir()

    @contextmanager
    def claim(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Yield whether this process may work on `name`. If another one does, `wait` for it or yield False.

        Raises CompareError if the folder cannot be written.
        """
        if self.path is None:
            yield True
            return
        lock = self.path / _LOCKS / f"{_file_name(name)}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock)
            held.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as failure:
            raise CompareError(f"cannot write {self.path}: {failure}. Choose another folder") from failure
        try:
            yield True
        finally:
            held.release()


def spent_in(session: Path) -> list[float]:
    """The seconds that a session had taken after each of its batches."""
    values = _read(session / _SECONDS)
    return [float(value) for value in values] if isinstance(values, list) else []


def keep_spent(session: Path, seconds: Sequence[float]) -> None:
    write_text(session / _SECONDS, json.dumps(list(seconds)), CompareError)


def read_run(folder: Path) -> list[Comparison]:
    """The comparisons (cells) of a run, as far as they are measured. Raises CompareError for a folder without a run."""
    found = []
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        settings = _read(path)
        if not isinstance(settings, dict) or not {"variants", "points", "measures"} <= settings.keys():
            raise CompareError(f"{path} holds no settings of a comparison: run `alphaedit compare` again")
        found.append(read_cell(RunFolder(path.parent), settings))
    if not found:
        raise CompareError(f"there is no comparison in {folder}: give the folder that `alphaedit compare` wrote")
    return found


def read_cell(run: RunFolder, settings: dict[str, Any]) -> Comparison:
    """The rows that `settings` describe, if they are measured."""
    rows = []
    for variant in (BEFORE, *settings["variants"]):
        for edits, identity in sorted(
            (int(n), identity) for n, identity in settings["points"].get(variant, {}).items()
        ):
            weights = run.weights(variant, edits, identity)
            if weights is None:
                continue
            found = {
                name: run.load(variant, edits, name, measurement_identity(identity, of))
                for name, of in settings["measures"].items()
            }
            measured = {name: each for name, each in found.items() if each is not None}
            drift, leakage = ({int(k): v for k, v in weights[of].items()} for of in ("drift", "leakage"))
            rows.append(Row(variant, edits, measured, weights["seconds"], drift, leakage))
    return Comparison(rows, settings)


def _agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether one of the two orders of facts is the beginning of the other."""
    return all(a == b for a, b in zip(old.get("order", ()), new["order"], strict=False))


def measurement_identity(point: str, measure: Mapping[str, Any]) -> str:
    """The identity of what a measure with identity `measure` finds at a point."""
    return identity_of([point, measure])


def identity_of(values: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _file_name(text: str) -> str:
    """Readable, and different for different texts."""
    readable = re.sub(r"[^\w.+=@-]", "_", text)
    return (
        readable
        if readable == text and text.strip(".")
        else f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    )


def _read(path: Path) -> Any:
    """JSON, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as failure:
        raise CompareError(
            f"cannot go on with {path}: {failure}. Choose another folder, or remove the file"
        ) from failure


def _measured(stem: Path, values: Mapping[str, Any]) -> Measured:
    path = stem.with_suffix(".jsonl")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines if line]
        estimates = {name: Estimate(*of) for name, of in values["estimates"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CompareError(
            f"cannot go on with {path}: {failure!r}. Choose another folder, or remove {stem.with_suffix('.json')}"
        ) from failure
    tensors = read_tensors(stem.with_suffix(".safetensors"), CompareError)[0] if values.get("tensors") else {}
    return Measured(estimates, records, tensors)
