"""An edit in the GGUF file that its model came from, for llama.cpp and Ollama."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..editors.requests import Request
from ..errors import ModelStructureError, StoreError
from ..model import ggml
from ..model.decoder import OutProjection
from ..model.snapshot import copy_into, put_back
from ..storage.gguf_file import GgufFile, Stored

FINER = ("Q8_0", "F16", "F32")
"""What a tensor is written as, coarsest first, if its own type cannot be written or would lose a fact."""


@dataclass(frozen=True)
class Exported:
    """What became of the edit in the file, by tensor: `kinds`, its type; `errors`, ‖written − W‖ / ‖W‖.

    `lost` are the facts that the model says in memory, but not with the weights as they were written.
    """

    kinds: dict[str, str]
    errors: dict[str, float]
    lost: tuple[Request, ...]


def write_gguf(
    path: Path,
    source: GgufFile,
    projections: Mapping[int, OutProjection],
    base: Mapping[int, Tensor],
    said: Callable[[], Sequence[Request]],
    kind: str | None = None,
) -> Exported:
    """Write `source` to `path` with the weights of the projections that are not as in `base`, layer → W before.

    Each is written as `kind`. By default it keeps its own type, unless a fact that is `said()` by the model as it is
    would not be said any more: then all become at least as fine as the first of `FINER` that loses none, or as the
    last. The model stays as it is.

    Raises ModelStructureError if the file does not hold the base, or a weight cannot be written as `kind`; StoreError
    if the file cannot be written.
    """
    stored = {layer: _stored(source, projection, base[layer]) for layer, projection in projections.items()}
    edited = {layer: each for layer, each in projections.items() if not torch.equal(each.matrix, base[layer])}
    if not edited:
        source.write(path, {}, StoreError)
        return Exported({}, {}, ())
    weights = {layer: each.matrix.to("cpu", torch.float32).contiguous() for layer, each in edited.items()}
    own = {layer: ggml.kind_of(stored[layer].kind) for layer in edited}
    held = said()
    for plan in _plans(own, weights) if kind is None else [_forced(kind, weights, stored)]:
        content = {layer: ggml.written(weights[layer], plan[layer]) for layer in edited}
        read = {layer: ggml.read(content[layer], plan[layer], stored[layer].shape) for layer in edited}
        with put_back(edited):
            copy_into(read, edited)
            now = set(said())
        lost = tuple(request for request in held if request not in now)
        if not lost:
            break
    replaced = {stored[layer].name: (ggml.number_of(plan[layer]), content[layer]) for layer in edited}
    source.write(path, replaced, StoreError)
    return Exported(
        {stored[layer].name: plan[layer] for layer in edited},
        {stored[layer].name: float((read[layer] - w).norm() / w.norm()) for layer, w in weights.items()},
        lost,
    )


def _stored(source: GgufFile, projection: OutProjection, base: Tensor) -> Stored:
    """The tensor of an out-projection. Raises ModelStructureError unless it reads as the base, number by number."""
    name = ggml.tensor_name(source, projection.name)
    if name is None:
        raise ModelStructureError(f"{source.path} holds no tensor that is known to be {projection.name}")
    tensor = source.tensors[name]
    if tensor.shape == tuple(base.shape):
        read = ggml.read(source.bytes_of(tensor), ggml.kind_of(tensor.kind), tensor.shape)
        if torch.equal(read.to(base.dtype), base.cpu()):
            return tensor
    raise ModelStructureError(
        f"{name} in {source.path} is not {projection.name} as it was before the edit: the file was changed since, or "
        "the model comes from another. Begin anew from this file"
    )


def _plans(own: Mapping[int, str], weights: Mapping[int, Tensor]) -> Iterator[dict[int, str]]:
    """Types by layer: the tensors' own as far as they can be written, then plans each finer than the one before."""
    last = None
    for floor in (0.0, *map(ggml.bits, FINER)):
        plan = {layer: _at_least(floor, own[layer], weight) for layer, weight in weights.items()}
        if plan != last:
            yield plan
        last = plan


def _at_least(floor: float, own: str, weight: Tensor) -> str:
    """The tensor's own type if it has so many bits a number and can be written; otherwise the first finer one."""
    if ggml.bits(own) >= floor and ggml.holds(own, weight):
        return own
    return next(
        (kind for kind in FINER if ggml.bits(kind) >= max(floor, ggml.bits(own)) and ggml.holds(kind, weight)),
        FINER[-1],
    )


def _forced(kind: str, weights: Mapping[int, Tensor], stored: Mapping[int, Stored]) -> dict[int, str]:
    """The same type for all. Raises ModelStructureError, naming the tensor, if one cannot be written so."""
    ggml.check_kind(kind)
    for layer, weight in weights.items():
        if not ggml.holds(kind, weight):
            raise ModelStructureError(
                f"{stored[layer].name} cannot be written as {kind}: its rows are {weight.shape[-1]} numbers long, up "
                f"to {float(weight.abs().max()):.3g} in size. Choose F16 or F32"
            )
    return dict.fromkeys(weights, kind)
