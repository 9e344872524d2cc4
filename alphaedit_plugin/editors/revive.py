"""REVIVE (Zhang et al. 2026, "… Mitigation of Sequential Knowledge Editing Collapse"): leave W's leading directions."""

from __future__ import annotations

from torch import Tensor

from ..errors import HyperparameterError
from .registry import modifier
from .singular import leading, without
from .update import Site, Update

PAPER_SHARE = 0.1


def protected(weight: Tensor, tau: float = PAPER_SHARE) -> tuple[Tensor, Tensor]:
    """U_k, d_out × k, and V_k, d_in × k: with the smallest k ≥ 1 for which σ₁ + … + σ_k ≥ τ · Σσ; float64.

    Raises HyperparameterError for a `tau` that is no share.
    """
    if not 0 < tau <= 1:
        raise HyperparameterError(f"revive: tau must be a share of Σσ, above 0 and up to 1, not {tau:g}")

    def enough(sigma: Tensor) -> int:
        return min(len(sigma), 1 + int((sigma.cumsum(0) < tau * sigma.sum()).sum()))

    return leading(weight, enough)


@modifier(
    "revive",
    summary="takes from Δ what lies in the leading singular directions of W, left or right (`tau` of Σσ)",
    source="Zhang et al. 2026, arXiv 2601.11042",
    alone="memit",
    in_factors=True,
    spares=protected,
)
def revive(update: Update, site: Site, *, tau: float = PAPER_SHARE) -> Update:
    """Δ ← (I − U_kU_kᵀ) Δ (I − V_kV_kᵀ), U_k and V_k of W before the first edit.

    So of Δ's coefficients uᵢᵀΔvⱼ all with i ≤ k or j ≤ k are zero. With P, which comes last, Δ need not be exactly
    outside of V_k any more. (The paper filters what AlphaEdit has projected, and leaves the null space instead. Its
    code is said to count one direction less than its text, none at all where σ₁ ≥ τ Σσ.)
    """
    u, v = site.of_base(protected, tau)
    return Update(update.layer, without(update.left, u), without(update.right, v))
