"""Many facts at once, spread over several layers: the loop that MEMIT and AlphaEdit share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EditError
from ..model.branch import Branch
from ..model.decoder import OutProjection
from ..model.gradients import gradients
from ..model.trace import evaluating
from .editor import Editor, Written
from .keys import Sweep, half_bare
from .requests import Request
from .ridge import Memory, Ridge
from .targets import Targets, optimise_targets
from .update import Update

log = logging.getLogger(__name__)


class LayeredEditor(Editor):
    """For each layer in turn, on the current weights: Δ = R Nᵀ, R = (z* − z) / the number of layers left.

    Where the hidden state does not move by what the out-projection's output moves by (`model/branch.py`), each layer
    has a z* of its own, and R is what moves its output there.

    N solves the ridge regression of the batch's transformed keys, together with the remembered keys. A subclass
    supplies the key transform, λ, and whether earlier keys are kept. If earlier updates still owe a Δ to the layer, it
    is written with this one, so R is what is missing after it: R − owed K1.
    """

    sequential: ClassVar[bool]
    carries_over: ClassVar = True

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

    @property
    def target_layers(self) -> tuple[int, ...]:
        """The layers that have a z* of their own: what targets depend on besides the optimiser's settings."""
        return (max(self.projections),) if self.direct else tuple(self.projections)

    def targets(self, requests: Sequence[Request]) -> Targets:
        """z* of every request on the model as it is now."""
        with evaluating(self.model):
            branches, norms = ([], None) if self.direct else self._branches(requests)
            return optimise_targets(
                self.decoder,
                self.tokenizer,
                requests,
                self.contexts,
                max(self.projections),
                self.hyperparameters.target_settings,
                norms=norms,
                branches=branches,
                progress=self.progress,
            )

    def _branches(self, requests: Sequence[Request]) -> tuple[list[Branch], Tensor]:
        """The branch of every layer, and what its δ is kept small relative to, n × layers: a share of the hidden state
        or, where the branch saturates, of the out-projection's output; together the layers move as far as one could.
        """
        sweep, count = Sweep(self.model, self.tokenizer, requests, self.contexts[:1]), len(self.projections)
        branches, norms = [], []
        for layer, projection in self.projections.items():
            sweep.keys(projection)
            branch = sweep.branch(projection)
            branches.append(branch)
            # Turns of different layers are nearly orthogonal; moves of the hidden state can add up.
            norms.append(branch.length / count**0.5 if branch.saturates else sweep.hidden(layer).norm(dim=1) / count)
        return branches, torch.stack(norms, 1)

    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> Written:
        self.check(requests)
        targets = targets or self.targets(requests)
        sweep = Sweep(self.model, self.tokenizer, requests, self.contexts)
        updates: list[Update] = []
        kept: dict[int, tuple[Tensor, Memory]] = {}
        owed = dict(self.owed)
        with gradients(False), evaluating(self.model):
            wanted: dict[int, Tensor] = {}
            for layer, projection in self.projections.items():
                precision = torch.promote_types(projection.matrix.dtype, torch.float32)
                plain = half_bare(sweep.keys(projection)).T
                keys = self.transform_keys(layer, plain)
                if self.sequential:  # in the type they are kept in, so that a resumed session solves the same system
                    keys = keys.to(precision)
                wanted = wanted or self._wanted(sweep, targets)
                residual = self._residual(sweep, projection, wanted)
                if layer in owed:
                    residual = residual - (owed[layer].to(torch.float64) @ plain.to(torch.float64)).to(residual)
                if not (torch.isfinite(keys).all() and torch.isfinite(residual).all()):
                    raise EditError(f"the keys or targets of layer {layer} are not finite: load the model in float32")
                solution, grown = self._ridge(layer).add(keys)
                right = self.restore_solution(layer, solution).to(precision)
                updates.append(self.write(projection, Update(layer, residual.to(right), right), owed))
                # Edits above this layer do not change its keys, so later batches keep these.
                kept[layer] = (keys, grown)
                log.debug("layer %d: residual %.3g", layer, residual.norm())
            missed = self._missed(sweep, wanted, targets)
        self.owed = owed
        if not self.sequential:
            return Written(updates, losses=targets.losses, missed=missed)
        self.memory = {layer: grown for layer, (_, grown) in kept.items()}
        return Written(updates, {layer: keys for layer, (keys, _) in kept.items()}, targets.losses, missed)

    def _wanted(self, sweep: Sweep, targets: Targets) -> dict[int, Tensor]:
        """layer → z*, n × d, before anything is written: z in full precision, whatever δ was optimised in. One for the
        last layer, or one for each.
        """
        deltas = targets.delta[:, None] if self.direct else targets.delta
        found = zip(self.target_layers, deltas.unbind(1), strict=True)
        return {layer: (z := sweep.hidden(layer)) + delta.to(z) for layer, delta in found}

    def _missed(self, sweep: Sweep, wanted: Mapping[int, Tensor], targets: Targets) -> Tensor:
        """‖z* − z‖ / ‖δ‖ at the highest layer, n, with the weights as they are now; 0 where nothing was asked for."""
        last = max(wanted)
        left = (wanted[last] - sweep.hidden(last)).norm(dim=1)
        asked = targets.delta.reshape(len(left), -1, wanted[last].shape[1])[:, -1].norm(dim=1).to(left)
        return torch.where(asked > 0, left / asked, 0.0)

    def _residual(self, sweep: Sweep, projection: OutProjection, wanted: Mapping[int, Tensor]) -> Tensor:
        """What the out-projection's output is to move by, d_out × n, on the weights as they are now."""
        layers = list(self.projections)
        if self.direct:
            missing = wanted[layers[-1]] - sweep.hidden(layers[-1])
            return missing.T / (len(layers) - layers.index(projection.layer))
        missing = wanted[projection.layer] - sweep.hidden(projection.layer)
        return sweep.branch(projection).move(missing).T

    def remember(self, written: Written) -> None:
        self.memory = {
            **self.memory,
            **{layer: self._ridge(layer).add(keys)[1] for layer, keys in written.keys.items()},
        }

    def _ridge(self, layer: int) -> Memory:
        return self.memory.get(layer) or Ridge(self.regularisation, self.projections[layer].d_in)
