"""Covariances of a model, from the store or computed and stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from ..errors import StatisticsError
from ..model import sampling
from ..model.batches import digest
from ..model.decoder import Decoder, OutProjection
from ..model.fingerprint import fingerprints, model_name, whole_weights
from ..storage.shipped import shipped
from ..storage.store import Recipe, Store
from ..storage.tensors import tensor_digest
from . import corpus
from .covariance import Covariance, collect, is_distributed
from .projection import Criterion

log = logging.getLogger(__name__)

TOKENS_PER_DIMENSION = 10


@dataclass(frozen=True)
class Statistics:
    """The covariances of some layers of one model, with what they were made from (JSON's types)."""

    covariances: dict[int, Covariance]
    provenance: dict[str, Any]

    def of_layers(self, layers: Sequence[int]) -> Statistics:
        return Statistics({layer: self.covariances[layer] for layer in layers}, self.provenance)

    def save_npz(self, model: nn.Module, folder: str | Path, size: int, *, dtype: str = "float32") -> list[Path]:
        """Write the files that ROME, MEMIT and EasyEdit look for in `folder`, one per layer; returns their paths.

        `size` and `dtype` must be what their run asks for (`mom2_n_samples`, `mom2_dtype`), or they compute again.
        """
        projections = Decoder(model, self.provenance.get("template")).out_projections(list(self.covariances))
        paths = {
            layer: Path(folder) / f"{projection.name}_{dtype}_mom2_{size}.npz"
            for layer, projection in projections.items()
        }
        for layer, path in paths.items():
            self.covariances[layer].save_npz(path, sample_size=size)
        return list(paths.values())

    def identity(self, layers: Sequence[int]) -> dict[str, Any]:
        """What determines the covariances of `layers`; paths and names of model and text do not matter.

        It includes a digest of their text or, if the text is unknown, of the covariances themselves.
        """
        text = self.provenance.get("text", {})
        if "digest" not in text:
            text = {
                str(layer): [self.covariances[layer].count, tensor_digest(self.covariances[layer].upper.triu())]
                for layer in sorted(layers)
            }
        return {
            "fingerprints": {str(layer): self.provenance["fingerprints"][str(layer)] for layer in sorted(layers)},
            "template": self.provenance.get("template"),
            "text": text,
        }


@dataclass(frozen=True)
class Preparation:
    """Where covariances come from, and what counts as null; the same for command line, flag, Session and Python.

    `corpus` is text as in `corpus.documents`; without one the model writes its own. `stats_dir` holds .npz statistics
    of EasyEdit, MEMIT or ROME, which are read instead of text. `tokens` of text default to 10 × the largest d_in.
    `criterion` overrides a method's own; None leaves it to the method. Results are kept in `store`.
    """

    corpus: str | Path | None = None
    stats_dir: str | Path | None = None
    tokens: int | None = None
    criterion: Criterion | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False

    def statistics(
        self,
        model: nn.Module | Decoder,
        tokenizer: Any,
        layers: Sequence[int],
        *,
        tokens: int | None = None,
        template: str | None = None,
        found_in: Sequence[Path] = (),
    ) -> Statistics:
        """Covariances of `layers`; `tokens` override the preparation's own.

        `found_in` are folders that may hold .npz statistics: the first that has all layers is used, unless a corpus or
        a number of tokens was asked for. Raises StatisticsError for missing statistics or too little text, CorpusError
        for text that cannot be read, ModelStructureError for layers that cannot be edited.
        """
        tokens = tokens or self.tokens
        if self.stats_dir is not None:
            return statistics_from_npz(model, layers, self.stats_dir, template=template)
        for folder in found_in if self.corpus is None and tokens is None else ():
            try:
                found = statistics_from_npz(model, layers, folder, template=template)
            except StatisticsError as failure:
                log.info("the statistics below %s are not used: %s", folder, failure)
            else:
                log.info("using the statistics that EasyEdit has in %s: nothing is computed", folder)
                return found
        return prepare_statistics(
            model,
            tokenizer,
            layers,
            source=self.corpus,
            tokens=tokens,
            template=template,
            store=self.store,
            progress=self.progress,
        )


def prepare_statistics(
    model: nn.Module | Decoder,
    tokenizer: Any,
    layers: Sequence[int],
    *,
    source: str | Path | None = None,
    tokens: int | None = None,
    template: str | None = None,
    store: Store | None = None,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Statistics:
    """Covariances of `layers`, from the store or computed and stored.

    `source` is a corpus as in `corpus.documents`; None lets the model write its own text. `tokens` defaults to 10 × the
    largest d_in; with fewer, a covariance is badly conditioned.

    Raises StatisticsError if the text has no more tokens than d_in, CorpusError if it cannot be read.
    """
    store = store or Store()
    decoder = Decoder.of(model, template)
    projections = decoder.out_projections(layers)
    widest = max(projection.d_in for projection in projections.values())
    budget = budget_for(projections, tokens)
    if budget <= widest:
        raise StatisticsError(
            f"{budget} tokens cannot fill a covariance of {widest} dimensions: ask for at least "
            f"{TOKENS_PER_DIMENSION * widest} (10 × d_in)"
        )
    prints = fingerprints(decoder, list(projections))
    windows = text_of(decoder, tokenizer, source, budget, store, progress)
    text: dict[str, Any] = {"tokens": sum(map(len, windows)), "digest": digest(windows)}
    if text["tokens"] <= widest:
        raise StatisticsError(
            f"{text['tokens']} tokens, all that {source} holds, cannot fill a covariance of {widest} dimensions: give "
            f"a corpus of at least {TOKENS_PER_DIMENSION * widest} (10 × d_in)"
        )
    recipes: dict[int, dict[str, Any]] = {
        layer: {"model": prints[layer], "module": projection.name, "text": text, "counted": "all tokens"}
        for layer, projection in projections.items()
    }

    def keys(missing: list[int], partial: Path) -> dict[int, Covariance]:
        log.info("collecting keys of layers %s over %d tokens", missing, text["tokens"])
        return collect(decoder, windows, missing, batch_tokens=batch_tokens, progress=progress, partial=partial)

    return Statistics(
        kept_covariances(store, recipes, keys),
        _provenance(decoder, prints, str(source or "text written by the model itself"), text),
    )


def statistics_from_npz(
    model: nn.Module | Decoder, layers: Sequence[int], folder: str | Path, *, template: str | None = None
) -> Statistics:
    """Covariances that ROME, MEMIT or EasyEdit left in `folder` (anywhere below it): nothing is computed.

    Their files are named `{out-projection}_{dtype}_mom2_{n}.npz`; if a folder holds several for one layer, the one with
    the most tokens is read. The files do not say which model they belong to: the caller must know that it is this one.
    Raises StatisticsError if a layer has no file of its width, or has files in several folders.
    """
    decoder = Decoder.of(model, template)
    projections = decoder.out_projections(layers)
    covariances: dict[int, Covariance] = {}
    files: dict[str, str] = {}
    for layer, projection in projections.items():
        paths = sorted(Path(folder).rglob(f"{projection.name}_*mom2*.npz"))
        if not paths:
            raise StatisticsError(f"there are no statistics of {projection.name} below {folder}")
        read = [(Covariance.load_npz(path), path) for path in paths]
        fitting = [(covariance, path) for covariance, path in read if covariance.d_in == projection.d_in]
        if not fitting:
            raise StatisticsError(
                f"{paths[0]} has {read[0][0].d_in} dimensions, {projection.name} {projection.d_in}: another model's"
            )
        if len({path.parent for _, path in fitting}) > 1:
            raise StatisticsError(
                f"{projection.name} has files in {fitting[0][1].parent} and {fitting[1][1].parent}: name one of them"
            )
        covariances[layer], path = max(fitting, key=lambda pair: pair[0].count)
        files[str(layer)] = str(path)
    tokens = min(covariance.count for covariance in covariances.values())
    return Statistics(
        covariances,
        _provenance(decoder, fingerprints(decoder, list(projections)), files, {"tokens": tokens}),
    )


def _provenance(decoder: Decoder, prints: Mapping[int, str], source: Any, text: Mapping[str, Any]) -> dict[str, Any]:
    """What statistics were made from."""
    return {
        "model": model_name(decoder.model),
        "fingerprints": {str(layer): value for layer, value in prints.items()},
        "template": decoder.template,
        "source": source,
        "text": dict(text),
    }


def budget_for(projections: Mapping[int, OutProjection], tokens: int | None) -> int:
    """How many tokens of text are read: as many as were asked for, or 10 × the largest d_in."""
    return tokens if tokens is not None else TOKENS_PER_DIMENSION * max(each.d_in for each in projections.values())


def text_of(
    decoder: Decoder, tokenizer: Any, source: str | Path | None, budget: int, store: Store, progress: bool
) -> list[list[int]]:
    """Windows of `budget` tokens from a corpus, or of what the model writes itself (`source` None)."""
    if source is None:
        return self_written(decoder, tokenizer, budget, store, progress)
    return corpus.windows(corpus.documents(source), tokenizer, budget)


def whole_model(decoder: Decoder) -> dict[str, Any]:
    """What decides the model's logits, as a part of a recipe."""
    top = len(decoder) - 1
    return {
        "model": fingerprints(decoder, [top])[top],
        "head": [tensor_digest(p) for m in (decoder.final_norm, decoder.head) if m for p in whole_weights(m)],
    }


def self_written(decoder: Decoder, tokenizer: Any, budget: int, store: Store, progress: bool) -> list[list[int]]:
    """Windows of text that the model itself has written: from the store, from what ships, or written now and stored."""
    window = sampling.SELF_WRITTEN_WINDOW
    recipe = {
        **whole_model(decoder),
        "openings": digest(sampling.openings(tokenizer, -(-budget // window))),
        "banned": digest([sampling.unsayable(decoder, tokenizer)]),
        "window": window,
        "seed": sampling.SEED,
    }

    def make(_missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        if (given := Store(shipped("examples")).get("text", recipe)) is not None:
            return {0: given}
        log.info("no corpus was given: the model writes %d tokens itself", budget)
        written = sampling.self_written(decoder, tokenizer, budget, progress=progress)
        return {0: {"tokens": torch.tensor(written, dtype=torch.int32)}}

    if is_distributed():
        if distributed.get_rank() == 0:
            store.get_or_make("text", {0: recipe}, make)
        distributed.barrier()
    return store.get_or_make("text", {0: recipe}, make)[0]["tokens"].tolist()


def kept_covariances(
    store: Store, recipes: Mapping[int, Recipe], collect: Callable[[list[int], Path], Mapping[int, Covariance]]
) -> dict[int, Covariance]:
    """The covariance of each recipe, from the store or collected and stored.

    `collect` is called with the layers that are missing and a file for its partial sums.
    """

    def make(missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        partial = store.path("partial", {"recipes": [recipes[layer] for layer in missing]})
        return {layer: covariance.packed() for layer, covariance in collect(missing, partial).items()}

    packed = _made_together(store, "covariance", recipes, make)
    return {layer: Covariance.unpacked(packed[layer]) for layer in recipes}


def _made_together(
    store: Store,
    kind: str,
    recipes: Mapping[int, Recipe],
    make: Callable[[list[int]], Mapping[int, Mapping[str, torch.Tensor]]],
) -> dict[int, dict[str, torch.Tensor]]:
    """`store.get_or_make`; under torch.distributed all processes take part in `make`, and the first one stores.

    There no lock is held around `make`: it would keep out the processes that `make` waits for.
    """
    if not is_distributed():
        return store.get_or_make(kind, recipes, make)
    found = {layer: store.get(kind, recipe) for layer, recipe in recipes.items()}
    lacking: list[list[int]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(lacking, [layer for layer, tensors in found.items() if tensors is None])
    missing = sorted({layer for layers in lacking for layer in layers})
    if missing:
        for layer, tensors in make(missing).items():
            found[layer] = dict(tensors)
            if distributed.get_rank() == 0:
                store.put(kind, recipes[layer], tensors)
    distributed.barrier()
    return {layer: tensors for layer, tensors in found.items() if tensors is not None}
