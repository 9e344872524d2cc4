"""Many facts at once, spread over several layers: the loop that MEMIT and AlphaEdit share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import EditError, ModelStructureError
from ..model.branch import Branch
from ..model.decoder import OutProjection
from ..model.gradients import gradients
from ..model.snapshot import copy_into, put_back
from ..model.trace import evaluating
from .blue import boundary, stages
from .capacity import Capacity
from .editor import Editor, Written
from .hyperparameters import Hyperparameters, TargetSettings
from .keys import Sweep, half_bare
from .nas import anchored, reference_facts, trimmed_mean
from .requests import Request
from .ridge import Memory, Ridge
from .targets import Targets, optimise_targets
from .update import Update

log = logging.getLogger(__name__)


class LayeredEditor(Editor):
    """For each layer in turn, on the current weights: Δ = R Nᵀ, R = (z* − z) / the number of layers left.

    Where the hidden state does not move by what the out-projection's output moves by (`model/branch.py`), each layer
    has a z* of its own, and R is what moves its output there. With `blue` only the first and the last layer are edited,
    each with a z* of its own (`blue.py`); with `nas` every z* is brought to the length that it has on the unedited
    model (`nas.py`).

    N solves the ridge regression of the batch's transformed keys, together with the remembered keys. A subclass
    supplies the key transform, λ, and whether earlier keys are kept. If earlier updates still owe a Δ to the layer, it
    is written with this one, so R is what is missing after it: R − owed K1.
    """

    sequential: ClassVar[bool]
    carries_over: ClassVar = True
    settings: ClassVar[Mapping[str, Any]] = {"blue": False, "nas": False}

    @classmethod
    def adapted(cls, hyperparameters: Hyperparameters, name: str) -> Hyperparameters:
        del name  # these settings are true or false, which is checked already
        blue = hyperparameters.own.get("blue", False)
        return hyperparameters.with_layers(boundary(hyperparameters.layers)) if blue else hyperparameters

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
    def stages(self) -> list[tuple[int, ...]]:
        """The edited layers, in ascending groups: the targets of a group are found when those below are written."""
        return stages(tuple(self.projections), bool(self.own.get("blue")))

    @property
    def target_layers(self) -> tuple[int, ...]:
        """The layers of the first stage that have a z* of their own: what its targets depend on besides
        `target_settings`.
        """
        return self._target_layers(self.stages[0])

    def _target_layers(self, stage: tuple[int, ...]) -> tuple[int, ...]:
        return stage[-1:] if self.direct else stage

    @property
    def target_settings(self) -> TargetSettings:
        """How z* is optimised."""
        return self.hyperparameters.target_settings

    def targets(self, requests: Sequence[Request], stage: tuple[int, ...] | None = None) -> Targets:
        """z* of every request for a stage, by default the first, on the model as it is now."""
        stage = stage or self.stages[0]
        with evaluating(self.model):
            branches, norms = ([], None) if self.direct else self._branches(requests, stage)
            return optimise_targets(
                self.decoder,
                self.tokenizer,
                requests,
                self.contexts,
                stage[-1],
                self.target_settings,
                norms=norms,
                branches=branches,
                progress=self.progress,
            )

    def fixed_targets(self, requests: Sequence[Request]) -> Targets:
        """z* of every request for the first stage, found on the model as it is now and to be reached on a later one."""
        targets, stage = self.targets(requests), self.stages[0]
        with gradients(False), evaluating(self.model):
            z = self._z(Sweep(self.model, self.tokenizer, requests, self.contexts[:1]), stage)
        return replace(targets, z=z, delta=targets.delta.to(z), fixed=True)

    def _branches(self, requests: Sequence[Request], stage: tuple[int, ...]) -> tuple[list[Branch], Tensor]:
        """The branch of every layer of a stage, and what its δ is kept small relative to, n × layers: a share of the
        hidden state or, where the branch saturates, of the out-projection's output; together the layers move as far as
        one could.
        """
        sweep, count = Sweep(self.model, self.tokenizer, requests, self.contexts[:1]), len(stage)
        branches, norms = [], []
        for layer in stage:
            projection = self.projections[layer]
            sweep.keys(projection)
            branch = sweep.branch(projection)
            branches.append(branch)
            # Turns of different layers are nearly orthogonal; moves of the hidden state can add up.
            norms.append(branch.length / count**0.5 if branch.saturates else sweep.hidden(layer).norm(dim=1) / count)
        return branches, torch.stack(norms, 1)

    def check(self, requests: Sequence[Request]) -> None:
        super().check(requests)
        if self.own.get("nas") and not self.direct:
            raise ModelStructureError(
                f"nas needs blocks that add their out-projection's output as it is, and {type(self.model).__name__} "
                "scales or norms it: leave nas out"
            )

    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> Written:
        """As `Editor.edit`. `targets` are those of the first stage; later ones depend on what it writes. `fixed` ones
        need not be of this very model.
        """
        self.check(requests)
        targets = targets or self.targets(requests)
        sweep = Sweep(self.model, self.tokenizer, requests, self.contexts)
        updates: list[Update] = []
        kept: dict[int, tuple[Tensor, Memory]] = {}
        owed, z_star = dict(self.owed), None
        with gradients(False), evaluating(self.model):
            for number, stage in enumerate(self.stages):
                targets = targets if number == 0 else self.targets(requests, stage)
                wanted: dict[int, Tensor] = {}
                for layer in stage:
                    projection = self.projections[layer]
                    precision = torch.promote_types(projection.matrix.dtype, torch.float32)
                    plain = half_bare(sweep.keys(projection)).T
                    keys = self.transform_keys(layer, plain)
                    if self.sequential:  # in the type they are kept in: a resumed session solves the same system
                        keys = keys.to(precision)
                    if not wanted:
                        targets = targets.seen_from(self._z(sweep, stage))
                        if number == 0:
                            z_star = targets.z_star.to(precision)
                        targets = self._anchored(sweep, stage, targets)
                        wanted = self._wanted(stage, targets)
                    residual = self._residual(sweep, stage, projection, wanted)
                    if layer in owed:
                        residual = residual - (owed[layer].to(torch.float64) @ plain.to(torch.float64)).to(residual)
                    if not (torch.isfinite(keys).all() and torch.isfinite(residual).all()):
                        raise EditError(
                            f"the keys or targets of layer {layer} are not finite: load the model in float32"
                        )
                    solution, grown = self._ridge(layer).add(keys)
                    right = self.restore_solution(layer, solution).to(precision)
                    updates.append(self.write(projection, Update(layer, residual.to(right), right), owed))
                    # Edits above this layer do not change its keys, so later batches keep these.
                    kept[layer] = (keys, grown)
                    log.debug("layer %d: residual %.3g", layer, residual.norm())
                missed = self._missed(sweep, wanted, targets)
        self.owed = owed
        keys_of: dict[int, Tensor] = {}
        if self.sequential:
            self.memory = {layer: grown for layer, (_, grown) in kept.items()}
            keys_of = {layer: keys for layer, (keys, _) in kept.items()}
        return Written(updates, keys_of, targets.losses, missed, z_star)

    def _anchored(self, sweep: Sweep, stage: tuple[int, ...], targets: Targets) -> Targets:
        """The targets, or with `nas` those of the unedited model's length."""
        if not self.own.get("nas"):
            return targets
        return anchored(targets, sweep.branch(self.projections[stage[-1]]).value, self._reference_norm(stage))

    def _reference_norm(self, stage: tuple[int, ...]) -> float:
        """r of a stage's last layer (`nas.py`), found at its first use, for which the unedited weights are put back.

        Without `write.base` the model as it is now counts as unedited.
        """
        last = stage[-1]
        if last not in self._reference_norms:
            with put_back(self.projections):
                if self.write.base:
                    copy_into(self.write.base, self.projections)
                facts = reference_facts()
                delta = self.targets(facts, stage).delta
                value = Sweep(self.model, self.tokenizer, facts, self.contexts[:1]).branch(self.projections[last]).value
                self._reference_norms[last] = trimmed_mean((value + delta.to(value)).norm(dim=1))
        return self._reference_norms[last]

    @cached_property
    def _reference_norms(self) -> dict[int, float]:
        return {}

    def _z(self, sweep: Sweep, stage: tuple[int, ...]) -> Tensor:
        """z on the model as it is now, in full precision, shaped like a stage's δ."""
        found = [sweep.hidden(layer) for layer in self._target_layers(stage)]
        return found[0] if self.direct else torch.stack(found, 1)

    def _wanted(self, stage: tuple[int, ...], targets: Targets) -> dict[int, Tensor]:
        """layer → z*, n × d: one for the last layer of a stage, or one for each."""
        z_star = targets.z_star[:, None] if self.direct else targets.z_star
        return dict(zip(self._target_layers(stage), z_star.unbind(1), strict=True))

    def _missed(self, sweep: Sweep, wanted: Mapping[int, Tensor], targets: Targets) -> Tensor:
        """‖z* − z‖ / ‖δ‖ at the highest layer, n, with the weights as they are now; 0 where nothing was asked for."""
        last = max(wanted)
        left = (wanted[last] - sweep.hidden(last)).norm(dim=1)
        asked = targets.delta.reshape(len(left), -1, wanted[last].shape[1])[:, -1].norm(dim=1).to(left)
        return torch.where(asked > 0, left / asked, 0.0)

    def _residual(
        self, sweep: Sweep, stage: tuple[int, ...], projection: OutProjection, wanted: Mapping[int, Tensor]
    ) -> Tensor:
        """What the out-projection's output is to move by, d_out × n, on the weights as they are now."""
        if self.direct:
            missing = wanted[stage[-1]] - sweep.hidden(stage[-1])
            return missing.T / (len(stage) - stage.index(projection.layer))
        missing = wanted[projection.layer] - sweep.hidden(projection.layer)
        return sweep.branch(projection).move(missing).T

    def remember(self, written: Written) -> None:
        self.memory = {
            **self.memory,
            **{layer: self._ridge(layer).add(keys)[1] for layer, keys in written.keys.items()},
        }

    def dimensions(self, layer: int) -> int:
        """How many directions of a layer's keys can be written into."""
        return self.projections[layer].d_in

    def capacity(self, count: int) -> dict[int, Capacity]:
        return {
            layer: Capacity.of(self.dimensions(layer), kept.truncated(count).weights())
            for layer, kept in self.memory.items()
        }

    def _ridge(self, layer: int) -> Memory:
        """What is remembered of a layer, and solved together with what is new."""
        return self.memory.get(layer) or Ridge(self.regularisation, self.projections[layer].d_in)
