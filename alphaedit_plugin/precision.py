"""Float32 matrix products in bfloat16, where the hardware has them: faster, and enough for what is not measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Inside the block float32 matrix products may run in bfloat16; torch's own setting is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
