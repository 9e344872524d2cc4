"""Whether a weight can be edited: it holds its own numbers, and what is written to it is what the next pass uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import ModelStructureError


def check_kept(module: nn.Module, name: str) -> None:
    """Raises ModelStructureError if `module.weight` is computed anew in every pass, so that a write to it is lost."""
    if "weight" in module._parameters or "weight" in module._buffers:
        return
    sources = sorted(key for key in module._parameters if key.startswith("weight"))
    remedy = f"undo that first (the hook that makes it from {', '.join(sources)}: remove_weight_norm, prune.remove, …)"
    if is_parametrized(module, "weight"):
        kind = type(module.parametrizations.weight[0]).__name__.lstrip("_")  # type: ignore[union-attr,index]
        remedy = f"undo that first (torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'); here: {kind})"
    raise ModelStructureError(
        f"{name}.weight is no parameter but computed in every forward pass, so an edit would be lost: {remedy}"
    )


def check_numbers(weight: Tensor, name: str) -> None:
    """Raises ModelStructureError if the tensor's entries are not the numbers that the layer multiplies with.

    Codes come as integers, as floats of one byte, or as a tensor that answers for another one that it holds.
    """
    kind = type(weight)
    if hasattr(weight, "full_tensor"):
        raise ModelStructureError(
            f"{name}.weight is distributed over devices ({kind.__name__}) and cannot be edited: load the whole model "
            "in one process, or gather it (full_tensor) first"
        )
    stands_for_another = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if stands_for_another or not weight.is_floating_point() or weight.itemsize < 2:
        codes = kind.__name__ if stands_for_another else weight.dtype
        raise ModelStructureError(
            f"{name}.weight is quantised ({codes}) and cannot be edited: load the model in float32, bfloat16 or float16"
        )


def dimensions(module: Any, transposed: bool) -> tuple[int, int]:
    """(d_out, d_in) of a matrix; of a quantised one too, whose weight has another shape."""
    if hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    rows, columns = module.weight.shape
    return (columns, rows) if transposed else (rows, columns)
