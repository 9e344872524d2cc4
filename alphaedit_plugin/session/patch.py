"""An edit as a small file, applied and reverted bit for bit.

The file holds Δ of each layer as two thin factors, and corrections that turn them into the exact bits of the weights
before and after the edit. So the file includes all rounding that happened while editing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelStructureError, PatchError
from ..model.decoder import Decoder, OutProjection
from ..storage.shape import check_shape, digest
from ..storage.tensors import read_tensors, tensor_digest, write_tensors

Factors = tuple[Tensor, Tensor]
"""(left d_out × r, right d_in × r): Δ ≈ left rightᵀ."""

FORMAT = 1

State = Literal["base", "edited"]

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}

_SHAPE = {
    "format": int,
    "patch": {int: {"module": str, "shape": [int], "dtype": str, "base": digest, "edited": digest}},
    "template": (str, None),
    "provenance": {},
}


def write_patch(
    path: str | Path,
    model: nn.Module,
    base: Mapping[int, Tensor],
    factors: Mapping[int, Factors | None],
    provenance: Mapping[str, Any],
    *,
    template: str | None = None,
) -> None:
    """Write the edit that turned `base` (layer → W before, d_out × d_in) into the weights of `model` as they are now.

    `factors` make the file small, not exact: they may be approximate, or None (or absent) if no low-rank form is known.
    They are left out if the file is smaller without them. `provenance` is in JSON's types.

    Raises PatchError if base or factors do not fit the model or are not finite, or if the file cannot be written.
    """
    path = Path(path)
    projections = _projections(model, base, template, path)
    if strangers := sorted(set(factors) - set(base)):
        raise PatchError(f"there are factors, but no base weights, of layers {strangers}: give both")
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for layer, projection in projections.items():
        before, after = _copy(base[layer]), _copy(projection.matrix)
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise PatchError(f"the base of {projection.name} is {_kind(before)}, the weight {_kind(after)}")
        if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
            raise PatchError(f"{projection.name}.weight is not finite, before the edit or after: no patch was written")
        parts = _encode(before, after, _stored(None, projection, before))
        if (given := factors.get(layer)) is not None:
            parts = min(parts, _encode(before, after, _stored(given, projection, before)), key=_size)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        layers[str(layer)] = {
            "module": projection.name,
            "shape": list(after.shape),
            "dtype": str(after.dtype),
            "base": tensor_digest(before),
            "edited": tensor_digest(after),
        }
    metadata = {"format": FORMAT, "patch": layers, "template": template, "provenance": dict(provenance)}
    write_tensors(path, tensors, metadata, PatchError)


def apply_patch(model: nn.Module, path: str | Path, *, check_model: bool = True) -> dict[str, Any]:
    """Turn the base weights into the edited ones, bit for bit; returns the patch's provenance.

    `check_model=False` transfers the edit to weights other than those it was made on (another fine-tune, another
    precision): there Δ is added and rounded once, and the result is not bit-exact.

    Raises PatchError, before anything is written, unless every weight equals the one that the patch was made on.
    """
    return _move(model, Path(path), "base", "edited", check_model)


def revert_patch(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Turn the edited weights back into the base ones, bit for bit; returns the patch's provenance.

    Raises PatchError, before anything is written, unless every weight is as the patch left it.
    """
    return _move(model, Path(path), "edited", "base", True)


def _move(model: nn.Module, path: Path, source: State, target: State, check_model: bool) -> dict[str, Any]:
    tensors, metadata = read_tensors(path, PatchError)
    if "patch" not in metadata:
        raise PatchError(f"{path} holds no patch: it is another kind of file of ours")
    if metadata.get("format") != FORMAT:
        raise PatchError(f"{path} is of format {metadata.get('format')}, not {FORMAT}: use the version that wrote it")
    check_shape(metadata, _SHAPE, str(path), PatchError)
    about = {int(layer): entry for layer, entry in metadata["patch"].items()}
    projections = _projections(model, about, metadata["template"], path)

    before: dict[int, Tensor] = {}
    for layer, projection in projections.items():
        weight = before[layer] = _copy(projection.matrix)
        _check_place(path, projection, weight, about[layer], check_model)
        if check_model:
            _check_digest(path, projection, tensor_digest(weight), about[layer], source, target)

    after: dict[int, Tensor] = {}
    for layer, projection in projections.items():
        parts = _parts(path, tensors, layer, before[layer])
        if not check_model:
            after[layer] = _transferred(path, projection, before[layer], parts, about[layer])
            continue
        try:
            after[layer] = (_forward if target == "edited" else _backward)(before[layer], parts)
        except (zlib.error, ValueError) as failure:
            raise PatchError(
                f"{path} is damaged: the correction of layer {layer} does not unpack ({failure}). Nothing was changed"
            ) from failure
        if tensor_digest(after[layer]) != about[layer][target]:
            raise PatchError(
                f"{path} does not lead to the {target} {projection.name}.weight: it was not made by this package, or "
                "float64 arithmetic is not exact here (torch.set_flush_denormal?). Nothing was changed"
            )
    _write(projections, before, after)
    return metadata["provenance"]


