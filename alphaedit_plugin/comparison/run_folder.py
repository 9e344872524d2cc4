"""The folder of a comparison: measurements, and unfinished sessions, so that a killed run can continue."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..editors.capacity import Capacity
from ..editors.targets import Targets
from ..errors import CompareError
from ..evaluation.measure import Estimate, Measured
from ..storage.files import atomic, write_text
from ..storage.json_file import json_bytes, load_json, read_json, write_json
from ..storage.lease import leased
from ..storage.shape import amount, check_shape, digest, ratio
from ..storage.tensors import read_tensors, write_tensors
from .results import BEFORE, Comparison, Row

log = logging.getLogger(__name__)

Read = TypeVar("Read")

SETTINGS, _WEIGHTS = "settings.json", "weights.json"
_SESSIONS, _SECONDS, _LOCKS, _KEPT = "sessions", "seconds.json", ".locks", "kept"
_TARGETS = ("z", "delta", "losses", "steps")

_SETTINGS_SHAPE = {
    "variants": [str],
    "points": {str: {int: str}},
    "measures": {str: {}},
    "trajectories?": {str: str},
    "hyperparameters?": {str: {}},
    "null_spaces?": {str: {"criterion": (str, None), "nullity": {int: int}, "leakage": {int: float}}},
    "spectra?": {int: [float]},
    "failed?": {str: {"trajectory": str, "why": str}},
    "order?": list,
    "edits?": int,
    "batch_size?": int,
    "checkpoints?": [int],
    "command?": list,
}
_WEIGHTS_SHAPE = {
    "identity": digest,
    "seconds": amount,
    "drift": {int: ratio},
    "leakage": {int: ratio},
    "capacity?": {int: {"dimensions": int, "used": amount, "condition": (float, None)}},
}
_MEASURE_SHAPE = {"identity": digest, "tensors": bool, "records?": digest, "estimates": {str: [(float, None)]}}


class RunFolder:
    """One cell of a run: VARIANT/EDITS/MEASURE.json, with the records as .jsonl and tensors as .safetensors beside it,
    and targets/IDENTITY.safetensors where these are found once.

    Invariants: a measurement is reused only if everything that determines it is the same (its identity), and its files
    are what was written (a checksum in each JSON, and of the records in MEASURE.json); a damaged file is named in the
    log and counts as absent. A file is complete or absent; several processes may work on one folder, but only one at a
    time edits a trajectory. Without a path everything stays in memory.
    """

    def __init__(self, path: Path | None = None, damaged: set[Path] | None = None) -> None:
        """`damaged` are files that the log has named already; those that are found are added."""
        self.path = path
        self._measured: dict[tuple[str, int, str], tuple[str, Measured]] = {}
        self._weights: dict[tuple[str, int], dict[str, Any]] = {}
        self._targets: dict[str, tuple[Targets, float]] = {}
        self._damaged = set() if damaged is None else damaged

    def _read(self, path: Path, reader: Callable[[Path], Read]) -> Read | None:
        """What a file holds; None for one that is absent, or damaged, which is said once."""
        try:
            return reader(path) if path.exists() else None
        except (CompareError, OSError) as failure:
            if path not in self._damaged:
                log.warning("%s. It counts as not there, and the next run makes it again", failure)
            self._damaged.add(path)
            return None

    # ----------------------------------------------------------------------------------------------- measurements

    def load(self, variant: str, edits: int, measure: str, identity: str) -> Measured | None:
        """An earlier measurement with this `identity`, or None."""
        key = (variant, edits, measure)
        if self._measured.get(key, ("", None))[0] != identity and self.path is not None:
            found = self._read(
                self._place(variant, edits) / f"{measure}.json", lambda path: _measured_in(path, identity)
            )
            if found is not None:
                self._measured[key] = (identity, found)
        known, measured = self._measured.get(key, ("", None))
        return measured if known == identity else None

    def save(self, variant: str, edits: int, measure: str, identity: str, measured: Measured) -> None:
        """`identity` is one of `identity_of`. Raises CompareError if it cannot be written."""
        self._measured[variant, edits, measure] = (identity, measured)
        if self.path is None:
            return
        stem = self._place(variant, edits) / measure
        stem.with_suffix(".json").unlink(missing_ok=True)  # it describes the other files
        lines = json_bytes("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in measured.records))
        with atomic(stem.with_suffix(".jsonl"), CompareError) as temporary:
            temporary.write_bytes(lines)
        if measured.tensors:
            write_tensors(stem.with_suffix(".safetensors"), measured.tensors, {"identity": identity}, CompareError)
        values = {
            "identity": identity,
            "tensors": bool(measured.tensors),
            "records": hashlib.sha256(lines).hexdigest(),
            "estimates": {name: list(vars(estimate).values()) for name, estimate in measured.estimates.items()},
        }
        write_json(stem.with_suffix(".json"), values, CompareError)  # last: now it counts

    def weights(self, variant: str, edits: int, identity: str) -> dict[str, Any] | None:
        """Seconds, drift and leakage of a point with this `identity`, or None."""
        key = (variant, edits)
        if self._weights.get(key, {}).get("identity") != identity and self.path is not None:
            values = self._read(self._place(variant, edits) / _WEIGHTS, _weights_in)
            if values is not None:
                self._weights[key] = values
        values = self._weights.get(key)
        return values if values is not None and values.get("identity") == identity else None

    def save_weights(self, variant: str, edits: int, identity: str, values: Mapping[str, Any]) -> None:
        """`identity` is one of `identity_of`. Raises CompareError if it cannot be written."""
        self._weights[variant, edits] = {"identity": identity, **values}
        if self.path is not None:
            write_json(self._place(variant, edits) / _WEIGHTS, self._weights[variant, edits], CompareError)

    def add_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Save and return them, merged with those of earlier variants and measures here on the same facts, and with
        all commands that there were.
        """
        merged = dict(settings)
        if self.path is None:
            return merged
        commands = [settings["command"]] if settings.get("command") else []
        with self.claim("settings", wait=True):
            old = self._read(self.path / SETTINGS, _settings_in)
            if old is not None and old.get("cell") == settings["cell"] and _agree(old, settings):
                for key in ("hyperparameters", "null_spaces", "measures", "trajectories", "failed"):
                    merged[key] = {**old.get(key, {}), **settings.get(key, {})}
                merged["date"] = old.get("date")
                known_commands = old.get("commands") or ([old["command"]] if old.get("command") else [])
                commands = [*known_commands, *(each for each in commands if each not in known_commands)]
                merged["variants"] = list(dict.fromkeys([*old["variants"], *settings["variants"]]))
                known = old.get("trajectories", {})
                kept = {
                    variant: of
                    for variant, of in old["points"].items()
                    if settings["trajectories"].get(variant) in (None, known.get(variant))
                }
                merged["points"] = {
                    variant: {**kept.get(variant, {}), **settings["points"].get(variant, {})}
                    for variant in (BEFORE, *merged["variants"])
                }
            if commands:
                merged["commands"] = commands
            write_json(self.path / SETTINGS, merged, CompareError)
        return merged

    def add_failures(self, failed: Mapping[str, Mapping[str, str]]) -> None:
        """Save that variants failed: each with its `trajectory`, and `why`."""
        if self.path is None:
            return
        with self.claim("settings", wait=True):
            settings = self._read(self.path / SETTINGS, _settings_in)
            if settings is not None:
                settings["failed"] = {**settings.get("failed", {}), **failed}
                write_json(self.path / SETTINGS, settings, CompareError)

    def _place(self, variant: str, edits: int) -> Path:
        assert self.path is not None
        return self.path / _file_name(variant) / str(edits)

    # ---------------------------------------------------------------------------------------------------- targets

    def targets(self, identity: str) -> tuple[Targets, float] | None:
        """What `save_targets` saved, or None."""
        if identity not in self._targets and self.path is not None:
            found = self._read(self._targets_file(identity), lambda path: _targets_in(path, identity))
            if found is not None:
                self._targets[identity] = found
        return self._targets.get(identity)

    def save_targets(self, identity: str, targets: Targets, seconds: float) -> None:
        """A batch's fixed targets, and the time that they took. Raises CompareError if they cannot be written."""
        self._targets[identity] = (targets, seconds)
        if self.path is not None:
            tensors = {name: getattr(targets, name) for name in _TARGETS}
            metadata = {"identity": identity, "seconds": seconds}
            write_tensors(self._targets_file(identity), tensors, metadata, CompareError)

    def _targets_file(self, identity: str) -> Path:
        assert self.path is not None
        return self.path / "targets" / f"{identity[:32]}.safetensors"

    # --------------------------------------------------------------------------------------------------- sessions

    def session(self, name: str, identity: str) -> Path | None:
        """The folder for the session of a trajectory; None in memory."""
        return self.path / _SESSIONS / f"{_file_name(name)}-{identity[:12]}" if self.path is not None else None

    def keep(self, session: Path) -> None:
        """Keep the session of a trajectory, whatever runs come later."""
        if session.exists():
            write_text(session / _KEPT, "by --keep-sessions\n", CompareError)

    def finished(self, session: Path) -> None:
        """Remove a session that is no longer needed, as all of its points are measured and saved; unless it is kept."""
        if (session / _KEPT).exists():
            return
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
        held = ExitStack()
        try:
            mine = held.enter_context(leased(self.path / _LOCKS / f"{_file_name(name)}.lease", wait=wait))
        except OSError as failure:
            raise CompareError(f"cannot write {self.path}: {failure}. Choose another folder") from failure
        with held:
            yield mine


