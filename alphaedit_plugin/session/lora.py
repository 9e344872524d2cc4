"""An edit as a LoRA adapter for PEFT and everything that reads PEFT's files. Writing it does not need PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..editors.verdict import Reason, Verdict, Verdicts
from ..errors import ModelStructureError, PatchError
from ..model.decoder import Decoder, OutProjection
from ..model.origin import Origin
from ..storage.files import atomic, write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_CHOSEN = "chosen_rank"

TOLERANCE = 1e-6
"""The share of ‖ΔW‖ that an adapter may always leave out: float32 factors are hardly more precise."""

UNSEEN = 1e-3
"""The share of ‖ΔW‖ that it may leave out as noise without a closer look."""


class Adapter(dict[int, int]):
    """An edit in factors: layer → rank, for the layers that changed, and what the edit loses by it.

    `factors`: layer → (B d_out × r, A r × d_in), float32, B A ≈ ΔW. `kept`: layer → the share of ‖ΔW‖² that B A holds.
    `exact`: whether nothing but rounding noise is left out. `verdicts`, of `Session.to_lora`: what the model says of
    each fact with B A in place of ΔW.
    """

    def __init__(
        self, factors: Mapping[int, tuple[Tensor, Tensor]], kept: Mapping[int, float], *, exact: bool = True
    ) -> None:
        super().__init__({layer: len(a) for layer, (_, a) in factors.items()})
        self.factors, self.kept, self.exact = dict(factors), dict(kept), exact
        self.verdicts = Verdicts(())

    @property
    def rank(self) -> int:
        """The rank that the file has for every layer; where a layer's own is smaller, the rest is zeros."""
        return max(self.values())

    @classmethod
    def of(
        cls,
        model: nn.Module,
        base: Mapping[int, Tensor],
        *,
        template: str | None = None,
        energy: float | None = None,
        rank: int | None = None,
    ) -> Adapter:
        """The edit that turned `base` (layer → W before, d_out × d_in) into the weights of `model` as they are now.

        Each layer gets the smallest rank that leaves out only rounding noise; with `energy` in (0, 1] the smallest that
        holds this share of ‖ΔW‖²; with `rank` the best approximation of this rank. Raises PatchError for both, if one
        is no such number, if nothing changed, the base does not fit the model, or a weight is not finite.
        """
        if energy is not None and not (_is_number(energy, int | float) and 0 < energy <= 1):
            raise PatchError(f"energy is a share of ‖ΔW‖²: above 0 and at most 1, not {energy!r}")
        if rank is not None and not (_is_number(rank, int) and rank >= 1):
            raise PatchError(f"the rank of an adapter is a whole number from 1 up, not {rank!r}")
        if energy is not None and rank is not None:
            raise PatchError("energy and rank both say how thin an adapter is to be: give one of them")
        projections = _projections(model, base, template)[1]
        factors, kept = {}, {}
        for layer, projection in projections.items():
            found = _factors(projection, base[layer], energy, rank)
            if found is not None:
                pair, kept[layer] = found
                factors[layer] = pair if rank is None else _filled_up(*pair, rank)
        if not factors:
            raise PatchError(f"layers {sorted(projections)} are as in the base: there is no edit to write")
        return cls(factors, kept, exact=energy is None and rank is None)

    def judge(self, verdicts: Verdicts, whole: Verdicts | None = None) -> None:
        """Take down what the model says with the adapter merged, beside what it says with the whole edit."""
        found = list(verdicts.verdicts)
        for place, before in enumerate(whole.verdicts if whole is not None else ()):
            if before.written and not found[place].written:
                found[place] = replace(found[place], reason=Reason.RANK, detail="")
        self.verdicts = Verdicts(verdicts, found, verdicts.warnings)

    @property
    def lost(self) -> list[Verdict]:
        """On the facts that the model says with all of ΔW, and no longer with B A."""
        return [verdict for verdict in self.verdicts.verdicts if verdict.reason is Reason.RANK]

    def merge(self, projections: Mapping[int, OutProjection], base: Mapping[int, Tensor]) -> None:
        """Write `base` + B A into the weights, as PEFT does when it merges."""
        for layer, (b, a) in self.factors.items():
            weight = projections[layer].matrix
            weight.copy_(base[layer].to(weight.device, torch.float64) + (b.double() @ a.double()).to(weight.device))


def write_lora(
    folder: str | Path,
    model: nn.Module,
    base: Mapping[int, Tensor],
    *,
    template: str | None = None,
    energy: float | None = None,
    rank: int | None = None,
    base_model: str | None = None,
) -> Adapter:
    """Write what `Adapter.of` makes of the edit as a PEFT adapter.

    `base_model` is the name by which users of the adapter find the unedited model; by default the model's own name.
    Raises PatchError as `Adapter.of`, or if the folder cannot be written.
    """
    adapter = Adapter.of(model, base, template=template, energy=energy, rank=rank)
    save_lora(folder, adapter, model, template=template, base_model=base_model, chosen=rank)
    return adapter


