"""ROME (Meng et al. 2022, "Locating and Editing Factual Associations in GPT"): one fact, one rank-one update."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.decoder import Decoder, OutProjection
from ..model.gradients import gradients
from ..model.trace import evaluating
from ..progress import progress_bar
from .editor import Editor, Written
from .hyperparameters import Hyperparameters
from .keys import Sweep
from .preserved import Preserved
from .registry import method
from .requests import Request
from .targets import Targets, optimise_targets
from .update import Update
from .whitening import Whitening

log = logging.getLogger(__name__)


@method(
    "rome",
    summary="one fact, one layer, one rank-one update",
    source="Meng et al. 2022, arXiv 2202.05262",
    folder="ROME",
)
class ROME(Editor):
    """Δ = (v* − v) uᵀ / (uᵀk), u = C⁻¹k̄: one fact after the other, each on the model that the previous one left.

    k and v are the key and the value of the bare prompt; the edited layer maps k to v* exactly. k̄ is the key averaged
    over contexts. Without `mom2_adjustment` u = k̄. Several layers are edited in turn. Where a norm follows v, only its
    direction counts, and ‖v* − v‖ ≤ 2‖v‖ whatever `clamp_norm_factor` allows.
    """

    @classmethod
    def derived(cls, decoder: Decoder) -> Hyperparameters:
        """The second of the five layers that MEMIT would edit, and ROME's settings."""
        return Hyperparameters(
            layers=super().derived(decoder).layers[:2][-1:],
            v_num_grad_steps=20,
            clamp_norm_factor=4.0,
            context_template_length_params=((5, 10), (10, 10)),
        )

    def prepare(self, preserved: Preserved) -> None:
        adjusted = self.projections if self.hyperparameters.mom2_adjustment else {}
        self.whitening = Whitening(preserved.covariances, adjusted)

    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> Written:
        """Write `requests` in order. Raises ValueError if `targets` are given that are not `fixed`: each depends on the
        facts before it. Fixed ones are v*, n × layers × d_out, as `Written.z_star` has them.
        """
        if targets is not None and not targets.fixed:
            raise ValueError("ROME computes its targets itself, one fact after the other")
        self.check(requests)
        updates, losses, missed, v_star = [], [], [], []
        with (
            gradients(False),
            evaluating(self.model),
            progress_bar(requests, desc="facts", unit="fact", shown=self.progress, leave=False) as bar,
        ):
            for row, request in enumerate(bar):
                for number, projection in enumerate(self.projections.values()):
                    sweep = Sweep(self.model, self.tokenizer, [request], self.contexts)
                    keys = sweep.keys(projection)[0]
                    key = keys[:1].to(projection.matrix.dtype)
                    value = projection.module(key)[0]
                    if targets is None:
                        moved, loss = self._target(request, projection, sweep, value)
                    else:
                        kept = torch.promote_types(value.dtype, torch.float32)
                        v_then = targets.z_star[row, number].to(value.device, kept)
                        moved, loss = v_then - value.to(kept), targets.losses[row]
                    update = self._update(projection, keys, moved)
                    log.debug("layer %d: ‖v* − v‖ %.3g, ‖v‖ %.3g", projection.layer, moved.norm(), value.norm())
                    updates.append(self.write(projection, update))
                    wanted = update.left[:, 0]
                    left = wanted - (projection.module(key)[0] - value).to(wanted)
                    v_star.append(value.to(wanted) + wanted)
                losses.append(loss)
                missed.append(left.norm() / wanted.norm())  # at the last layer
        return Written(
            updates,
            losses=torch.stack(losses),
            missed=torch.stack(missed).nan_to_num(0.0),
            z_star=torch.stack(v_star).view(len(requests), len(self.projections), -1),
        )

    def _target(
        self, request: Request, projection: OutProjection, sweep: Sweep, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(v* − v, d_out; the last loss)."""
        branches = [] if self.direct else [sweep.branch(projection)]
        settings = self.hyperparameters.target_settings
        if any(branch.saturates for branch in branches):  # twice ‖v‖ reaches every direction
            settings = replace(settings, clamp=min(settings.clamp, 2.0))
        found = optimise_targets(
            self.decoder,
            self.tokenizer,
            [request],
            self.contexts,
            projection.layer,
            settings,
            norms=torch.stack([branch.length for branch in branches], 1) if branches else value.norm()[None],
            branches=branches,
        )
        return (found.delta if found.shift is None else found.shift[:, 0])[0], found.losses[0]

    def _update(self, projection: OutProjection, keys: Tensor, moved: Tensor) -> Update:
        """The update that moves the value of the first of these keys, contexts × d_in."""
        right = rome_direction(keys, self.whitening if self.hyperparameters.mom2_adjustment else None, projection.layer)
        kept = torch.promote_types(projection.matrix.dtype, torch.float32)
        return Update(projection.layer, moved[:, None].to(right.device, kept), right.to(kept))


def rome_direction(keys: Tensor, whitening: Whitening | None, layer: int) -> Tensor:
    """u / (uᵀk), d_in × 1, from keys contexts × d_in; the first is the bare prompt's."""
    u = keys.mean(0, keepdim=True).T
    if whitening is not None:
        u = whitening.unwhiten(layer, whitening.whiten(layer, u))
    return u / (keys[:1].to(u) @ u)