def spent_in(session: Path) -> list[float]:
    """The seconds that a session had taken after each of its batches; none if the file is absent or damaged."""
    return RunFolder()._read(session / _SECONDS, _seconds_in) or []


def keep_spent(session: Path, seconds: Sequence[float]) -> None:
    write_json(session / _SECONDS, {"seconds": list(seconds)}, CompareError)


def read_run(folder: Path, known: set[Path] | None = None) -> list[Comparison]:
    """The comparisons (cells) of a run, as far as they are measured; what is damaged is left out and named in the log,
    unless it is among the `known`, to which it is added.

    Raises CompareError for a folder without a run, or if none of its settings can be read.
    """
    found, damaged = [], []
    known = set() if known is None else known
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        try:
            settings = _settings_in(path)
            if not {"edits", "batch_size"} <= settings.keys():
                raise CompareError(f"{path} holds no settings of a comparison")
        except CompareError as failure:
            damaged.append(failure)
            if path not in known:
                log.warning("%s. Its part of the run is left out: run `alphaedit compare` again", failure)
            known.add(path)
            continue
        found.append(read_cell(RunFolder(path.parent, known), settings))
    if not found:
        said = f": {damaged[0]}" if damaged else ""
        raise CompareError(f"there is no comparison in {folder}{said}: give the folder that `alphaedit compare` wrote")
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
            capacity = {int(layer): Capacity(**of) for layer, of in weights.get("capacity", {}).items()}
            rows.append(Row(variant, edits, measured, weights["seconds"], drift, leakage, capacity))
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


