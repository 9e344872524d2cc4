"""A sequence of edits by the textbook (`oracle.py`), with the settings of `editing.py`, and what agrees with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from support import oracle
from support.editing import CONTEXTS, COVARIANCES, HYPERPARAMETERS, LAYERS

TARGETS = {
    "steps": HYPERPARAMETERS.v_num_grad_steps,
    "lr": HYPERPARAMETERS.v_lr,
    "weight_decay": HYPERPARAMETERS.v_weight_decay,
    "kl_factor": HYPERPARAMETERS.kl_factor,
    "clamp": HYPERPARAMETERS.clamp_norm_factor,
}


def solver_of(method: str, spaces: NullSpaces, hyperparameters: Hyperparameters) -> oracle.Solver:
    """The Δ of a solver, before anything modifies it."""

    def solve(layer: int, keys: Tensor, residual: Tensor, earlier: Tensor) -> Tensor:
        covariance = COVARIANCES[layer].matrix
        if method.startswith("alphaedit"):
            return oracle.alphaedit_delta(keys, residual, earlier, spaces[layer].dense(), hyperparameters.L2)
        if method.startswith("memit-seq"):
            return oracle.memit_seq_delta(keys, residual, earlier, covariance, hyperparameters.mom2_update_weight)
        return oracle.memit_delta(keys, residual, covariance, hyperparameters.mom2_update_weight)

    return solve


def edit_by_textbook(
    model: nn.Module, tokenizer: Any, batches: Any, solver: oracle.Solver, post: oracle.Post | None = None
) -> None:
    """Edit in place, batch after batch."""
    decoder = Decoder(model)
    oracle.sequence(
        model,
        tokenizer,
        batches,
        CONTEXTS,
        LAYERS,
        decoder.blocks,
        {layer: projection.module for layer, projection in decoder.out_projections(list(LAYERS)).items()},
        solver=solver,
        post=post,
        **TARGETS,
    )


def assert_near(found: Mapping[int, Tensor], expected: Mapping[int, Tensor], start: Mapping[int, Tensor], share: float):
    """Two models whose weights differ by no more than a share of how far they have moved, which is some way."""
    for layer, weight in found.items():
        moved = float((expected[layer].double() - start[layer].double()).norm())
        assert moved > 1e-3 * float(start[layer].norm())
        assert float((weight.double() - expected[layer].double()).norm()) <= share * moved, layer
