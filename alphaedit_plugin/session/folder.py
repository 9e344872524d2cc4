"""The folder of a session: what the session needs to continue, one file per batch, and a manifest that lists them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from ..editors.chat import ChatTemplate
from ..editors.hyperparameters import Hyperparameters
from ..editors.variant import Variant
from ..errors import NullSpaceError, SessionError
from ..nullspace.covariance import Covariance, packed_by_layer, unpacked_by_layer
from ..nullspace.null_spaces import NullSpaces
from ..storage.files import write_text
from ..storage.tensors import read_tensors, write_tensors
from .batch import Batch

MANIFEST = "session.json"
FORMAT = 1
_BATCHES, _NULL_SPACES, _COVARIANCES, _TOKENIZER = (
    "batches",
    "null_spaces.safetensors",
    "covariances.safetensors",
    "tokenizer",
)


@dataclass(frozen=True)
class Saved:
    """The content of a session's folder. `weights` are digests of the edited weights, by layer."""

    variant: Variant
    hyperparameters: Hyperparameters
    model: str
    fingerprints: dict[int, str]
    contexts: list[str]
    batches: list[Batch]
    finished: bool
    weights: dict[str, str]
    covariances: dict[int, Covariance]
    null_spaces: NullSpaces | None
    chat: ChatTemplate | None


class SessionFolder:
    """A session on disk.

    Invariant: the folder holds every batch that its manifest names, complete. The manifest is written last and
    atomically, so a crash at any moment leaves the session as before or after a save, never between. The folder does
    not hold the model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._names: dict[Batch, str] = {}  # file names of the batches known to be in this folder

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
        SessionError if something cannot be written, or if the folder holds a session of another identity.
        """
        if not self.holds_session:
            self._save_foundations(tokenizer, covariances, null_spaces)
        elif read_manifest(self.path).get("identity") != values["identity"]:
            raise SessionError(f"{self.path} holds another session: choose another folder")
        names = {}
        for index, batch in enumerate(batches):
            name = self._names.get(batch)
            names[batch] = name if name and (self._batches / name).exists() else self._save_batch(batch, index)
        self._save_manifest(values, list(names.values()))
        self._names = names

    @property
    def _batches(self) -> Path:
        return self.path / _BATCHES

    def _save_batch(self, batch: Batch, index: int) -> str:
        """Write a batch to a new file, never over another; returns the file's name."""
        name = f"{index:06d}.safetensors"
        taken = 0
        while (self._batches / name).exists():  # the file of a batch undone since, or of one not yet in the manifest
            taken += 1
            name = f"{index:06d}-{taken}.safetensors"
        write_tensors(self._batches / name, *batch.packed(), SessionError)
        return name

    def _save_manifest(self, values: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write the manifest: only from now on does the folder hold the batches of these names."""
        text = json.dumps({"format": FORMAT, **values, "batches": list(names)}, indent=1, ensure_ascii=False)
        write_text(self.path / MANIFEST, text, SessionError)
        for path in self._batches.glob("*.safetensors"):
            if path.name not in names:
                with suppress(OSError):  # the file does no harm: the next save tries again
                    path.unlink()

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
        except NullSpaceError as failure:
            raise SessionError(str(failure)) from failure
        try:
            tokenizer.save_pretrained(self.path / _TOKENIZER)
        except (OSError, NotImplementedError, AttributeError) as failure:
            raise SessionError(f"cannot save the tokenizer to {self.path / _TOKENIZER}: {failure}") from failure

    # -------------------------------------------------------------------------------------------------- reading

    def load(self) -> Saved:
        """All that was saved, except the tokenizer. Raises SessionError, naming the file, if something is damaged."""
        manifest = self.path / MANIFEST
        values = read_manifest(self.path)
        with _reading(manifest):
            variant = Variant.parse(values["method"])
            hyperparameters = Hyperparameters.from_mapping(values["hyperparameters"], str(manifest))
            fingerprints = {int(layer): str(print_) for layer, print_ in values["fingerprints"].items()}
            contexts = [str(context) for context in values["contexts"]]
            finished, weights, names = bool(values["finished"]), dict(values["weights"]), list(values["batches"])
            chat = ChatTemplate(**values["chat"]) if "chat" in values else None
            projects, _ = bool(values["null_spaces"]), (values["model"], values["dtype"], values["identity"])
        batches = [self._load_batch(name) for name in names]
        with _reading(self.path / _COVARIANCES):
            needed = variant.needs_covariances
            covariances = unpacked_by_layer(self._tensors(_COVARIANCES)) if needed else {}
        with _reading(self.path / _NULL_SPACES):
            null_spaces = NullSpaces.load(self.path / _NULL_SPACES) if projects else None
        self._names = dict(zip(batches, names, strict=True))
        return Saved(
            variant,
            hyperparameters,
            str(values["model"]),
            fingerprints,
            contexts,
            batches,
            finished,
            weights,
            covariances,
            null_spaces,
            chat,
        )

    def load_tokenizer(self) -> Any:
        """The saved tokenizer. Raises SessionError, naming the folder, if it cannot be read."""
        path = self.path / _TOKENIZER
        with _reading(path):
            if not path.is_dir():  # otherwise the path would be read as a name on the hub
                raise FileNotFoundError("there is no such folder")
            return AutoTokenizer.from_pretrained(path, local_files_only=True)

    def _load_batch(self, name: str) -> Batch:
        path = self._batches / name
        tensors, metadata = read_tensors(path, SessionError)
        if "layers" not in metadata or "requests" not in metadata:
            raise SessionError(f"{path} holds no batch of a session: it is another kind of file of ours")
        with _reading(path):
            return Batch.unpacked(tensors, metadata)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self.path / name, SessionError)[0]


def is_session(folder: Path) -> bool:
    """Whether a session was saved there."""
    return (folder / MANIFEST).exists()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a session. Raises SessionError, naming the file, if there is no session or it is damaged."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise SessionError(f"{folder} holds no session: cannot read {path} ({failure})") from failure
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SessionError(f"{path} is no session of this version of alphaedit-plugin")
    return values


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Re-raises any read error as a SessionError that names the file."""
    try:
        yield
    except SessionError:
        raise
    except Exception as failure:
        raise SessionError(f"{path} is damaged: {failure!r}. Take a copy of the session, or begin anew") from failure