# ------------------------------------------------------------------------------------------------------ typed files
#
# One reader for each kind of file. Those of 0.1.0 hold no checksums: they are read if types and ranges are right.


def _settings_in(path: Path) -> dict[str, Any]:
    values = read_json(path, CompareError)
    check_shape(values, _SETTINGS_SHAPE, str(path), CompareError)
    return values


def _weights_in(path: Path) -> dict[str, Any]:
    values = read_json(path, CompareError)
    check_shape(values, _WEIGHTS_SHAPE, str(path), CompareError)
    return values


def _seconds_in(path: Path) -> list[float]:
    values: Any = load_json(path, CompareError)
    seconds: Any = values if isinstance(values, list) else read_json(path, CompareError).get("seconds")  # 0.1.0: a list
    check_shape(seconds, [amount], str(path), CompareError)
    return [float(value) for value in seconds]


def _measured_in(path: Path, identity: str) -> Measured | None:
    """None if the file holds another measurement."""
    values = read_json(path, CompareError)
    check_shape(values, _MEASURE_SHAPE, str(path), CompareError)
    if wrong := [name for name, of in values["estimates"].items() if len(of) != 3 or of[0] is None]:
        raise CompareError(f"{path} is damaged: estimates.{wrong[0]} is no value with an interval")
    if values["identity"] != identity:
        return None
    tensors: dict[str, Tensor] = {}
    if values["tensors"]:
        tensors, metadata = read_tensors(path.with_suffix(".safetensors"), CompareError)
        if metadata.get("identity") != identity:
            raise CompareError(f"{path.with_suffix('.safetensors')} is damaged: it belongs to another measurement")
    records = _records_in(path.with_suffix(".jsonl"), values.get("records"))
    return Measured({name: Estimate(*of) for name, of in values["estimates"].items()}, records, tensors)


def _records_in(path: Path, checksum: str | None) -> list[dict[str, Any]]:
    try:
        content = path.read_bytes()
        if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
            raise CompareError(f"{path} is damaged: its checksum does not match")
        records = [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError) as failure:
        raise CompareError(f"cannot read {path}: {failure}") from failure
    check_shape(records, [{}], str(path), CompareError)
    return records


def _targets_in(path: Path, identity: str) -> tuple[Targets, float]:
    tensors, metadata = read_tensors(path, CompareError)
    check_shape(metadata, {"identity": digest, "seconds": amount}, str(path), CompareError)
    if metadata["identity"] != identity or tensors.keys() != set(_TARGETS):
        raise CompareError(f"{path} holds other targets than its name says")
    return Targets(**tensors, fixed=True), float(metadata["seconds"])
