"""EasyEdit's own methods as variants of a comparison: `easyedit:MEMIT`, `easyedit:GRACE`, `easyedit:MEMIT+P`.

What runs is EasyEdit's editing function, called batch after batch. Ours is only what surrounds it: hyperparameters for
any model, the comparison's statistics in the place of Wikipedia's, and a model that is afterwards what it was.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..editors.requests import Request
from ..errors import AlphaEditError, CompareError, EditError
from ..model.decoder import Decoder
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.statistics import Statistics
from ..storage.files import file_digest
from .edition import PACKAGE
from .hyperparameters import hyperparameters, layers_of
from .isolation import Memory, hushed, put_back, seeded, working_in
from .methods import COVERED, templates
from .names import Named, functions, parse_baseline


@contextmanager
def baseline(
    variant: str | Named,
    model: Any,
    tokenizer: Any,
    *,
    hparams: Mapping[str, Any] | str | Path | None = None,
    statistics: Statistics | None = None,
    null_spaces: NullSpaces | None = None,
) -> Iterator[Baseline]:
    """One of EasyEdit's methods, editing `model` for as long as the block lasts; then the model is bit for bit what it
    was, and so are EasyEdit's own memories, the tokenizer, the random states and the working directory.

    A method that writes feed-forward out-projections edits the model in place, any other a copy of it (in memory,
    the model once more). `hparams` as in `hyperparameters`. `statistics` (of `layers_of`) are what the method finds in
    its `stats_dir`; `null_spaces`, of the same layers, are needed for +P only.

    Raises CompareError where EasyEdit, statistics or null spaces are missing, HyperparameterError as
    `hyperparameters` does.
    """
    named = variant if isinstance(variant, Named) else parse_baseline(variant)
    settings = hyperparameters(named, model, hparams)
    needed = layers_of(settings)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alphaedit-easyedit-")))
        if hasattr(settings, "stats_dir"):
            _lend_statistics(settings, model, statistics, named, folder)
        if named.projected:
            settings.null_space = {"path": _lend_null_spaces(null_spaces, needed, named, folder), "progress": False}
        if hasattr(settings, "P_loc"):  # not there yet: P is to be of this model, and of these statistics
            settings.P_loc = str(folder / "null_space_project.pt")
        if named.method in COVERED:
            stack.enter_context(put_back(model, settings))
            subject = model
        else:
            subject = copy.deepcopy(model).requires_grad_(True)  # as a model that EasyEdit has loaded
        yield Baseline(named, settings, functions()[named.method], subject, copy.deepcopy(tokenizer), folder)


class Baseline:
    """A method of EasyEdit on one model.

    Invariant: what EasyEdit remembers between calls (templates, covariances, P, keys) belongs to this object: other
    users of EasyEdit in the process see nothing of it.
    """

    def __init__(
        self, named: Named, settings: Any, function: Callable[..., Any], model: Any, tokenizer: Any, folder: Path
    ) -> None:
        self.named, self.settings = named, settings
        executor = getattr(function, "__self__", None)  # MEND's keeps the first model that it meets
        self._apply = function if executor is None else type(executor)().apply_to_model
        self._model, self._kind, self._tokenizer, self._folder = model, type(model), tokenizer, folder
        self._memory = Memory()
        self._written = 0
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.unk_token is None:  # FT of the edition of PyPI masks it in its loss
            tokenizer.unk_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if named.method in COVERED else "left"  # as EasyEdit's editors set it
        batchable = importlib.import_module(f"{PACKAGE}.editors.batch_editor").BatchEditor.is_batchable_method
        self._in_batches = bool(batchable(named.method))

    @property
    def identity(self) -> Mapping[str, Any]:
        return identity(self.named, self.settings)

    def edit(self, requests: Sequence[Request]) -> nn.Module:
        """Write a batch on top of what was written, and return the model to measure.

        A method that takes one fact at a time gets them in order. What is drawn at random depends on the number of
        facts written before. Raises EditError if EasyEdit fails or leaves weights that are not finite.
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
            except Exception as failure:  # another person's code: anything may come
                raise EditError(
                    f"EasyEdit's {self.named.method} failed on {batch[0]['prompt']!r}"
                    f"{_hint(failure)}: {type(failure).__name__}: {failure}"
                ) from failure
            self._written += len(batch)
        if not all(torch.isfinite(parameter).all() for parameter in self._model.parameters()):
            raise EditError(f"EasyEdit's {self.named.method} left weights that are not finite")
        return self._model

    def _call(self, batch: list[dict[str, Any]]) -> None:
        with ExitStack() as stack:
            for context in (hushed(), seeded(self._written), self._memory.in_place(), working_in(self._folder)):
                stack.enter_context(context)
            stack.enter_context(torch.enable_grad())
            adapters = _codebooks(self._model)
            for adapter in adapters:
                adapter.__dict__.pop("forward", None)
            edited, _ = self._apply(
                self._model,
                self._tokenizer,
                batch,
                self.settings,
                copy=False,
                return_orig_weights=True,
                keep_original_weight=False,
            )
        while not isinstance(edited, self._kind):  # a wrapper, whose adapters live in the model inside
            edited = edited.get_base_model() if hasattr(edited, "get_base_model") else edited.model
        for adapter in _codebooks(edited):
            adapter.forward = partial(_look_up, adapter)
        self._model = edited


