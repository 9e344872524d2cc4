"""EasyEdit's own methods as variants of a comparison: `easyedit:MEMIT`, `easyedit:GRACE`, `easyedit:MEMIT+P`.

What runs is EasyEdit's editing function, called batch after batch; for +P, inside our guard. We only add what surrounds
it: hyperparameters for any model, the comparison's statistics instead of Wikipedia's, and restoring the model
afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..editors.requests import Request
from ..errors import AlphaEditError, CompareError, EditError
from ..model.decoder import Decoder
from ..model.gradients import gradients
from ..model.undisturbed import seeded
from ..nullspace.guard import guards
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.statistics import Statistics
from ..restoring import restoring
from ..storage.files import file_digest
from .edition import easyedit_module, edition, source_digest
from .grace import look_up_as_easyedit, look_up_at_every_token
from .hush import hushed
from .hyperparameters import hyperparameters, layers_of
from .isolation import ModuleGlobals, model_restored, working_in
from .methods import COVERED, templates
from .names import Named, functions, parse_baseline
from .projected import globals_of, projectable, stacked


@restoring
def baseline(
    variant: str | Named,
    model: Any,
    tokenizer: Any,
    *,
    hparams: Mapping[str, Any] | str | Path | None = None,
    statistics: Statistics | None = None,
    null_spaces: NullSpaces | None = None,
) -> Iterator[Baseline]:
    """One of EasyEdit's methods, for editing `model` inside the block.

    When the block ends, the model is restored bit for bit, and so are the globals of EasyEdit's modules, the tokenizer,
    the random states and the working directory. A method that writes feed-forward out-projections edits the model in
    place; any other method edits a copy, which needs the model's memory once more.

    `hparams` as in `hyperparameters`. `statistics` (of `layers_of`) are what the method finds in its `stats_dir`.
    `null_spaces`, of the same layers, are needed for +P only.

    Raises CompareError if EasyEdit, statistics or null spaces are missing, WrongModelError or NullSpaceError for null
    spaces of another model or other modules, HyperparameterError as `hyperparameters` does.
    """
    named = variant if isinstance(variant, Named) else parse_baseline(variant)
    settings = hyperparameters(named, model, hparams)
    with tempfile.TemporaryDirectory(prefix="alphaedit-easyedit-") as made:
        folder = Path(made)
        if hasattr(settings, "stats_dir"):
            _lend_statistics(settings, model, statistics, named, folder)
        if hasattr(settings, "P_loc"):  # no such file yet: P must come from this model and these statistics
            settings.P_loc = str(folder / "null_space_project.pt")
        attached = _attached(null_spaces, model, settings, named) if named.projected else {}
        in_place = named.method in COVERED
        with model_restored(model, settings) if in_place else nullcontext():
            # a copy is made to be like a model that EasyEdit has loaded
            subject = model if in_place else copy.deepcopy(model).requires_grad_(True)
            yield Baseline(named, settings, subject, copy.deepcopy(tokenizer), folder, attached)


class Baseline:
    """A method of EasyEdit on one model.

    Invariant: what EasyEdit remembers between calls (templates, covariances, P, keys) belongs to this object; other
    users of EasyEdit in the process see nothing of it. If null spaces are `attached`, every ΔW lies in them.
    """

    def __init__(
        self,
        named: Named,
        settings: Any,
        model: Any,
        tokenizer: Any,
        folder: Path,
        attached: Mapping[Decoder, NullSpaces],
    ) -> None:
        self.named, self.settings = named, settings
        function = functions()[named.method]
        executor = getattr(function, "__self__", None)  # MEND's keeps the first model that it meets
        self._apply = function if executor is None else type(executor)().apply_to_model
        self._model, self._kind, self._tokenizer, self._folder = model, type(model), tokenizer, folder
        self._attached, self._hparams, given = attached, settings, {}
        if attached:
            method = COVERED[named.method]
            self._hparams = projectable(settings, method)
            if method.remembers:
                (spaces,) = attached.values()
                p = stacked(spaces, settings.layers)
                given = globals_of(p, torch.zeros_like(p))
        self._globals = ModuleGlobals({(function.__module__, name): value for name, value in given.items()})
        self._written = 0
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.unk_token is None:  # FT of the edition of PyPI masks it in its loss
            tokenizer.unk_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if named.method in COVERED else "left"  # as EasyEdit's editors set it
        batchable = easyedit_module("editors.batch_editor").BatchEditor.is_batchable_method
        self._in_batches = bool(batchable(named.method))

    @property
    def identity(self) -> Mapping[str, Any]:
        return identity(self.named, self.settings)

    def edit(self, requests: Sequence[Request]) -> nn.Module:
        """Write a batch on top of what was written, and return the model to measure.

        A method that takes one fact at a time gets them in order. Random draws depend on the number of facts written
        before. Raises EditError if EasyEdit fails or leaves weights that are not finite.
        """
        records = [
            {"prompt": request.text, "subject": request.subject, "target_new": request.target_new, "case_id": number}
            for number, request in enumerate(requests, self._written)
        ]
        for batch in [records] if self._in_batches else [[record] for record in records]:
            try:
                self._call(batch)
            except AlphaEditError:
                raise
            except Exception as failure:  # EasyEdit may raise anything
                raise EditError(
                    f"EasyEdit's {self.named.method} failed on {batch[0]['prompt']!r}"
                    f"{_hint(failure)}: {type(failure).__name__}: {failure}"
                ) from failure
            self._written += len(batch)
        if not all(torch.isfinite(parameter).all() for parameter in self._model.parameters()):
            raise EditError(f"EasyEdit's {self.named.method} left weights that are not finite")
        return self._model

    def _call(self, batch: list[dict[str, Any]]) -> None:
        with (
            hushed(),
            seeded(self._written),
            self._globals.in_place(),
            working_in(self._folder),
            gradients(True),
            guards(self._attached, check_model=False),
        ):
            look_up_as_easyedit(self._model)
            edited, _ = self._apply(
                self._model,
                self._tokenizer,
                batch,
                self._hparams,
                copy=False,
                return_orig_weights=True,
                keep_original_weight=False,
            )
        while not isinstance(edited, self._kind):  # a wrapper, whose adapters live in the model inside
            edited = edited.get_base_model() if hasattr(edited, "get_base_model") else edited.model
        look_up_at_every_token(edited)
        self._model = edited


def _lend_statistics(settings: Any, model: Any, statistics: Statistics | None, named: Named, folder: Path) -> None:
    """Writes the comparison's covariances as the .npz that EasyEdit looks for, so that it downloads no Wikipedia."""
    found = statistics.covariances if statistics is not None else {}
    if missing := sorted(set(layers_of(settings)) - set(found)):
        raise CompareError(f"{named} needs the statistics of layers {missing}, which were not prepared")
    name = getattr(model.config, "_name_or_path", "") or ""
    size = settings.mom2_n_samples
    for place in {name.rsplit("/")[-1], name.replace("/", "_")}:  # HEAD's, PyPI's
        for template in templates(settings):
            for layer, projection in Decoder(model, template).out_projections(settings.layers).items():
                file = f"{projection.name}_{settings.mom2_dtype}_mom2_{size}.npz"
                found[layer].save_npz(folder / "stats" / place / f"{settings.mom2_dataset}_stats" / file, size)
    settings.stats_dir = str(folder / "stats")


