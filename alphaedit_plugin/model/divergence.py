"""How far a model's next tokens have moved from what they were: KL, at a few places of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .batches import PaddedBatch, Tokens, batches
from .decoder import Decoder, eager_attention
from .gradients import gradients
from .precision import float64_device
from .trace import evaluating, hooks, inputs_of, logits_at

Read = TypeVar("Read")

_TOKENS = 512
"""Run at a time."""
_PLACES = 8
"""Compared at a time: with 262,144 tokens in the vocabulary, both distributions are 17 MB each in float64."""


class Divergence:
    """KL(model as it was ‖ model as it is), of the next token, in nats: the mean over every `every`th token of a text.

    Nothing of the model as it was is kept but what its head saw there, places × d. So its weights may change in place,
    but for the head. Both distributions come from one call of the head, by the model's own scaling and soft caps, and
    in its precision; they are compared in float64. Model and random states stay as they are.
    """

    def __init__(self, model: nn.Module | Decoder, windows: Sequence[Tokens], *, every: int) -> None:
        """On the model as it is now. `windows` hold `every` tokens or more, all together."""
        self._decoder = Decoder.of(model)
        self._parts: list[tuple[PaddedBatch, Tensor, Tensor]] = []  # a batch, and the rows and positions of its places
        seen = 0
        for batch in batches(windows, _TOKENS, self._decoder.device, sort=False):
            rows, positions = batch.mask.cpu().nonzero().T  # in reading order
            chosen = (torch.arange(seen, seen + len(rows)) + 1) % every == 0
            seen += len(rows)
            if chosen.any():
                self._parts.append((batch, rows[chosen], positions[chosen]))
        head = self._decoder.head
        self._before = self._of_each(lambda run: inputs_of({0: head}, run, last=0)[0])

    @property
    def places(self) -> int:
        return sum(len(rows) for _, rows, _ in self._parts)

    def now(self) -> float:
        """The mean KL; not a number if a logit is not. The same model gives 0 up to rounding."""
        before = iter(self._before)

        def compared(run: Callable[[], Any]) -> float:
            def beside(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                return (torch.cat([args[0], next(before).to(args[0])], 1), *args[1:])

            with hooks(before=[(self._decoder.head, beside)]):
                edited, unedited = run().logits[0].chunk(2)
            return sum(
                _kl(one, other) for one, other in zip(unedited.split(_PLACES), edited.split(_PLACES), strict=True)
            )

        return sum(self._of_each(compared)) / self.places

    def _of_each(self, read: Callable[[Callable[[], Any]], Read]) -> list[Read]:
        """What `read` makes of a function that runs a batch, whose places alone the head sees; for every batch."""
        decoder, found = self._decoder, []
        with gradients(False), evaluating(decoder.given), eager_attention(decoder.model):
            for batch, rows, positions in self._parts:
                with logits_at(decoder.head, rows, positions):
                    found.append(read(partial(decoder.given, **batch.model_inputs(), use_cache=False)))
        return found


def _kl(before: Tensor, after: Tensor) -> float:
    """Σ p (log p − log q) over all rows, of logits rows × vocabulary."""
    device = float64_device(before.device)
    p, q = (logits.to(device).double().log_softmax(-1) for logits in (before, after))
    return float(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum())
