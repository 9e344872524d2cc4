"""Lower precision where no measurement depends on it, float64 where conditioning requires it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..restoring import restoring


@restoring
def reduced_precision() -> Iterator[None]:
    """Inside the block float32 matrix products may run in bfloat16; torch's own setting is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_bfloat16(model: Any) -> Any:
    """A copy of a float32 model with bfloat16 weights and unchanged buffers (rotary frequencies).

    Returns the model itself if a copy would be useless: it is in 16 bits already, the processor has no native bfloat16,
    or accelerate's hooks tie its modules to the place of their weights.
    """
    weights = list(model.parameters())
    native = all(w.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported() for w in weights)
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    if model.dtype != torch.float32 or hooked or not native:
        return model
    memo = {id(w): nn.Parameter(w.detach().to(torch.bfloat16), requires_grad=False) for w in weights}
    return copy.deepcopy(model, memo)


def float64_device(device: torch.device | str) -> torch.device:
    """The device itself, or the CPU where the device has no float64 (MPS)."""
    try:
        return torch.empty(0, dtype=torch.float64, device=device).device
    except TypeError:
        return torch.device("cpu")


def compact(tensor: Tensor) -> Tensor:
    """A row-major copy: in another memory layout, the same numbers may give a product with other last bits.

    (`contiguous` leaves a transposed single column as it is.)
    """
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
