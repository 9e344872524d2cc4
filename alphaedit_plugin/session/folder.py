"""The folder of a session: what the session needs to continue, one file per batch, and a manifest that lists them."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from transformers import AutoTokenizer

from ..editors.chat import ChatTemplate
from ..editors.hyperparameters import Hyperparameters
from ..editors.variant import Variant
from ..errors import AlphaEditError, SessionDamagedError, SessionError, SessionInUseError
from ..nullspace.covariance import Covariance, packed_by_layer, unpacked_by_layer
from ..nullspace.null_spaces import NullSpaces
from ..restoring import restoring
from ..storage.files import file_digest
from ..storage.json_file import write_json
from ..storage.tensors import read_tensors, write_tensors
from .batch import Batch
from .manifest import (
    BATCHES,
    FORMAT,
    MANIFEST,
    TIMES,
    check_sum,
    is_session,
    names_of,
    read_manifest,
    reading,
    settled,
    stamp_in,
    stamp_of,
    times_in,
)

_NULL_SPACES, _COVARIANCES, _TOKENIZER = "null_spaces.safetensors", "covariances.safetensors", "tokenizer"
_PARTS = (MANIFEST, BATCHES, _NULL_SPACES, _COVARIANCES, _TOKENIZER, TIMES)
_LOCK, _OWNER = ".lock", "owner.json"


@dataclass(frozen=True)
class Saved:
    """The content of a session's folder.

    `weights` are digests of the edited weights, by layer, and `moved` what `change.sketch` makes of how far they moved;
    None in the folder of an earlier version.
    """

    variant: Variant
    hyperparameters: Hyperparameters
    model: str
    fingerprints: dict[int, str]
    contexts: list[str]
    batches: list[Batch]
    finished: bool
    weights: dict[str, str]
    moved: dict[str, list[float]] | None
    identity: str
    covariances: dict[int, Covariance]
    null_spaces: NullSpaces | None
    chat: ChatTemplate | None


class SessionFolder:
    """A session on disk.

    Invariants. The folder holds every batch that its manifest names, complete. The manifest is written last and
    atomically, so a crash at any moment leaves the session as before or after a save, never between. One object at a
    time may write, the one that has claimed the folder; and it writes only over the manifest that it wrote or read
    last, so that edits of two are never mixed. The folder does not hold the model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()  # the working directory may change
        self._names: dict[Batch, str] = {}  # file names of the batches known to be in this folder
        self._sums: dict[str, Any] = {}  # of what the manifest vouches for: batches, and the tokenizer's files
        self._known: set[str] = set()  # stamps of the manifests that this object read, wrote, or was about to write
        self._lock: FileLock | None = None
        self._process = os.getpid()

    def __del__(self) -> None:
        try:  # noqa: SIM105 (at the end of Python there may be no suppress any more)
            self.release()
        except BaseException:
            pass

    def __getstate__(self) -> dict[str, Any]:
        """A copy knows what this object knows, but does not own the folder."""
        return {**vars(self), "_lock": None}

    # ------------------------------------------------------------------------------------------------- ownership

    def claim(self) -> None:
        """Own the folder until `release`, or until this object or its process ends.

        Raises SessionInUseError, saying who owns it, or SessionError if it cannot be written.
        """
        if self._lock is not None:
            if os.getpid() != self._process:
                raise SessionInUseError(
                    f"{self.path} belongs to the process {self._process}, of which this one is a fork: resume the "
                    "session with read_only=True, or save it to another folder"
                )
            return
        self._process = os.getpid()
        lock = FileLock(self.path / _LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise SessionInUseError(
                f"{self.path} is in use by {self._owner()}: close that session (Session.close(), also before "
                "a notebook's cell is run again) or end its process; to look at the edits meanwhile, resume with "
                "read_only=True"
            ) from None
        except OSError as failure:
            raise SessionError(
                f"cannot write {self.path}: {failure}. Choose another folder, or resume with read_only=True"
            ) from failure
        self._lock = lock
        owner = {"pid": os.getpid(), "machine": platform.node(), "since": datetime.now().isoformat(" ", "seconds")}
        with suppress(OSError):  # only said to those who want the folder too
            (self.path / _OWNER).write_text(json.dumps(owner), encoding="utf-8")

    def release(self) -> None:
        """Give the folder back; what `claim` alone put there goes."""
        if self._lock is None or os.getpid() != self._process:  # in a fork, the folder stays the parent's
            return
        with suppress(OSError):
            (self.path / _OWNER).unlink(missing_ok=True)
            if not self.holds_session:
                (self.path / _LOCK).unlink(missing_ok=True)  # still locked: who waits for it makes another
                self.path.rmdir()  # unless something else is there
        self._lock.release()
        self._lock = None

    @restoring
    def claimed(self) -> Iterator[None]:
        """Own the folder for the block at least."""
        owned = self._lock is not None
        try:
            self.claim()
            yield
        finally:
            if not owned:
                self.release()

    def _owner(self) -> str:
        try:
            owner = json.loads((self.path / _OWNER).read_text(encoding="utf-8"))
            here = owner["machine"] == platform.node()
            which = "another Session of this process" if here and owner["pid"] == os.getpid() else "another process"
            return f"{which} ({owner['pid']} on {owner['machine']}, since {owner['since']})"
        except (OSError, ValueError, LookupError, TypeError):
            return "somebody else"

    @property
    def holds_session(self) -> bool:
        return is_session(self.path)

    # -------------------------------------------------------------------------------------------------- writing

    def save(
        self,
        batches: Sequence[Batch],
        values: Mapping[str, Any],
        tokenizer: Any,
        covariances: Mapping[int, Covariance],
        null_spaces: NullSpaces | None,
    ) -> None:
        """Save exactly these batches; those that are in the folder already are not written again.

        `values` go into the manifest; its "identity" is a hash of all that never changes during a session. Raises
        SessionInUseError if another object owns the folder, SessionError if something cannot be written, or if the
        folder holds a session that this object did not write or read last.
        """
        with self.claimed():
            found = self._checked_stamp()
            fresh = [path for path in map(self.path.joinpath, _PARTS) if found is None and not path.exists()]
            if found is None:
                self._names, self._sums = {}, {}
            try:
                if found is None:
                    self._save_foundations(tokenizer, covariances, null_spaces)
                names = self._files_of(batches)
                self._save_times(names)
                stamp = self._save_manifest(values, list(names.values()))
            except BaseException:
                for path in fresh:
                    _remove(path)
                raise
            self._known, self._names = {stamp}, names

    def stage(self, batches: Sequence[Batch]) -> None:
        """Write the files of new batches, which takes longest of a `save`; they count when that names them.

        Does nothing where there is no session yet. Raises what `save` raises.
        """
        with self.claimed():
            if self._checked_stamp() is not None:
                self._names |= self._files_of(batches)

    def _files_of(self, batches: Sequence[Batch]) -> dict[Batch, str]:
        """The names of the batches' files; those that are not there are written."""
        names = {}
        for index, batch in enumerate(batches):
            name = self._names.get(batch)
            names[batch] = name if name and (self._batches / name).exists() else self._save_batch(batch, index)
        return names

    def _checked_stamp(self) -> str | None:
        """The stamp of the manifest in the folder, if there is one; SessionError if somebody else wrote it."""
        found = stamp_in(self.path)
        if found is not None and found not in self._known:
            raise SessionError(
                f"{self.path} holds another session, or another Session has saved there since: resume what it "
                "holds, or choose another folder. Nothing was changed"
            )
        return found

    @property
    def _batches(self) -> Path:
        return self.path / BATCHES

    def _save_batch(self, batch: Batch, index: int) -> str:
        """Write a batch to a new file, never over another; returns the file's name."""
        name = f"{index:06d}.safetensors"
        taken = 0
        while (self._batches / name).exists():  # the file of a batch undone since, or of one not yet in the manifest
            taken += 1
            name = f"{index:06d}-{taken}.safetensors"
        self._sums[name] = write_tensors(self._batches / name, *batch.packed(), SessionError)
        return name

    def _save_times(self, names: Mapping[Batch, str]) -> None:
        """Also of the batches that the manifest still names: it may stay as it is, if it cannot be written."""
        both = [*self._names.items(), *names.items()]
        times = {name: batch.time.isoformat() for batch, name in both if batch.time is not None}
        write_json(self.path / TIMES, times, SessionError)

    def _save_manifest(self, values: Mapping[str, Any], names: Sequence[str]) -> str:
        """Write the manifest: only from now on does the folder hold the batches of these names. Returns its stamp."""
        sums = {name: self._sums[name] for name in (*names, _TOKENIZER) if name in self._sums}
        manifest = {"format": FORMAT, **values, "batches": list(names), "sums": sums}
        written = stamp_of(manifest)
        self._known |= {written}  # before it is written: an interrupt may come right after
        write_json(self.path / MANIFEST, manifest, SessionError)
        for path in self._batches.glob("*.safetensors"):
            if path.name not in names:
                with suppress(OSError):  # the file does no harm: the next save tries again
                    path.unlink()
        return written

    def _save_foundations(
        self, tokenizer: Any, covariances: Mapping[int, Covariance], null_spaces: NullSpaces | None
    ) -> None:
        """Save what never changes during a session: statistics, null spaces, tokenizer."""
        if covariances:
            metadata = {"layers": list(covariances)}
            write_tensors(self.path / _COVARIANCES, packed_by_layer(covariances), metadata, SessionError)
        try:
            if null_spaces is not None:
                null_spaces.save(self.path / _NULL_SPACES)
        except AlphaEditError as failure:
            raise SessionError(str(failure)) from failure
        try:
            tokenizer.save_pretrained(self.path / _TOKENIZER)
        except Exception as failure:  # tokenizers raises no type of its own
            raise SessionError(f"cannot save the tokenizer to {self.path / _TOKENIZER}: {failure}") from failure
        files = [path for path in (self.path / _TOKENIZER).rglob("*") if path.is_file()]
        self._sums[_TOKENIZER] = {
            path.relative_to(self.path / _TOKENIZER).as_posix(): file_digest(path, SessionError) for path in files
        }

    # -------------------------------------------------------------------------------------------------- reading

    def load(self) -> Saved:
        """All that was saved, except the tokenizer. Raises SessionError, naming the file, if something is damaged.

        If the folder's owner saves meanwhile, it is read again.
        """
        saved, stamp = settled(self.path, self._load)
        self._known = {stamp}
        return saved

    def _load(self) -> Saved:
        manifest = self.path / MANIFEST
        values = read_manifest(self.path)
        with reading(manifest):
            variant = Variant.parse(values["method"])
            hyperparameters = Hyperparameters.from_saved(values["hyperparameters"], str(manifest))
            fingerprints = {int(layer): str(print_) for layer, print_ in values["fingerprints"].items()}
            contexts = [str(context) for context in values["contexts"]]
            finished, weights, names = bool(values["finished"]), dict(values["weights"]), names_of(values)
            chat = ChatTemplate(**values["chat"]) if "chat" in values else None
            sums = dict(values.get("sums", {}))  # none in version 0.1
            projects, _ = bool(values["null_spaces"]), (values["model"], values["dtype"])
        times = times_in(self.path)
        batches = [self._load_batch(name, sums.get(name), times.get(name)) for name in names]
        with reading(self.path / _COVARIANCES):
            needed = variant.needs_covariances
            covariances = unpacked_by_layer(self._tensors(_COVARIANCES)) if needed else {}
        with reading(self.path / _NULL_SPACES):
            null_spaces = NullSpaces.load(self.path / _NULL_SPACES) if projects else None
        self._names, self._sums = dict(zip(batches, names, strict=True)), sums
        return Saved(
            variant,
            hyperparameters,
            str(values["model"]),
            fingerprints,
            contexts,
            batches,
            finished,
            weights,
            values.get("moved"),
            str(values["identity"]),
            covariances,
            null_spaces,
            chat,
        )

    def load_tokenizer(self) -> Any:
        """The saved tokenizer. Raises SessionError, naming the folder, if it cannot be read."""
        path = self.path / _TOKENIZER
        with reading(path):
            if not path.is_dir():  # otherwise the path would be read as a name on the hub
                raise FileNotFoundError("there is no such folder")
            for name, sum_ in self._sums.get(_TOKENIZER, {}).items():
                if file_digest(path / name, SessionError) != sum_:
                    raise ValueError(f"{name} is not the one that was saved")
            return AutoTokenizer.from_pretrained(path, local_files_only=True)

    def _load_batch(self, name: str, expected: str | None, time: datetime | None) -> Batch:
        path = self._batches / name
        tensors, metadata = read_tensors(path, SessionDamagedError)
        check_sum(path, expected)
        if "layers" not in metadata or "requests" not in metadata:
            raise SessionDamagedError(f"{path} holds no batch of a session: it is another kind of file of ours")
        with reading(path):
            return Batch.unpacked(tensors, metadata, time)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.path / name, SessionDamagedError)[0]


def _remove(path: Path) -> None:
    """Remove a file or a folder of ours, if that is possible."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