def _codebooks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "GRACEAdapter"]


def _look_up(adapter: Any, keys: Tensor, *_: Any) -> Tensor:
    """What GRACE's adapter answers, asked at every token (… × tokens × d_in) instead of at one.

    GRACE replaces a layer's output where the query, the key of the prompt's last token, is within ε of a key in its
    codebook. EasyEdit's adapter looks at one position for a whole batch, that of the last edit's prompt or the last of
    the row, padding or not; in a batch of prompts of different lengths, or with a target after the prompt, that is
    another token's. For the prompt's last token the answer is the same.
    """
    output: Tensor = adapter.layer(keys)
    if "keys" not in vars(adapter):
        return output
    codebook, values, radii = adapter.keys.float(), adapter.values, adapter.epsilons.view(-1)
    # Not by a matrix product: of equal keys the distance is 0, and ε may be the very distance of a key.
    apart = torch.cdist(keys.float().flatten(0, -2), codebook, compute_mode="donot_use_mm_for_euclid_dist")
    distance, nearest = apart.min(-1)
    within = (distance <= radii[nearest]).view(keys.shape[:-1])
    return torch.where(within[..., None], values[nearest.view(within.shape)].to(output.dtype), output)


def _lend_statistics(settings: Any, model: Any, statistics: Statistics | None, named: Named, folder: Path) -> None:
    """The comparison's covariances, as the .npz that EasyEdit looks for: it computes none, and loads no Wikipedia."""
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


def _lend_null_spaces(null_spaces: NullSpaces | None, layers: list[int], named: Named, folder: Path) -> str:
    if null_spaces is None or set(layers) - set(null_spaces):
        raise CompareError(f"{named} needs the null spaces of layers {layers}, which were not prepared")
    path = folder / "null-spaces.safetensors"
    null_spaces.save(path)
    return str(path)


def identity(named: Named, settings: Any) -> dict[str, Any]:
    """What decides the result beside model, statistics and facts, in JSON's types: EasyEdit's source, its settings."""
    values = dataclasses.asdict(settings)
    for name in ("device", "stats_dir", "P_loc", "null_space", "model_name"):  # of this machine, or ours
        values.pop(name, None)
    functions()  # which imports it
    source = hashlib.sha256()
    for path in sorted(Path(str(sys.modules[PACKAGE].__file__)).parent.rglob("*.py")):
        source.update(path.read_bytes())
    archive = values.pop("archive", None)
    return {
        "easyedit": _edition(),
        "source": source.hexdigest(),
        "archive": file_digest(Path(archive), CompareError) if archive else None,
        "method": named.method,
        "projected": named.projected,
        "hyperparameters": json.loads(json.dumps(values, default=str)),
    }


def _edition() -> str:
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"
    here = Path(str(sys.modules[PACKAGE].__file__)).parent
    return installed.version if Path(str(installed.locate_file(PACKAGE))).resolve() == here.resolve() else "a checkout"


def _hint(failure: Exception) -> str:
    if "CUDA" in str(failure) or "cuda" in str(failure):
        return " (EasyEdit's edition of PyPI knows only CUDA: use a checkout of the current one, or a GPU)"
    return ""
