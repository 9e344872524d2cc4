"""NAS, norm-anchored targets (Liu et al. 2026, "Norm Anchors Make Model Edits Last", arXiv 2602.02543).

A setting of the layered editors, `nas`. Over a sequence the edited weights grow, targets that are bounded relative to
what those weights put out grow with them, and so on. NAS takes the length out of the loop:

    v* = v0 + δ,    v* ← v* · r / ‖v*‖,    z* = z − v0 + v*

v0 is what the out-projection puts out at the subject's last token now, and r the mean ‖v*‖ on the unedited model.

r is of the facts in `examples/facts.json`, as the authors' code (github.com/SasyaTitech/NAS, `util/vstar_stats.py`)
takes it from CounterFact whatever is edited, without the largest 5 %. So it depends on nothing but the base model and
the settings: it is found again after a resume, and an undo cannot change it. Of ours are: 20 facts instead of 1,000
(the mean is then known to a few per cent); all contexts and this editor's settings for them instead of the bare prompt
and MEMIT's. The code also drops δ where ‖v*‖ > 2r, so that the fact is silently not written; we scale there too.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from ..storage.shipped import shipped
from .requests import Request
from .targets import Targets

FACTS = 20
_LARGEST = 0.05  # of the lengths are outliers


def anchored(targets: Targets, value: Tensor, norm: float) -> Targets:
    """Targets whose v* = v0 + δ has this norm, for v0 = `value`, n × d."""
    moved = value + targets.delta.to(value)
    scaled = moved * (norm / moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny))
    return replace(targets, delta=(scaled - value).to(targets.delta))


def trimmed_mean(norms: Tensor) -> float:
    """The mean of norms, n, without the largest 5 % of them, rounded down."""
    return float(norms.sort().values[: len(norms) - int(_LARGEST * len(norms))].mean())


def reference_facts() -> list[Request]:
    """The facts that r is of."""
    records = json.loads(shipped("examples/facts.json").read_text("utf-8"))[:FACTS]
    return [Request.parse(record, f"fact {number}") for number, record in enumerate(records)]
