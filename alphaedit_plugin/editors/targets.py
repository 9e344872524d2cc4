"""Target optimisation: the hidden state z* that makes the model say the new object (MEMIT eq. 16, DESIGN §6).

z* = z + δ, with δ added to the hidden state at the subject's last token of one layer. Where blocks make something else
of their out-projection's output (`model/branch.py`), one layer cannot move the hidden state to any place: there each
edited layer has a δ of its own, added to that output, so that the weights can reach what the δs reach together.

Many requests share a batch, and leave it when they have converged. Once the first and longest steps have found a
direction that is good in every context, an optimiser may go on with a few of them, which is cheaper; the last steps,
and the decision that a request is done, see all again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import psutil
import torch
from torch import Tensor, nn

from ..errors import EditError
from ..model.branch import Branch
from ..model.decoder import Decoder, Projection, eager_attention
from ..model.gradients import gradients
from ..model.precision import in_bfloat16
from ..progress import progress_bar
from .hyperparameters import TargetSettings
from .optimisers import OPTIMISERS
from .preconditions import not_finite
from .requests import Request
from .target_loss import Rows, TargetLoss, cache_agrees

log = logging.getLogger(__name__)

_CPU_TOKENS, _ACCELERATOR_TOKENS = 512, 4096
_FEW_CONTEXTS, _WIDE_STEPS, _NARROW_UNTIL = 2, 2, 10


@dataclass(frozen=True)
class Targets:
    """For n requests: `z` before and `delta`, n × d, float32 or better; the last `losses`; `steps` taken.

    With branches z and `delta` are of all their layers, n × layers × d, and `shift` is what each out-projection's
    output was moved by to move z by `delta`, shaped alike.

    They belong to the model that they were found on, and are δ from its z; `fixed` ones are z* itself, wherever z is by
    the time they are written.
    """

    z: Tensor
    delta: Tensor
    losses: Tensor
    steps: Tensor
    shift: Tensor | None = None
    fixed: bool = False

    @property
    def z_star(self) -> Tensor:
        return self.z + self.delta

    @classmethod
    def kept(cls, z_star: Tensor, losses: Tensor) -> Targets:
        """Fixed ones of which nothing else is known any more."""
        return cls(torch.zeros_like(z_star), z_star, losses, torch.zeros(len(z_star), dtype=torch.long), fixed=True)

    def of(self, rows: Sequence[int]) -> Targets:
        """Those of these requests alone."""
        z, delta, losses, steps = (
            column[torch.as_tensor(rows, device=column.device)]
            for column in (self.z, self.delta, self.losses, self.steps)
        )
        shift = None if self.shift is None else self.shift[torch.as_tensor(rows, device=self.shift.device)]
        return Targets(z, delta, losses, steps, shift, self.fixed)

    def seen_from(self, z: Tensor) -> Targets:
        """As they are from another z, shaped like theirs, in its precision: the same δ or, if fixed, the same z*."""
        delta = self.z_star.to(z) - z if self.fixed else self.delta.to(z)
        return replace(self, z=z, delta=delta, fixed=False)


def optimise_targets(
    model: nn.Module | Decoder,
    tokenizer: Any,
    requests: Sequence[Request],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
    *,
    norms: Tensor | None = None,
    branches: Sequence[Branch] = (),
    batch_tokens: int | None = None,
    use_prefix_cache: bool = True,
    progress: bool = False,
) -> Targets:
    """z* of every request, on the model as it is now, at the output of block `layer`.

    δ is kept small relative to `norms`, one per request; by default ‖z‖ (ROME: the norm of the out-projection's
    output). With `branches`, those of the edited layers at the requests' subjects in ascending order, there is a δ for
    each, added to the out-projection's output; it and `norms`, n × layers, are in the branch's units.

    The result does not depend on which requests share a batch. A batch holds up to `batch_tokens` tokens, by default as
    many as fit into memory and are fast, and fewer if memory runs out. Raises EditError if a loss is not finite.
    """
    encoded = [Rows.of(tokenizer, request, contexts) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: encoded[i].suffix, reverse=True)
    found: dict[int, tuple[Tensor, ...]] = {}
    given = decoder = Decoder.of(model)
    if settings.reduced_precision:
        decoder = Decoder(in_bfloat16(given.model))
        decoder.prefix_cache = given.prefix_cache
    with (
        eager_attention(decoder.model),
        progress_bar(total=len(requests), desc="targets", unit="fact", shown=progress, leave=False) as bar,
    ):
        if use_prefix_cache and decoder.prefix_cache is None:
            first = order[0]
            decoder.prefix_cache = cache_agrees(decoder, layer, encoded[first], [b.of([first]) for b in branches])
        tokens = batch_tokens or _affordable_tokens(decoder, layer)
        while order:
            size = max(1, tokens // (encoded[order[0]].suffix * (len(contexts) + 1)))
            chunk = order[:size]
            try:
                there = [branch.of(chunk) for branch in branches]
                problem = TargetLoss(decoder, layer, [encoded[i] for i in chunk], use_prefix_cache, there)
                if norms is not None:
                    problem.norms = norms[chunk].to(problem.z)
                result = _minimise(problem, settings, [requests[i] for i in chunk], bar)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                tokens //= 2
                log.warning("out of memory with %d facts at a time: going on with fewer", len(chunk))
                continue
            order = order[size:]
            for row, i in enumerate(chunk):
                found[i] = tuple(column[row] for column in result)
    given.prefix_cache = decoder.prefix_cache
    z, moved, delta, losses, steps = (
        torch.stack(column) for column in zip(*(found[i] for i in range(len(requests))), strict=True)
    )
    if not branches:
        return Targets(z, delta, losses, steps)
    unit = torch.stack([branch.unit for branch in branches], 1)
    return Targets(z, moved, losses, steps, delta * unit[..., None].to(delta))


def _affordable_tokens(decoder: Decoder, layer: int) -> int:
    """A power of two: the number of tokens that suits the device best, or fewer if main memory is short.

    More than about 500 tokens at a time outgrow a processor's caches and become slower again (`benchmarks/targets.py`).
    An accelerator raises an error itself if its memory is too small.
    """
    if decoder.device.type != "cpu":
        return _ACCELERATOR_TOKENS
    matrices = [m for block in list(decoder.blocks)[layer + 1 :] for m in block.modules() if isinstance(m, Projection)]
    kept = 2 * sum(sum(matrix.weight.shape) * matrix.weight.element_size() for matrix in matrices)  # for backward
    affordable = psutil.virtual_memory().available // 2 // max(1, kept)
    return min(_CPU_TOKENS, 1 << max(0, int(affordable).bit_length() - 1))


def _minimise(
    problem: TargetLoss, settings: TargetSettings, requests: Sequence[Request], bar: Any
) -> tuple[Tensor, ...]:
    """z, what it moved by, δ, the last losses and the steps taken, for each request of the batch."""
    descent = _Descent(problem, settings, requests)
    last = min(settings.steps - 1, descent.optimiser.most or settings.steps)
    if descent.optimiser.narrows and problem.contexts > _FEW_CONTEXTS:
        everyone = torch.arange(len(requests))
        for _ in range(min(_WIDE_STEPS, last)):
            loss, gradient = descent.look(problem, everyone)
            going = descent.unfinished(problem, loss)
            descent.move(everyone[going], gradient[going])
        descent.go_down(problem.of_contexts(_FEW_CONTEXTS), min(_NARROW_UNTIL, last))
    descent.go_down(problem, last, bar)
    return descent.z, descent.reached, descent.delta, descent.losses, descent.optimiser.taken


def most_looks(settings: TargetSettings, contexts: int) -> dict[int, int]:
    """contexts → how often at most the loss of one request is looked at in so many of them."""
    optimiser = OPTIMISERS[settings.optimiser]
    last = min(settings.steps - 1, optimiser.most or settings.steps)
    if not (optimiser.narrows and contexts > _FEW_CONTEXTS):
        return {contexts: last + 1}
    wide, narrow = min(_WIDE_STEPS, last), min(_NARROW_UNTIL, last)
    return {contexts: wide + last - narrow + 1, _FEW_CONTEXTS: narrow - wide + 1}


class _Descent:
    """The δ of a batch's requests, on their way down.

    Invariant: requests do not influence each other, so a batch gives what its requests give one by one.
    """

    def __init__(self, problem: TargetLoss, settings: TargetSettings, requests: Sequence[Request]) -> None:
        self.settings, self.requests = settings, requests
        self.z, self.norms = problem.z, problem.norms
        self.delta, self.reached = torch.zeros_like(self.z), torch.zeros_like(self.z)
        self.losses = self.z.new_zeros(len(self.z))
        self.optimiser = OPTIMISERS[settings.optimiser](self.delta, settings.lr)

    def look(self, problem: TargetLoss, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, on the CPU, and their gradients of the requests `rows`: those that `problem` holds."""
        variable = self.delta[rows].requires_grad_()
        with gradients(True):
            loss = problem.losses(variable, self.settings)
            (gradient,) = torch.autograd.grad(loss.sum(), [variable])
        loss = loss.detach().to(self.losses.device)
        if not torch.isfinite(loss).all():
            _raise(self.requests[int(rows[int((~torch.isfinite(loss)).nonzero()[0, 0])])], problem.model)
        self.losses[rows] = loss
        self.reached[rows] = variable.detach() if problem.unit is None else problem.moved
        return loss.cpu(), gradient

    def unfinished(self, problem: TargetLoss, loss: Tensor) -> Tensor:
        """Which of the requests that `problem` has looked at are not done."""
        high = loss >= self.optimiser.enough
        return high & ~problem.said if self.settings.most_probable else high

    def move(self, rows: Tensor, gradient: Tensor) -> None:
        longest = self.settings.clamp * self.norms[rows, ..., None]
        self.delta[rows] = self.optimiser.step(rows, self.delta[rows], gradient, longest)

    def go_down(self, problem: TargetLoss, last: int, bar: Any = None) -> None:
        """Until the loss is small, or the optimiser has taken `last` steps in all. Uses `problem` up."""
        active = torch.arange(len(self.z))  # the requests that `problem` holds, in its order
        while True:
            loss, gradient = self.look(problem, active)
            going = self.unfinished(problem, loss) & (self.optimiser.taken[active] < last)
            if bar is not None:
                bar.update(int((~going).sum()))
            if not going.any():
                return
            if not going.all():
                problem.select(going.nonzero().squeeze(1))
                active, gradient = active[going], gradient[going]
            self.move(active, gradient)


def _raise(culprit: Request, model: nn.Module) -> NoReturn:
    damaged = not_finite(model)
    remedy = (
        f"{damaged} holds values that are not finite, so load the checkpoint again"
        if damaged is not None
        else "lower v_lr or clamp_norm_factor, or load the model in float32 or bfloat16"
    )
    raise EditError(f"the target loss of {culprit.text!r} → {culprit.target_new!r} is not finite: {remedy}")
