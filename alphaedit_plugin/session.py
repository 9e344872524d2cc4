"""A sequence of edits on one model."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from .editors import damped
from .editors.targets import Targets
from .errors import EditError, ModelStructureError, NullSpaceError, SessionError, WrongModelError
from .files import read_tensors, write_tensors
from .fingerprint import fingerprints, tensor_digest
from .history import MANIFEST, Batch, is_saved, is_session, read_manifest, save_manifest, stacked
from .hparams import Hyperparameters
from .lora import write_lora
from .modules import Decoder, OutProjection
from .nullspace import NullSpaces
from .patch import write_patch
from .prepare import model_name, null_spaces_of, prepare_statistics
from .requests import Request, parse_requests
from .statistics import Covariance
from .store import Store
from .variant import Variant
from .weights import drift, leakage, outside

log = logging.getLogger(__name__)

_NULL_SPACES, _COVARIANCES, _TOKENIZER = "null_spaces.safetensors", "covariances.safetensors", "tokenizer"


@dataclass(frozen=True)
class Report:
    """What a session has done to its model, by layer.

    `drift` ‖ΔW‖/‖W‖; `leakage` ‖ΔW K0‖/‖W K0‖, empty without covariances; `outside` ‖ΔW(I − P)‖/‖ΔW‖, empty without
    null spaces.
    """

    method: str
    edits: int
    batches: int
    drift: dict[int, float]
    leakage: dict[int, float]
    outside: dict[int, float]


class Session:
    """Edits one model in place, batch after batch, and can undo, save, resume and export what it did.

    Invariants. A call to `edit`, `undo` or `finish` does all of its work or none: whatever interrupts it (an error,
    a value that is not finite, a full disk, Ctrl-C), weights and history are as they were before the call, bit for
    bit. The weights are what `base` becomes when the updates of `batches` are written into it in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: str | Variant,
        null_spaces: NullSpaces | None = None,
        *,
        hyperparameters: Hyperparameters | None = None,
        covariances: Mapping[int, Covariance] | None = None,
        contexts: Sequence[str] | None = None,
        autosave: str | Path | None = None,
        check_model: bool = True,
        store: Store | None = None,
        progress: bool = False,
    ) -> None:
        """`method` is a variant such as "alphaedit", "memit+P" or "rome" (`variant.GRAMMAR`).

        Hyperparameters default to those that ship for the model, or that are derived from it. What the method needs
        of `covariances` and `null_spaces` and is not given is taken from the store, or computed and stored, as by
        `alphaedit prepare`. With `autosave` every batch is saved to that folder as soon as it is written.

        Raises WrongModelError for null spaces of another model (`check_model=False` lets them pass), EditError for
        those of another module, or when only `covariances` were given to a method that also needs null spaces.
        """
        self.variant = method if isinstance(method, Variant) else Variant.parse(method)
        self.model, self.tokenizer = model, tokenizer
        self.hyperparameters = self.variant.hyperparameters(model, model_name(model), hyperparameters)
        layers, template = self.hyperparameters.layers, self.hyperparameters.rewrite_module_tmp
        if self.variant.projected and null_spaces is None and covariances is not None:
            raise EditError(f"{self.variant} projects: give null_spaces too (see prepare.null_spaces_of)")
        if (self.variant.needs_covariances and covariances is None) or (self.variant.projected and null_spaces is None):
            statistics = prepare_statistics(
                model,
                tokenizer,
                layers,
                tokens=self.hyperparameters.tokens,
                template=template,
                store=store,
                progress=progress,
            )
            covariances = covariances or statistics.covariances
            if self.variant.projected and null_spaces is None:
                null_spaces = null_spaces_of(statistics, self.hyperparameters.null_space, store=store)
        self.covariances = {layer: c for layer, c in (covariances or {}).items() if layer in layers}
        self.null_spaces = _fitting(null_spaces, self) if null_spaces is not None and self.variant.projected else None
        self._reported = {layer: space for layer, space in (null_spaces or {}).items() if layer in layers}
        if self.null_spaces is not None and check_model:
            self.null_spaces.check(model)
        self.editor = self.variant.editor(
            model,
            tokenizer,
            self.hyperparameters,
            self.covariances,
            self.null_spaces or {},
            contexts=contexts,
            progress=progress,
        )
        self.batches: list[Batch] = []
        self.base = {layer: projection.matrix.clone() for layer, projection in self.projections.items()}
        self.autosave = Path(autosave) if autosave is not None else None
        self._undamped: dict[int, Tensor] | None = None
        self._fingerprints: dict[int, str] | None = None
        self._names: dict[Path, dict[Batch, str]] = {}  # folder → which file holds which batch
        if self.autosave is not None and is_session(self.autosave):
            raise SessionError(f"{self.autosave} holds a session already: resume it, or choose another folder")

    @property
    def projections(self) -> dict[int, OutProjection]:
        """layer → the out-projection that is edited."""
        return self.editor.projections

    @property
    def facts(self) -> list[Request]:
        """Every fact written and not undone, in order."""
        return [request for batch in self.batches for request in batch.requests]

    @property
    def finished(self) -> bool:
        """Whether the weights are those that `finish` leaves."""
        return self._undamped is not None

    def edit(self, records: Sequence[Mapping[str, Any] | Request], targets: Targets | None = None) -> list[Request]:
        """Write these facts, all or none; returns them as understood.

        `targets` computed before, on the model as it is now, save computing them. Raises RequestError for a
        malformed record before anything is touched, and EditError when the result would not be finite. A sequence
        that was finished goes on from its undamped weights.
        """
        requests = parse_requests(records)
        with self.transaction():
            self._unfinish()
            written = self.editor.edit(requests, targets)
            self.batches.append(Batch(tuple(requests), written))
        return requests

    def undo(self, batches: int = 1) -> list[Request]:
        """Take back the last `batches` calls to `edit`, exactly; returns their facts.

        Raises EditError when there are not that many.
        """
        if isinstance(batches, bool) or not isinstance(batches, int) or not 1 <= batches <= len(self.batches):
            raise EditError(f"cannot undo {batches!r} batches: the session holds {len(self.batches)}")
        with self.transaction():
            self._undamped = None
            undone, self.batches = self.batches[-batches:], self.batches[:-batches]
            facts = [request for batch in undone for request in batch.requests]
            self.editor.forget(len(facts))
            self._write_again()
        return facts

    def finish(self) -> None:
        """Do what the method does at the end of a sequence: PRUNE's damping, then projection. Nothing otherwise.

        It can be repeated; the next `edit` or `undo` takes it back first.
        """
        if not self.variant.prune or self.finished or not self.batches:
            return
        with self.transaction():
            self._damp()

    @contextmanager
    def at(self, batches: int, *, finished: bool = False) -> Iterator[float]:
        """Inside the block the weights are those after the first `batches` calls to `edit`, damped if `finished`.

        Yields the seconds that PRUNE's damping took. For measuring only: nothing is saved, and the session goes on
        afterwards from where it was.
        """
        before = (self.batches, self._undamped)
        with put_back(self.projections):
            try:
                self.batches, self._undamped = self.batches[:batches], None
                self._write_again()
                started = time.perf_counter()
                if finished:
                    self._damp()
                yield time.perf_counter() - started
            finally:
                self.batches, self._undamped = before

    def on_copy(self, model: nn.Module) -> Session:
        """The same session on a copy of its model, as that is now. The two go on apart; only this one saves itself."""
        twin = copy.copy(self)
        twin.model, twin.batches, twin.autosave, twin._names = model, list(self.batches), None, {}
        twin.editor = self.variant.editor(
            model,
            self.tokenizer,
            self.hyperparameters,
            self.covariances,
            self.null_spaces or {},
            contexts=self.editor._contexts,
            progress=self.editor.progress,
        )
        twin.editor.memory = self.editor.memory
        return twin

    def report(self) -> Report:
        """How far the weights have moved, and how much of that touches preserved keys."""
        now = {layer: projection.matrix for layer, projection in self.projections.items()}
        return Report(
            str(self.variant),
            len(self.facts),
            len(self.batches),
            {layer: drift(self.base[layer], weight) for layer, weight in now.items()},
            {
                layer: leakage(self.base[layer], weight, self.covariances[layer])
                for layer, weight in now.items()
                if layer in self.covariances
            },
            {layer: outside(self.base[layer], now[layer], space) for layer, space in self._reported.items()},
        )

    # -------------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> None:
        """Write the session to a folder: what it needs to go on, its tokenizer, and a file for every batch.

        The model itself is not in it. Batches saved before are not written again; a crash at any moment leaves the
        folder with the batches before or after, never between. Raises SessionError when it cannot be written, or the
        folder holds another session.
        """
        folder = Path(path)
        if not is_session(folder):
            self._save_foundations(folder)
        elif read_manifest(folder).get("identity") != self._identity():
            raise SessionError(f"{folder} holds another session: choose another folder")
        known = self._names.get(folder.resolve(), {})
        names = {}
        for index, batch in enumerate(self.batches):
            name = known.get(batch)
            names[batch] = name if name and is_saved(folder, name) else batch.save(folder, index)
        weights = {str(layer): _digest(projection.matrix) for layer, projection in self.projections.items()}
        values = {**self._description(), "finished": self.finished, "weights": weights, "identity": self._identity()}
        save_manifest(folder, values, list(names.values()))
        self._names[folder.resolve()] = names

    @classmethod
    def resume(
        cls,
        path: str | Path,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        check_model: bool = True,
        progress: bool = False,
    ) -> Session:
        """The session that was saved to `path`, its edits written into `model` again; it goes on saving itself there.

        `model` is the one that the session began with, unedited. The tokenizer is read from the folder unless given.
        Raises SessionError for a folder that holds no whole session, WrongModelError for another model.
        """
        folder = Path(path)
        values = read_manifest(folder)
        with _reading(folder / MANIFEST):
            variant = Variant.parse(values["method"])
            hyperparameters = Hyperparameters.from_mapping(values["hyperparameters"], str(folder / MANIFEST))
            expected = {int(layer): str(print_) for layer, print_ in values["fingerprints"].items()}
            contexts = [str(context) for context in values["contexts"]]
            finished, weights, names = bool(values["finished"]), dict(values["weights"]), list(values["batches"])
            projects, _ = bool(values["null_spaces"]), (values["model"], values["dtype"], values["identity"])
        batches = [Batch.load(folder, name) for name in names]
        with _reading(folder / _COVARIANCES):
            covariances = _load_covariances(folder / _COVARIANCES) if variant.needs_covariances else {}
        with _reading(folder / _NULL_SPACES):
            null_spaces = NullSpaces.load(folder / _NULL_SPACES) if projects else None
        if tokenizer is None:
            with _reading(folder / _TOKENIZER):
                if not (folder / _TOKENIZER).is_dir():  # or the path would be taken for a name on the hub
                    raise FileNotFoundError("there is no such folder")
                tokenizer = AutoTokenizer.from_pretrained(folder / _TOKENIZER, local_files_only=True)
        _check_model(model, expected, folder, str(values["model"]), check_model)
        session = cls(
            model,
            tokenizer,
            variant,
            null_spaces,
            hyperparameters=hyperparameters,
            covariances=covariances,
            contexts=contexts,
            check_model=False,
            progress=progress,
        )
        with put_back(session.projections, only_on_error=True):
            session.batches = batches
            session._write_again()
            for batch in batches:
                session.editor.remember(batch.written)
            if finished:
                session.finish()
            _check_finite(session.projections)
        now = {str(layer): _digest(projection.matrix) for layer, projection in session.projections.items()}
        if now != weights:
            log.warning("%s: the weights differ from those saved in their last bits (another machine?)", folder)
        session.autosave, session._fingerprints = folder, expected
        session._names[folder.resolve()] = dict(zip(batches, names, strict=True))
        return session

    def to_patch(self, path: str | Path) -> None:
        """Write the edit as one small safetensors file that `patch.apply_patch` and `revert_patch` take, exactly.

        It holds the factors of ΔW where the method has any (not under RECT, nor after PRUNE's damping).
        """
        factors: Mapping[int, tuple[Tensor, Tensor] | None] = {}
        if not self.variant.rect and not self.finished:
            factors = stacked(self.batches)
        write_patch(
            path,
            self.model,
            self.base,
            {layer: factors.get(layer) for layer in self.projections},
            {**self._description(), "facts": [vars(fact) for fact in self.facts]},
            template=self.hyperparameters.rewrite_module_tmp,
        )

    def to_lora(self, folder: str | Path, *, energy: float | None = None) -> dict[int, int]:
        """Write the edit as a PEFT LoRA adapter; returns layer → rank.

        The ranks are those that give ΔW exactly, or with `energy` the smallest that hold this share of ‖ΔW‖².
        """
        return write_lora(
            folder,
            self.model,
            self.base,
            template=self.hyperparameters.rewrite_module_tmp,
            energy=energy,
            base_model=model_name(self.model),
        )

    # ------------------------------------------------------------------------------------------------ internals

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Weights, history and memory that the block leaves, saved; or all as before if it fails. They nest."""
        before = (self.batches, self._undamped, self.editor.memory)
        self.batches = list(self.batches)
        try:
            with put_back(self.projections, only_on_error=True):
                yield
                _check_finite(self.projections)
                if self.autosave is not None:
                    self.save(self.autosave)
        except BaseException:
            self.batches, self._undamped, self.editor.memory = before
            raise

    def _unfinish(self) -> None:
        if self._undamped is not None:
            _copy(self._undamped, self.projections)
            self._undamped = None

    def _damp(self) -> None:
        self._undamped = {layer: projection.matrix.clone() for layer, projection in self.projections.items()}
        for layer, projection in self.projections.items():
            before, weight = self.base[layer].to(torch.float64), projection.matrix
            accumulated = weight.to(torch.float64) - before
            change = damped(accumulated, before)
            if change is accumulated:
                continue  # nothing outgrew the weight
            if self.null_spaces is not None:
                change = self.null_spaces[layer].project(change)
            weight.copy_((before + change.to(before.device)).to(weight.dtype))

    def _write_again(self) -> None:
        """The weights as `batches` leave them, from the base."""
        _copy(self.base, self.projections)
        again = self.editor.write.again
        for batch in self.batches:
            for update in batch.written.updates:
                again(self.projections[update.layer], update)

    def _description(self) -> dict[str, Any]:
        """What the session is, in JSON's types."""
        if self._fingerprints is None:
            with put_back(self.projections):
                _copy(self.base, self.projections)
                self._fingerprints = fingerprints(self.model, list(self.projections))
        return {
            "method": str(self.variant),
            "model": model_name(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "fingerprints": {str(layer): print_ for layer, print_ in self._fingerprints.items()},
            "hyperparameters": self.hyperparameters.as_dict(),
            "contexts": list(self.editor.contexts),
            "null_spaces": self.null_spaces is not None,
        }

    def _identity(self) -> str:
        """A hash of all that never changes during the session: one may go on in a folder only if they agree."""
        tensors = [self.covariances[layer].upper.triu() for layer in self.covariances if self.variant.needs_covariances]
        tensors += [space.factor for space in (self.null_spaces or {}).values()]
        description = {key: value for key, value in self._description().items() if key != "model"}
        lines = [json.dumps(description, sort_keys=True), *map(tensor_digest, tensors)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _save_foundations(self, folder: Path) -> None:
        """What never changes during a session: statistics, null spaces, tokenizer."""
        if self.variant.needs_covariances:
            tensors = {
                f"{layer}.{name}": tensor
                for layer, covariance in self.covariances.items()
                for name, tensor in covariance.packed().items()
            }
            write_tensors(folder / _COVARIANCES, tensors, {"layers": list(self.covariances)}, SessionError)
        try:
            if self.null_spaces is not None:
                self.null_spaces.save(folder / _NULL_SPACES)
        except NullSpaceError as failure:
            raise SessionError(str(failure)) from failure
        try:
            self.tokenizer.save_pretrained(folder / _TOKENIZER)
        except (OSError, NotImplementedError, AttributeError) as failure:
            raise SessionError(f"cannot save the tokenizer to {folder / _TOKENIZER}: {failure}") from failure


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of those who read it becomes a SessionError that names it."""
    try:
        yield
    except SessionError:
        raise
    except Exception as failure:
        raise SessionError(f"{path} is damaged: {failure!r}. Take a copy of the session, or begin anew") from failure


def _check_model(model: nn.Module, expected: Mapping[int, str], folder: Path, name: str, required: bool) -> None:
    """Raises WrongModelError unless the model is the one that the session in `folder` began with."""
    try:
        found = fingerprints(model, list(expected))
        wrong = [layer for layer in expected if found[layer] != expected[layer]]
        why = f"layer {wrong[0]} differs" if wrong else ""
    except ModelStructureError as failure:
        why = str(failure)
    if not why:
        return
    if required:
        raise WrongModelError(
            f"the session in {folder} began with {name}, not with the given {model_name(model)} ({why}): give the "
            "unedited model it began with, or check_model=False"
        )
    log.warning("the session in %s began with %s, not with the given %s (%s)", folder, name, model_name(model), why)


def _fitting(null_spaces: NullSpaces, session: Session) -> NullSpaces:
    """Those of the layers to be edited. Raises EditError where one is missing, or another module's."""
    hyperparameters = session.hyperparameters
    missing = sorted(set(hyperparameters.layers) - set(null_spaces))
    if missing:
        raise EditError(f"there is no null space of layers {missing}, which {session.variant} is to edit")
    template = null_spaces.provenance.get("template")
    for layer in hyperparameters.layers:
        theirs = Decoder(session.model, template).out_projection(layer).name
        ours = Decoder(session.model, hyperparameters.rewrite_module_tmp).out_projection(layer).name
        if theirs != ours:
            raise EditError(
                f"the null space of layer {layer} is that of {theirs}, but {session.variant} is to edit {ours}"
            )
    return NullSpaces({layer: null_spaces[layer] for layer in hyperparameters.layers}, null_spaces.provenance)


def _load_covariances(path: Path) -> dict[int, Covariance]:
    tensors, metadata = read_tensors(path, SessionError)
    return {
        layer: Covariance.unpacked({name: tensors[f"{layer}.{name}"] for name in ("triangle", "count")})
        for layer in metadata["layers"]
    }


def _copy(weights: Mapping[int, Tensor], projections: Mapping[int, OutProjection]) -> None:
    for layer, projection in projections.items():
        projection.matrix.copy_(weights[layer])


def _check_finite(projections: Mapping[int, OutProjection]) -> None:
    for projection in projections.values():
        if not torch.isfinite(projection.matrix).all():
            raise EditError(f"the edit would leave {projection.name}.weight not finite; nothing was changed")


def _digest(matrix: Tensor) -> str:
    return tensor_digest(matrix.contiguous())


@contextmanager
def put_back(projections: Mapping[int, OutProjection], *, only_on_error: bool = False) -> Iterator[dict[int, Tensor]]:
    """The weights as they were, bit for bit, when the block ends (or only when it raises).

    Yields those weights, layer → d_out × d_in.
    """
    before = {layer: projection.matrix.clone() for layer, projection in projections.items()}
    failed = True
    try:
        yield before
        failed = False
    finally:
        if failed or not only_on_error:
            _copy(before, projections)
