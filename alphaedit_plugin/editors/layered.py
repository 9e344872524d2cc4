"""Many facts at once, spread over several layers: the loop that MEMIT and AlphaEdit share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EditError
from ..model.trace import evaluating
from .editor import Editor, Written
from .keys import Sweep, half_bare
from .requests import Request
from .ridge import Ridge
from .targets import Targets, optimise_targets
from .update import Update

log = logging.getLogger(__name__)


class LayeredEditor(Editor):
    """For each layer in turn, on the current weights: Δ = R Nᵀ, R = (z* − z) / the number of layers left.

    N solves the ridge regression of the batch's transformed keys, together with the remembered keys. A subclass
    supplies the key transform, λ, and whether earlier keys are kept.
    """

    sequential: ClassVar[bool]

    @property
    @abstractmethod
    def regularisation(self) -> float:
        """λ."""

    @abstractmethod
    def transform_keys(self, layer: int, keys: Tensor) -> Tensor:
        """Keys, d_in × n, in the coordinates where the regularisation of the regression is λI."""

    @abstractmethod
    def restore_solution(self, layer: int, solution: Tensor) -> Tensor:
        """The regression's solution, d_in × n, back in the coordinates of the weight."""

    def targets(self, requests: Sequence[Request]) -> Targets:
        """z* of every request on the model as it is now."""
        with evaluating(self.model):
            return optimise_targets(
                self.decoder,
                self.tokenizer,
                requests,
                self.contexts,
                max(self.projections),
                self.hyperparameters.target_settings,
                progress=self.progress,
            )

    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> Written:
        self.check(requests)
        targets = targets or self.targets(requests)
        sweep = Sweep(self.model, self.tokenizer, requests, self.contexts)
        updates: list[Update] = []
        kept: dict[int, tuple[Tensor, Ridge]] = {}
        z_star: Tensor | None = None
        with torch.no_grad(), evaluating(self.model):
            for done, (layer, projection) in enumerate(self.projections.items()):
                precision = torch.promote_types(projection.matrix.dtype, torch.float32)
                keys = self.transform_keys(layer, half_bare(sweep.keys(projection)).T)
                if self.sequential:  # in the type they are kept in, so that a resumed session solves the same system
                    keys = keys.to(precision)
                now = sweep.hidden(max(self.projections))
                if z_star is None:  # nothing is written yet: z in full precision, whatever δ was optimised in
                    z_star = now + targets.delta.to(now)
                residual = (z_star - now).T / (len(self.projections) - done)
                if not (torch.isfinite(keys).all() and torch.isfinite(residual).all()):
                    raise EditError(f"the keys or targets of layer {layer} are not finite: load the model in float32")
                solution, grown = self._ridge(layer).add(keys)
                right = self.restore_solution(layer, solution).to(precision)
                updates.append(self.write(projection, Update(layer, residual.to(right), right)))
                # Edits above this layer do not change its keys, so later batches keep these.
                kept[layer] = (keys, grown)
                log.debug("layer %d: residual %.3g", layer, residual.norm())
        if not self.sequential:
            return Written(updates)
        self.memory = {layer: grown for layer, (_, grown) in kept.items()}
        return Written(updates, {layer: keys for layer, (keys, _) in kept.items()})

    def remember(self, written: Written) -> None:
        self.memory = {
            **self.memory,
            **{layer: self._ridge(layer).add(keys)[1] for layer, keys in written.keys.items()},
        }

    def _ridge(self, layer: int) -> Ridge:
        return self.memory.get(layer) or Ridge(self.regularisation, self.projections[layer].d_in)
