"""Error compensation (Wang et al. 2026, "The Labyrinth and the Thread"): what was not written is asked for again."""

from __future__ import annotations

from torch import Tensor

from .registry import modifier
from .update import Site


@modifier(
    "aligned",
    summary="carries what other modifiers and P took from Δ over to the next batch",
    source="Wang et al. 2026, arXiv 2605.26670",
    acts="between",
    alone="memit",
)
def aligned(owed: Tensor, site: Site) -> Tensor:
    """Carry all of it over.

    With M for what modifiers and projection do, batch t solves (R Kᵀ − E) A⁻¹, A = λC + KpKpᵀ + KKᵀ, and leaves E ←
    (M(Δ) − Δ)A. So the sum of all that was asked for, D = Σ Δ, stays what one solve of all facts gives, whatever M is.
    (E is replaced by each batch, not added to: −E in the next solve hands it on.)

    E never has to be formed. With what is owed, O = −E A⁻¹, d_out × d_in, for the A of the batch that left it,

        (R Kᵀ − E) A'⁻¹ = (R − O K) Kᵀ A'⁻¹ + O        with A' = A + KKᵀ

    which is the solver's own update, for the residual that is left when O is written too. So no C is needed, and any
    solver that keeps its earlier keys can carry over: memit-seq, alphaedit. With memit, which forgets them, A' is not
    that sum: there it is plain error feedback. What a weight's 16 bits rounded away is owed too.

    Nothing bounds what is owed. Where updates are as large as W itself it can grow, most of all under RECT with P:
    what P never lets through is owed for good, and RECT's choice of it is not. Look at the drift.

    (The authors' code solves all layers before it modifies any, adds I to A, and measures keys again at the end; here
    the next layer sees what was written, as with every modifier.)
    """
    del site
    return owed