def _attached(null_spaces: NullSpaces | None, model: Any, settings: Any, named: Named) -> dict[Decoder, NullSpaces]:
    """The null spaces of what the method writes, with one decoder per template of the method."""
    layers = layers_of(settings)
    if null_spaces is None or set(layers) - set(null_spaces):
        raise CompareError(f"{named} needs the null spaces of layers {layers}, which were not prepared")
    decoders = [Decoder(model, template) for template in templates(settings)]
    null_spaces.check(decoders[0])
    return {decoder: null_spaces.attached(decoder, layers, "the comparison") for decoder in decoders}


def identity(named: Named, settings: Any) -> dict[str, Any]:
    """What determines the result besides model, statistics and facts, in JSON's types: EasyEdit's source, settings."""
    values = dataclasses.asdict(settings)
    for name in ("device", "stats_dir", "P_loc", "null_space", "model_name"):  # of this machine, or ours
        values.pop(name, None)
    functions()  # which imports EasyEdit
    archive = values.pop("archive", None)
    return {
        "easyedit": edition(),
        "source": source_digest(),
        "archive": file_digest(Path(archive), CompareError) if archive else None,
        "method": named.method,
        "projected": named.projected,
        "hyperparameters": json.loads(json.dumps(values, default=str)),
    }


def _hint(failure: Exception) -> str:
    if "CUDA" in str(failure) or "cuda" in str(failure):
        return " (EasyEdit's edition of PyPI knows only CUDA: use a checkout of the current one, or a GPU)"
    return ""