def _write(projections: Mapping[int, OutProjection], before: Mapping[int, Tensor], after: Mapping[int, Tensor]) -> None:
    """Write all of `after`; if anything interrupts this, restore all of `before`."""
    try:
        for layer, projection in projections.items():
            projection.matrix.copy_(after[layer])
            if not torch.equal(_copy(projection.matrix), after[layer]):
                raise PatchError(f"what was written to {projection.name}.weight is not there: nothing was changed")
    except BaseException:
        for layer, projection in projections.items():
            projection.matrix.copy_(before[layer])
        raise


# ------------------------------------------------------------------------------------------------------- checks


def _projections(model: nn.Module, layers: Iterable[int], template: str | None, path: Path) -> dict[int, OutProjection]:
    try:
        return Decoder(model, template).out_projections(list(layers))
    except ModelStructureError as failure:
        raise PatchError(f"{path} does not fit this model: {failure}") from failure


def _parts(path: Path, tensors: Mapping[str, Tensor], layer: int, weight: Tensor) -> dict[str, Tensor]:
    """The tensors of one layer. Raises PatchError if one is missing or does not fit the weight."""
    parts = {name: tensors.get(f"{layer}.{name}") for name in ("left", "right", "forward", "backward")}
    found = {name: part for name, part in parts.items() if part is not None}
    left, right = parts["left"], parts["right"]
    fits = (
        left is not None
        and right is not None
        and len(found) == len(parts)
        and left.dim() == right.dim() == 2
        and (len(left), len(right)) == tuple(weight.shape)
        and left.shape[1] == right.shape[1]
        and left.dtype == right.dtype
        and left.dtype.is_floating_point
        and all(found[name].dtype == torch.uint8 and found[name].dim() == 1 for name in ("forward", "backward"))
    )
    if not fits:
        raise PatchError(f"{path} is damaged: the tensors of layer {layer} are missing or do not fit its weight")
    return found


def _check_place(
    path: Path, projection: OutProjection, weight: Tensor, entry: Mapping[str, Any], check_model: bool
) -> None:
    if projection.name != entry["module"]:
        raise PatchError(f"{path} edits {entry['module']}; this model has {projection.name} there: it is another model")
    if list(weight.shape) != entry["shape"]:
        raise PatchError(
            f"{path} edits {projection.name} of shape {tuple(entry['shape'])}; here it is {_kind(weight)}: "
            "it is another model"
        )
    if check_model and str(weight.dtype) != entry["dtype"]:
        raise PatchError(
            f"{path} was made for {projection.name} in {entry['dtype']}; here it is {_kind(weight)}. Load the model "
            "in that precision, or apply with check_model=False, which is not exact"
        )


def _check_digest(
    path: Path, projection: OutProjection, digest: str, entry: Mapping[str, str], source: State, target: State
) -> None:
    if digest == entry[source]:
        return
    if digest == entry[target]:
        state = "applied to this model already" if target == "edited" else "not applied to this model"
        raise PatchError(f"{path} is {state}: {projection.name}.weight is the {target} one. Nothing was changed")
    remedy = (
        "Load the model that it was made on, and apply patches in the order in which they were made; or apply with "
        "check_model=False, which is not exact"
        if target == "edited"
        else "Revert later edits first, latest first"
    )
    raise PatchError(
        f"{path} expects another {projection.name}.weight than the one here: this is another model, or it has been "
        f"edited otherwise. {remedy}"
    )


def _kind(weight: Tensor) -> str:
    return f"{tuple(weight.shape)} in {weight.dtype}"


def _copy(weight: Tensor) -> Tensor:
    """A contiguous copy on the CPU, never a view of the model's own memory."""
    return weight.detach().cpu().clone(memory_format=torch.contiguous_format)


# --------------------------------------------------------------------------------------------------------- code
#
# Forward:   edited = round(base + Δ) ⊕ forward                      ⊕ on the bit patterns
# Backward:  base   = round((edited ⊕ forward) − Δ) ⊕ backward
#
# edited ⊕ forward is base + Δ rounded only once, whatever rounding happened while editing. So `backward` need not
# repeat that, and for the usual small Δ it is nearly all zeros.


