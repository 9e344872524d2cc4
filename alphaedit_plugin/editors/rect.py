"""RECT (Gu et al. 2024, "Model Editing Harms General Abilities"): write only the relatively largest entries."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HyperparameterError
from .registry import modifier
from .update import Site, Update

PAPER_KEEP = 0.4


def sparsified(delta: Tensor, weight: Tensor, keep: float = PAPER_KEEP) -> Tensor:
    """Δ with only the share `keep` of its entries, those with the largest |Δ/W|; all others are zero. d_out × d_in."""
    ratio = (delta / weight.to(delta.dtype)).abs().nan_to_num(nan=0.0, posinf=torch.inf)  # 0/0: nothing to write
    dropped = delta.numel() - round(keep * delta.numel())
    if dropped <= 0:
        return delta
    chosen = ratio.flatten().topk(dropped, largest=False, sorted=False).indices
    result = delta.clone()
    result.view(-1)[chosen] = 0
    return result


@modifier(
    "rect",
    summary="writes only the `keep` share of entries with the largest |Δ/W|",
    source="Gu et al. 2024, arXiv 2401.04700",
    folder="RECT",
    alone="memit",
)
def rect(update: Update, site: Site, *, keep: float = PAPER_KEEP) -> Tensor:
    """Relative to the current W. Raises HyperparameterError for a `keep` that is no share."""
    if not 0 <= keep <= 1:
        raise HyperparameterError(f"rect: keep must be a share from 0 to 1, not {keep:g}")
    return sparsified(update.dense(), site.weight.to(update.left.device), keep)