def save_lora(
    folder: str | Path,
    adapter: Adapter,
    model: nn.Module,
    *,
    template: str | None = None,
    base_model: str | None = None,
    card: str = "",
    chosen: int | None = None,
) -> None:
    """Write an adapter of this model: weights, configuration, and `card` (README.md) if there is one.

    All layers have the rank of the largest, by zeros: servers allocate one rank, and not every reader knows PEFT's
    patterns of ranks. A rank that was `chosen` is kept in the file, for `chosen_rank`. Raises PatchError if the folder
    cannot be written.
    """
    folder = Path(folder)
    decoder, projections = _projections(model, adapter, template)
    tensors = {}
    for layer, (b, a) in adapter.factors.items():
        b, a = _filled_up(b, a, adapter.rank)
        tensors[f"base_model.model.{projections[layer].name}.lora_A.weight"] = a
        tensors[f"base_model.model.{projections[layer].name}.lora_B.weight"] = b
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or getattr(decoder.model.config, "_name_or_path", "") or None,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,  # a scaling of 1
        "target_modules": sorted(projections[layer].name for layer in adapter),
        "fan_in_fan_out": any(projections[layer].transposed for layer in adapter),
    }

    path = folder / CONFIG
    metadata = {"format": "pt"} | ({_CHOSEN: str(chosen)} if chosen is not None else {})
    with atomic(folder / WEIGHTS, PatchError) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        # A folder without configuration is no adapter. So the old configuration is removed before the weights are
        # replaced, and the new one is written after all else: an interrupted export never looks complete.
        path.unlink(missing_ok=True)
    if card:
        write_text(folder / "README.md", card, PatchError)
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n", PatchError)


def chosen_rank(folder: Path) -> int | None:
    """The rank that was chosen for the adapter in a folder; None if none was, or there is no adapter."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return int((file.metadata() or {})[_CHOSEN])
    except (OSError, SafetensorError, LookupError, ValueError):
        return None


def hub_base(folder: Path) -> str | None:
    """The base model of the adapter in a folder, if it is named as on the Hub."""
    try:
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"] or ""
    except (OSError, ValueError, LookupError):
        return None
    origin = Origin.named(name)
    return origin.name if origin.on_hub else None


def _projections(
    model: nn.Module, layers: Iterable[int], template: str | None
) -> tuple[Decoder, dict[int, OutProjection]]:
    try:
        decoder = Decoder(model, template)
        return decoder, decoder.out_projections(list(layers))
    except ModelStructureError as failure:
        raise PatchError(f"no adapter can be made: {failure}") from failure


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _factors(
    projection: OutProjection, base: Tensor, energy: float | None, rank: int | None
) -> tuple[tuple[Tensor, Tensor], float] | None:
    """(B d_out × r, A r × d_in), float32, B A ≈ ΔW, equally large, and the share of ‖ΔW‖² in it; None if ΔW = 0."""
    edited = projection.matrix
    if (base.shape, base.dtype) != (edited.shape, edited.dtype):
        raise PatchError(
            f"the base of {projection.name} is {tuple(base.shape)} in {base.dtype}, the weight "
            f"{tuple(edited.shape)} in {edited.dtype}"
        )
    after = edited.double()
    delta = after - base.to(after)
    if not torch.isfinite(delta).all():
        raise PatchError(f"{projection.name}.weight is not finite, before the edit or after: no adapter was written")
    if not delta.any():
        return None
    u, singular, v = torch.linalg.svd(delta, full_matrices=False)
    if rank is not None:
        rank = min(rank, len(singular))
    elif energy is None:
        rank = _exact_rank(singular, torch.finfo(edited.dtype).eps * float(after.norm()), after.shape)
    else:
        rank = _rank(singular, math.sqrt(max(1 - energy, TOLERANCE**2)) * float(singular.norm()))
    root = singular[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    kept = float((singular[:rank] ** 2).sum() / (singular**2).sum())
    return (b.float().cpu().contiguous(), a.float().cpu().contiguous()), kept


def _filled_up(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product, of factors with as many columns and rows as the rank says."""
    room = rank - len(a)
    return functional.pad(b, (0, room)), functional.pad(a, (0, 0, 0, room))


def _rank(singular: Tensor, allowed: float) -> int:
    """The smallest rank, at least 1, that leaves out a Frobenius norm of at most `allowed`."""
    tails = (singular**2).flip(0).cumsum(0).flip(0).sqrt()
    return max(1, int((tails > allowed).sum()))


def _exact_rank(singular: Tensor, rounding: float, shape: torch.Size) -> int:
    """The rank of the edit without the noise that rounding W added to it; `rounding` is ε‖W‖.

    Rounding changes every entry independently; each write adds noise with a norm of about a fifth of `rounding`. The
    noise has full rank, so an adapter that reproduced it would be a dense matrix. In float32 the noise is far below any
    edit: four times `rounding`, the noise of hundreds of edits, can be left out without harm. In 16 bits it can be as
    large as a small edit, but it is spread over all dimensions and the edit over few, so no singular value of the noise
    exceeds its share. Half of `rounding` allows for the noise of a handful of edits; after more edits the rank grows,
    and no part of an edit is lost.
    """
    norm = float(singular.norm())
    rank = _rank(singular, max(TOLERANCE * norm, min(4 * rounding, UNSEEN * norm)))
    noise = rounding / 2 * sum(1 / math.sqrt(dimension) for dimension in shape)
    return max(1, min(rank, int((singular > noise).sum())))