def _stored(given: Factors | None, projection: OutProjection, weight: Tensor) -> Factors:
    """The factors as the file holds them: float32, or float64 where the weight is; rank 0 for None."""
    d_out, d_in = weight.shape
    work = torch.promote_types(weight.dtype, torch.float32)
    if given is None:
        return torch.zeros(d_out, 0, dtype=work), torch.zeros(d_in, 0, dtype=work)
    left, right = (factor.detach().to("cpu", work) for factor in given)
    if left.dim() != 2 or right.dim() != 2 or left.shape != (d_out, right.shape[1]) or len(right) != d_in:
        raise PatchError(
            f"the factors of {projection.name} are {tuple(left.shape)} and {tuple(right.shape)}: they must be "
            f"({d_out}, r) and ({d_in}, r)"
        )
    if not ((left.abs() < 1e100).all() and (right.abs() < 1e100).all()):
        raise PatchError(f"the factors of {projection.name} are not finite in {work}, or beyond 1e100")
    return left, right


def _encode(before: Tensor, after: Tensor, factors: Factors) -> dict[str, Tensor]:
    left, right = factors
    delta = _product(left, right)
    predicted = _plus(before, delta)
    return {
        "left": left,
        "right": right,
        "forward": _pack(_bits(after) ^ _bits(predicted)),
        "backward": _pack(_bits(before) ^ _bits(_plus(predicted, -delta))),
    }


def _forward(base: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    predicted = _plus(base, _product(parts["left"], parts["right"]))
    return (_bits(predicted) ^ _unpack(parts["forward"], base)).view(base.dtype)


def _backward(edited: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    predicted = (_bits(edited) ^ _unpack(parts["forward"], edited)).view(edited.dtype)
    again = _plus(predicted, -_product(parts["left"], parts["right"]))
    return (_bits(again) ^ _unpack(parts["backward"], edited)).view(edited.dtype)


def _transferred(
    path: Path, projection: OutProjection, weight: Tensor, parts: Mapping[str, Tensor], entry: Mapping[str, str]
) -> Tensor:
    if parts["left"].shape[1] == 0 and entry["base"] != entry["edited"]:
        raise PatchError(
            f"{path} holds the edit of {projection.name} as bits, not as factors: it can be applied only to the very "
            "model that it was made on"
        )
    result = _plus(weight, _product(parts["left"], parts["right"]))
    if not torch.isfinite(result).all():
        raise PatchError(f"{path} would leave {projection.name}.weight not finite; nothing was changed")
    return result


def _plus(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.double() + delta).to(weight.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left rightᵀ in float64, d_out × d_in: the same bits on every machine, with any BLAS and any number of threads.

    Each factor is cut into two slices with so few bits that every sum of products of slices is a whole number of at
    most 53 bits, and so is exact in any order of summation. The corrections hold the rest, 2⁻⁴⁰ of the whole.
    """
    bits = (53 - max(0, left.shape[1] - 1).bit_length()) // 2
    (left_high, left_low), (right_high, right_low) = _slices(left, bits), _slices(right, bits)
    cross = torch.cat([left_high, left_low], 1) @ torch.cat([right_low, right_high], 1).T
    return left_high @ right_high.T + cross


def _slices(factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(high, low), float64, high + low ≈ factor: whole multiples, of at most `bits` bits, of one power of two each."""
    exact = factor.double()
    largest = max(1e-200, float(exact.abs().max()) if exact.numel() else 0.0)  # a step must not underflow to 0
    step = math.ldexp(1.0, math.frexp(largest)[1] - bits)
    high = (exact / step).round() * step
    low_step = math.ldexp(step, -bits)
    return high, ((exact - high) / low_step).round() * low_step


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGER[tensor.itemsize])


def _pack(correction: Tensor) -> Tensor:
    """Compress, grouping bytes by their place in a number: the high ones are mostly zero. All zeros pack to nothing."""
    if not correction.any():
        return torch.zeros(0, dtype=torch.uint8)
    planes = correction.view(-1).view(torch.uint8).view(-1, correction.itemsize).T.contiguous()
    return torch.frombuffer(bytearray(zlib.compress(planes.numpy().tobytes())), dtype=torch.uint8)


def _unpack(packed: Tensor, like: Tensor) -> Tensor:
    """The correction, with shape and size of the bits of `like`; it is never unpacked further than that.

    Raises zlib.error or ValueError if it is something else.
    """
    if not packed.numel():
        return torch.zeros_like(_bits(like))
    size = like.numel() * like.itemsize
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(packed.numpy().tobytes(), size + 1)
    if len(content) != size or not unpacking.eof:
        raise ValueError(f"it is not of {size} bytes")
    planes = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    numbers = planes.view(like.itemsize, -1).T.contiguous().view(-1)
    return numbers.view(_INTEGER[like.itemsize]).view(like.shape)


def _size(parts: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in parts.values())
