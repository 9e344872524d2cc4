"""RECT (Gu et al. 2024, "Model Editing Harms General Abilities"): write only the relatively largest entries."""

from __future__ import annotations

import torch
from torch import Tensor

PAPER_KEEP = 0.4


def sparsified(delta: Tensor, weight: Tensor, keep: float = PAPER_KEEP) -> Tensor:
    """Δ with all but its `keep` share of entries of largest |Δ/W| set to zero; both d_out × d_in."""
    ratio = (delta / weight.to(delta.dtype)).abs().nan_to_num(nan=0.0, posinf=torch.inf)  # 0/0: nothing to write
    dropped = delta.numel() - round(keep * delta.numel())
    if dropped <= 0:
        return delta
    chosen = ratio.flatten().topk(dropped, largest=False, sorted=False).indices
    result = delta.clone()
    result.view(-1)[chosen] = 0
    return result
