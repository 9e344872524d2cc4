"""How δ goes downhill: a step from each gradient, inside the ball ‖δ‖ ≤ `longest`.

Every request is moved by its own gradients alone, so results do not depend on which requests share a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .hyperparameters import ADAM, NORMALISED

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_STRIDE, _DECAY = 0.4, 0.85
_LEAST = 0.01  # of a vector's typical entry: what is far below it may be rounding, whose sign must not count


class Optimiser(ABC):
    """The state of n requests' descent; δ of a request has shape d, or layers × d."""

    enough: ClassVar[float] = 5e-2
    """A request whose loss is below this is done (EasyEdit's and MEMIT's)."""
    narrows: ClassVar[bool] = False
    """Whether, after its first steps, it may look at a part of the contexts until these are content."""
    most: ClassVar[int | None] = None
    """The number of steps beyond which it gets no further."""

    def __init__(self, delta: Tensor, lr: float) -> None:
        """`delta` is shaped like all δ together, n × …; `lr` is the step size of those that have one."""
        self.lr = lr
        self.taken = torch.zeros(len(delta), dtype=torch.long)

    def step(self, rows: Tensor, delta: Tensor, gradient: Tensor, longest: Tensor) -> Tensor:
        """δ of the requests `rows`, moved by one step and brought back into the ball; all have the rows' shape.

        `longest` is the radius of each ball, with a last dimension of 1.
        """
        self.taken[rows] += 1
        moved = delta - self._stride(rows, gradient, longest)
        return moved * (longest / moved.norm(dim=-1, keepdim=True)).clamp_max(1.0)

    @abstractmethod
    def _stride(self, rows: Tensor, gradient: Tensor, longest: Tensor) -> Tensor:
        """What is to be subtracted from δ."""

    def _powers(self, base: float, rows: Tensor, like: Tensor) -> Tensor:
        """`base` to the number of steps that each row has taken, this one too: float64, in a shape like theirs."""
        return (base ** self.taken[rows].double()).to(like.device).reshape(-1, *[1] * (like.dim() - 1))


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015), entry by entry, as in EasyEdit, MEMIT and ROME."""

    def __init__(self, delta: Tensor, lr: float) -> None:
        super().__init__(delta, lr)
        self._mean, self._square = torch.zeros_like(delta), torch.zeros_like(delta)

    def _stride(self, rows: Tensor, gradient: Tensor, longest: Tensor) -> Tensor:
        self._mean[rows] = _BETAS[0] * self._mean[rows] + (1 - _BETAS[0]) * gradient
        self._square[rows] = _BETAS[1] * self._square[rows] + (1 - _BETAS[1]) * gradient * gradient
        mean, square = ((1 - self._powers(beta, rows, gradient)).to(gradient) for beta in _BETAS)
        unbiased = self._mean[rows] / mean
        return self.lr * unbiased / ((self._square[rows] / square).sqrt() + _EPSILON)


class Normalised(Optimiser):
    """Normalised descent: each step goes as far as a share of the ball's radius, which decays.

    A gradient's length says little about how far to go; the ball says it. So there is no step size (`lr` is not used),
    and it takes fewer than half of Adam's steps. Its direction is the gradient with every entry over its own root mean
    square so far, as in AdaGrad (Duchi et al. 2011): the gradients of all facts are large in the same few entries of a
    hidden state, and δs that share a direction add up in the weights (docs/architecture.md).
    """

    enough = 7e-2  # further down δ becomes no better, only the way longer
    narrows = True
    most = 15  # by then a step is a thirtieth of the radius

    def __init__(self, delta: Tensor, lr: float) -> None:
        super().__init__(delta, lr)
        self._square = torch.zeros_like(delta)

    def _stride(self, rows: Tensor, gradient: Tensor, longest: Tensor) -> Tensor:
        unit = _unit(gradient)
        self._square[rows] += unit * unit
        share = _STRIDE / _DECAY * self._powers(_DECAY, rows, gradient)
        least = _LEAST / gradient.shape[-1] ** 0.5
        return share.to(longest) * longest * _unit(unit / (self._square[rows].sqrt() + least))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


OPTIMISERS: Mapping[str, type[Optimiser]] = {NORMALISED: Normalised, ADAM: Adam}
