"""The null spaces of several layers of one model, with what they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ModelStructureError, NullSpaceError, WrongModelError
from ..model.decoder import Decoder
from ..model.fingerprint import fingerprints, model_name
from ..storage.store import Store
from ..storage.tensors import read_tensors, tensor_digest, write_tensors
from .projection import PAPER, Allowed, Criterion, NullSpace
from .statistics import Preparation, Statistics

Space = TypeVar("Space", bound=Allowed)


@dataclass(frozen=True)
class Spaces(Mapping[int, Space]):
    """layer → what a guard keeps that layer's writes inside of, for one model.

    `provenance` says what they were made from, in JSON's types: model name, `fingerprints` (layer → hash of the
    base weights; see `fingerprint.py`), statistics, criterion, template.
    """

    by_layer: Mapping[int, Space]
    provenance: Mapping[str, Any]

    def __getitem__(self, layer: int) -> Space:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    @property
    def layers(self) -> list[int]:
        return sorted(self.by_layer)

    def check(self, model: nn.Module | Decoder) -> None:
        """Raises WrongModelError unless these null spaces were made from this very model, unedited.

        The message names both. To attach them to an edited or otherwise different model on purpose, skip the
        check (`check_model=False` where they are attached).
        """
        expected = {int(layer): value for layer, value in self.provenance.get("fingerprints", {}).items()}
        made_from = self.provenance.get("model", "an unnamed model")
        given = model_name(model.model if isinstance(model, Decoder) else model)
        missing = set(self.layers) - set(expected)
        if missing:
            raise WrongModelError(f"the null spaces of layers {sorted(missing)} carry no fingerprint of their model")
        try:
            actual = fingerprints(model, self.layers)
        except ModelStructureError as failure:
            raise WrongModelError(
                f"these null spaces belong to {made_from}, not to the given {given}: {failure}"
            ) from failure
        wrong = [layer for layer in self.layers if actual[layer] != expected[layer]]
        if wrong:
            raise WrongModelError(
                f"these null spaces belong to {made_from} (fingerprint {expected[wrong[0]][:12]} at layer {wrong[0]}), "
                f"not to the given {given} ({actual[wrong[0]][:12]}): another model, another precision, or one that "
                "has been edited. Prepare them for this model, or pass check_model=False to use them all the same"
            )


@dataclass(frozen=True)
class NullSpaces(Spaces[NullSpace]):
    """layer → NullSpace, for one model, with its provenance as in `Spaces`."""

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        tokenizer: Any,
        layers: Sequence[int],
        *,
        threshold: float | None = None,
        energy: float | None = None,
        nullity: float | None = None,
        corpus: str | Path | None = None,
        stats_dir: str | Path | None = None,
        tokens: int | None = None,
        template: str | None = None,
        store: Store | None = None,
        progress: bool = False,
    ) -> NullSpaces:
        """All that a guard needs: the null spaces of `layers`, from the cache or computed once.

        One of `threshold` (the default: the paper's 2e-2), `energy` and `nullity` says what counts as null, as in
        `Criterion`. `corpus`, `stats_dir`, `tokens` and `store` say where the covariances come from, as in
        `Preparation`. `template`, such as "model.layers.{}.mlp.down_proj", names the out-projection where it cannot be
        found.

        Raises ModelStructureError, StatisticsError, CorpusError or NullSpaceError, each naming the remedy.
        """
        criterion = Criterion.given(PAPER, threshold=threshold, energy=energy, nullity=nullity)
        preparation = Preparation(corpus, stats_dir, tokens, criterion, store or Store(), progress)
        statistics = preparation.statistics(model, tokenizer, layers, template=template)
        return null_spaces_of(statistics, criterion, store=preparation.store)

    def attached(self, decoder: Decoder, layers: Sequence[int], name: str) -> NullSpaces:
        """The null spaces of `layers`, for the out-projections that `decoder` finds. Does not `check` the model.

        Raises NullSpaceError if a layer is missing or the null spaces belong to other modules; its message calls them
        `name`.
        """
        missing = sorted(set(layers) - set(self))
        if missing:
            raise NullSpaceError(f"{name} has no null space of layers {missing}, which are to be edited")
        template = self.provenance.get("template")
        if template != decoder.template:
            theirs, ours = (each.out_projection(layers[0]).name for each in (Decoder(decoder.model, template), decoder))
            if theirs != ours:
                raise NullSpaceError(f"{name} holds null spaces of {theirs}, but {ours} is to be edited")
        return NullSpaces({layer: self[layer] for layer in layers}, {**self.provenance, "template": decoder.template})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically, with the provenance as JSON in its metadata."""
        tensors = {}
        for layer, null_space in self.items():
            tensors[f"{layer}.factor"] = null_space.factor
            tensors[f"{layer}.eigenvalues"] = null_space.eigenvalues
        sides = {str(layer): null_space.side for layer, null_space in self.items()}
        write_tensors(
            Path(path), tensors, {"format": 1, "sides": sides, "provenance": dict(self.provenance)}, NullSpaceError
        )

    @classmethod
    def load(cls, path: str | Path) -> NullSpaces:
        """Read what `save` wrote, exactly. Raises NullSpaceError naming a file that is absent or damaged."""
        tensors, metadata = read_tensors(Path(path), NullSpaceError)
        if "sides" not in metadata:
            raise NullSpaceError(f"{path} holds no null spaces: it is another kind of file of ours")
        return cls(
            {
                int(layer): NullSpace(tensors[f"{layer}.factor"], side, tensors[f"{layer}.eigenvalues"])
                for layer, side in metadata["sides"].items()
            },
            metadata["provenance"],
        )


def null_spaces_of(statistics: Statistics, criterion: Criterion = PAPER, *, store: Store | None = None) -> NullSpaces:
    """The null spaces of covariances, from the store or computed and stored.

    Raises NullSpaceError if nothing or everything is null, or if a covariance is not finite.
    """
    store = store or Store()
    prints = statistics.provenance["fingerprints"]
    recipes = {
        layer: {
            "model": prints[str(layer)],
            "covariance": tensor_digest(covariance.upper.triu()),
            "count": covariance.count,
            "criterion": repr(criterion),
        }
        for layer, covariance in statistics.covariances.items()
    }

    def make(missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        made = {}
        for layer in missing:
            null_space = NullSpace.of(statistics.covariances[layer], criterion, name=f"layer {layer}")
            made[layer] = {f"{null_space.side}.factor": null_space.factor, "eigenvalues": null_space.eigenvalues}
        return made

    found = store.get_or_make("null-space", recipes, make)
    spaces = {}
    for layer, tensors in found.items():
        side = "null" if "null.factor" in tensors else "range"
        spaces[layer] = NullSpace(tensors[f"{side}.factor"], side, tensors["eigenvalues"])  # type: ignore[arg-type]
    return NullSpaces(spaces, {**statistics.provenance, "criterion": str(criterion)})
