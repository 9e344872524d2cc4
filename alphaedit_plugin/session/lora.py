"""An edit as a LoRA adapter for PEFT and everything that reads PEFT's files. Writing it does not need PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ModelStructureError, PatchError
from ..model.decoder import Decoder, OutProjection
from ..storage.files import atomic, write_text

TOLERANCE = 1e-6
"""The share of ‖ΔW‖ that an adapter may always leave out: float32 factors are hardly more precise."""

UNSEEN = 1e-3
"""The share of ‖ΔW‖ that it may leave out as noise without a closer look."""


def write_lora(
    folder: str | Path,
    model: nn.Module,
    base: Mapping[int, Tensor],
    *,
    template: str | None = None,
    energy: float | None = None,
    base_model: str | None = None,
) -> dict[int, int]:
    """Write the edit that turned `base` (layer → W before, d_out × d_in) into the weights of `model` as they are now.

    Each layer gets the smallest rank that leaves out only rounding noise or, with `energy` in (0, 1], the smallest rank
    that holds this share of ‖ΔW‖². Returns layer → rank; layers that did not change are not in it. `base_model` is the
    name by which users of the adapter find the unedited model; by default the model's own name.

    Raises PatchError if nothing changed, the base does not fit the model, a weight is not finite, or the folder cannot
    be written.
    """
    folder = Path(folder)
    if energy is not None and (not isinstance(energy, int | float) or isinstance(energy, bool) or not 0 < energy <= 1):
        raise PatchError(f"energy is a share of ‖ΔW‖²: above 0 and at most 1, not {energy!r}")
    try:
        decoder = Decoder(model, template)
        projections = decoder.out_projections(list(base))
    except ModelStructureError as failure:
        raise PatchError(f"no adapter can be made: {failure}") from failure
    factors = {layer: _factors(projection, base[layer], energy) for layer, projection in projections.items()}
    changed = {layer: pair for layer, pair in factors.items() if pair is not None}
    if not changed:
        raise PatchError(f"layers {sorted(projections)} are as in the base: there is no edit to write")

    ranks = {layer: len(a) for layer, (_, a) in changed.items()}
    tensors = {}
    for layer, (b, a) in changed.items():
        tensors[f"base_model.model.{projections[layer].name}.lora_A.weight"] = a
        tensors[f"base_model.model.{projections[layer].name}.lora_B.weight"] = b
    by_name = {projections[layer].name: rank for layer, rank in ranks.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or getattr(decoder.model.config, "_name_or_path", "") or None,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        # Here too r = alpha, so the scaling is 1 even for a reader that does not know the patterns.
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": by_name,
        "alpha_pattern": by_name,
        "target_modules": sorted(by_name),
        "fan_in_fan_out": any(projections[layer].transposed for layer in ranks),
    }

    path = folder / "adapter_config.json"
    with atomic(folder / "adapter_model.safetensors", PatchError) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        # A folder without configuration is no adapter. So the old configuration is removed before the weights are
        # replaced, and the new one is written after them: an interrupted export never looks complete.
        path.unlink(missing_ok=True)
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n", PatchError)
    return ranks


def _factors(projection: OutProjection, base: Tensor, energy: float | None) -> tuple[Tensor, Tensor] | None:
    """(B d_out × r, A r × d_in), float32, B A ≈ ΔW, equally large; None if ΔW = 0."""
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
    if energy is None:
        rank = _exact_rank(singular, torch.finfo(edited.dtype).eps * float(after.norm()), after.shape)
    else:
        rank = _rank(singular, math.sqrt(max(1 - energy, TOLERANCE**2)) * float(singular.norm()))
    root = singular[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    return b.float().cpu().contiguous(), a.float().cpu().contiguous()


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
