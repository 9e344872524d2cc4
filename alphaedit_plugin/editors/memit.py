"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer"): many facts at once, over several layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from ..hparams import Hyperparameters
from ..modules import Decoder
from ..requests import Request
from ..statistics import Covariance
from ..trace import evaluating
from .keys import context_templates, subject_hidden, subject_keys
from .targets import Targets, optimise_targets

log = logging.getLogger(__name__)


class MEMIT:
    """Writes facts into the out-projections of `hyperparameters.layers`, in place.

    For every layer, on the weights as they are by then: Δ = R K1ᵀ (λC + K1K1ᵀ)⁻¹ (eq. 14), R = (z* − z) / the
    number of layers still to come. The editor knows nothing of null spaces: run it inside `hook.guard` and every Δ
    becomes ΔP before the next layer measures what is left to do.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        covariances: Mapping[int, Covariance],
        *,
        contexts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> None:
        """`contexts` are templates that keys are averaged over; by default the model writes them at the first edit."""
        self.model, self.tokenizer, self.hyperparameters = model, tokenizer, hyperparameters
        self.progress = progress
        self.decoder = Decoder(model, hyperparameters.rewrite_module_tmp)
        self.projections = self.decoder.out_projections(hyperparameters.layers)
        missing = [layer for layer in self.projections if layer not in covariances]
        if missing:
            raise StatisticsError(f"MEMIT needs the covariances of layers {missing}: prepare them first")
        self.covariances = covariances
        self._factors: dict[int, Tensor] = {}
        self._contexts = tuple(contexts) if contexts else None

    @property
    def contexts(self) -> tuple[str, ...]:
        """Context templates, written by the model at the first edit and kept for all later ones."""
        if self._contexts is None:
            with evaluating(self.model):
                self._contexts = context_templates(self.model, self.tokenizer)
        return self._contexts

    def targets(self, requests: Sequence[Request]) -> Targets:
        """z* of every request on the model as it is now."""
        with evaluating(self.model):
            return optimise_targets(
                self.model,
                self.tokenizer,
                requests,
                self.contexts,
                max(self.projections),
                self.hyperparameters.target_settings,
                progress=self.progress,
            )

    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> None:
        """Write `requests`. `targets` that are known already, on this very model, save computing them."""
        targets = targets or self.targets(requests)
        z_star: Tensor | None = None
        block = self.decoder.block(max(self.projections))
        with torch.no_grad(), evaluating(self.model):
            for done, (layer, projection) in enumerate(self.projections.items()):
                keys = subject_keys(self.model, self.tokenizer, projection.module, requests, self.contexts).T
                now = subject_hidden(self.model, self.tokenizer, block, requests)
                if z_star is None:  # nothing is written yet: z in full precision, whatever δ was optimised in
                    z_star = now + targets.delta.to(now)
                residual = (z_star - now).T / (len(self.projections) - done)
                delta = memit_update(keys, residual, self._factor(layer), self.hyperparameters.mom2_update_weight)
                weight = projection.matrix
                work = torch.promote_types(weight.dtype, torch.float32)
                weight.copy_((weight.to(work) + delta.to(weight.device, work)).to(weight.dtype))
                log.debug("layer %d: residual %.3g, ‖Δ‖ %.3g", layer, residual.norm(), delta.norm())

    def _factor(self, layer: int) -> Tensor:
        """The Cholesky factor of C, computed once: C belongs to the base model."""
        if layer not in self._factors:
            self._factors[layer] = cholesky(self.covariances[layer].matrix, f"layer {layer}")
        return self._factors[layer]


def cholesky(covariance: Tensor, name: str) -> Tensor:
    """Lower factor of C, float64. Raises StatisticsError when C is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    if int(failed):
        dead = int((covariance.diagonal() == 0).sum())
        cause = (
            f"{dead} of its keys' dimensions are always zero (dead neurons), so choose another layer"
            if dead
            else f"it was made from too few tokens, so use at least 10 × d_in = {10 * len(covariance)}"
        )
        raise StatisticsError(f"the covariance of {name} is singular: {cause}")
    return factor


def memit_update(keys: Tensor, residual: Tensor, factor: Tensor, weight: float) -> Tensor:
    """Δ = R K1ᵀ (λC + K1K1ᵀ)⁻¹, d_out × d_in, float64, in the dual form R (λI + K1ᵀC⁻¹K1)⁻¹ (C⁻¹K1)ᵀ.

    `keys` K1 is d_in × n, `residual` R is d_out × n, `factor` the Cholesky factor of C, `weight` λ. The system to
    solve has the size of the number of facts, not of d_in.
    """
    k, r = keys.to(factor.device, torch.float64), residual.to(factor.device, torch.float64)
    whitened = torch.cholesky_solve(k, factor)
    gram = k.T @ whitened
    gram.diagonal().add_(weight)
    return torch.linalg.solve(gram, r.T).T @ whitened.T
