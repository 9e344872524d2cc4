"""The branch c(u): what a block makes of its out-projection's output u before it reaches the residual stream.

The identity in Llama and GPT-2, a scale in Granite, a norm with gain in Gemma 2 and OLMo 2, a gate in shared experts.
It is found by moving u and looking at what the block returns, never by the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .decoder import Decoder, OutProjection, first_stream, hidden_states
from .gradients import gradients
from .trace import evaluating, hooks, stop, stopping

_DAMPING = 1e-2
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Branch:
    """c at n tokens of one block, as far as it is c(u') = gain ⊙ u' for every u' as long as u.

    `value` is u and `gain` its slopes, both n × d, float64. `saturates` says that c depends on the direction of u only
    (a norm), so that a longer u reaches no further; otherwise c is linear.
    """

    projection: OutProjection
    value: Tensor
    gain: Tensor
    saturates: bool

    def of(self, tokens: Sequence[int]) -> Branch:
        """The branch at some of the tokens."""
        return replace(self, value=self.value[tokens], gain=self.gain[tokens])

    def is_identity(self, precision: torch.dtype) -> bool:
        """Whether c(u) = u, up to the rounding of a model in this precision."""
        tolerance = max(1e-3, 4 * torch.finfo(precision).eps)
        return not self.saturates and bool(((self.gain - 1).square().mean().sqrt() <= tolerance).item())

    @property
    def unit(self) -> Tensor:
        """What a step of 1 in every entry of the hidden state is in u, n: where a norm follows, a step of its input's
        root mean square, since only the direction of u counts.
        """
        if self.saturates:
            return self.value.norm(dim=1) / self.value.shape[1] ** 0.5
        return 1 / self.gain.square().mean(1).sqrt().clamp_min(torch.finfo(self.gain.dtype).tiny)

    @property
    def length(self) -> Tensor:
        """‖u‖ in `unit`s, n."""
        return self.value.norm(dim=1) / self.unit

    def effect(self, shift: Tensor) -> Tensor:
        """c(u + shift) − c(u), n × d."""
        shift = shift.to(self.gain)
        return self.gain * (self._as_long(self.value + shift) - self.value if self.saturates else shift)

    def move(self, wanted: Tensor) -> Tensor:
        """Δu, n × d, with c(u + Δu) − c(u) = `wanted`, or as near to it as c comes.

        This is one damped Gauss-Newton step on the diagonal `gain`, exact for the branches named above: channels that
        c nearly shuts are left alone, and where c saturates u + Δu is as long as u.
        """
        damping = _DAMPING**2 * self.gain.square().mean(1, keepdim=True)
        moved = wanted.to(self.gain) * self.gain / (self.gain.square() + damping)
        return self._as_long(self.value + moved) - self.value if self.saturates else moved

    def _as_long(self, value: Tensor) -> Tensor:
        """The value at the length of u."""
        return value * (self.value.norm(dim=1, keepdim=True) / value.norm(dim=1, keepdim=True).clamp_min(1e-30))


def probe(projection: OutProjection, block: Any, run: Callable[[], Any], last: Tensor) -> Branch:
    """The branch at one token of every row, its position given by `last`. `run` runs the model at least up to `block`.

    The block is run with u taken away, then with a u of equal entries at two lengths, so large that they are not lost
    in the rounding of the hidden state.
    """

    def returned(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(u, what the block puts out after `change` to u), both n × d."""
        seen: list[Tensor] = []

        def moved(_module: Any, _args: Any, output: Tensor) -> Tensor:
            rows = _rows(output, last)
            seen.append(rows.double())
            return _with_rows(output, last, change(rows).to(output))

        def keep(_module: Any, _args: Any, output: Any) -> None:
            seen.append(_rows(first_stream(hidden_states(output), projection.d_out), last).double())
            stop()

        with hooks((projection.module, moved), (block, keep)), stopping():
            run()
        return seen[0], seen[1]

    value, without = returned(torch.zeros_like)
    root_mean_square = value.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    times = (without.square().mean(1, keepdim=True).sqrt() / root_mean_square).clamp(1.0, 1e4)
    signs = torch.ones_like(value)
    signs[:, ::2] = -1.0  # of mean zero: a norm that subtracts the mean leaves it alone
    step = signs * root_mean_square
    once = returned(lambda _: times * step)[1] - without
    twice = returned(lambda _: 2 * times * step)[1] - without
    saturates = bool((twice - once).norm() < 0.5 * once.norm())
    return Branch(projection, value, once / (step if saturates else times * step), saturates)


@gradients(False)
def branch_is_identity(decoder: Decoder, layers: Sequence[int]) -> bool:
    """Whether in all of `layers` what the out-projection puts out is what the hidden state moves by."""
    vocabulary = decoder.model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS, device=decoder.device).long()[None]
    last = torch.tensor([_PROBE_TOKENS - 1])

    def run() -> None:
        decoder.model(input_ids=ids, use_cache=False)

    with evaluating(decoder.model):
        return all(
            probe(decoder.out_projection(layer), decoder.block(layer), run, last).is_identity(decoder.model.dtype)
            for layer in layers
        )


def _rows(states: Tensor, last: Tensor) -> Tensor:
    """The states at position `last` of every row, n × d. Some blocks lay batch and tokens out as one dimension."""
    by_row = states.detach().reshape(len(last), -1, states.shape[-1])
    return by_row[torch.arange(len(last)), last.to(states.device)]


def _with_rows(states: Tensor, last: Tensor, rows: Tensor) -> Tensor:
    changed = states.detach().reshape(len(last), -1, states.shape[-1]).clone()
    changed[torch.arange(len(last)), last.to(states.device)] = rows
    return changed.reshape(states.shape)
