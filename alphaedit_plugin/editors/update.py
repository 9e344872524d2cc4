"""What an editor writes: an update in factors, and what may change it before it reaches the weight."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import EditError
from ..model.decoder import OutProjection
from ..model.gradients import gradients
from ..model.precision import compact
from ..nullspace.guard import is_guarded
from ..nullspace.projection import NullSpace
from .registry import Modifier

_ROWS = 512
Derived = TypeVar("Derived")
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Update:
    """Δ = left rightᵀ of one layer, with left d_out × r and right d_in × r, in the weight's precision or float32."""

    layer: int
    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        """Always store one memory layout, so that writing an update again gives the same bits."""
        object.__setattr__(self, "left", compact(self.left))
        object.__setattr__(self, "right", compact(self.right))

    def dense(self) -> Tensor:
        """Δ, d_out × d_in, float64."""
        return self.left.to(torch.float64) @ self.right.to(torch.float64).T

    @classmethod
    def of(cls, layer: int, delta: Tensor) -> Update:
        """A dense Δ, d_out × d_in, as an update with the identity as one factor: `dense` gives the same numbers."""
        identity = torch.eye(min(delta.shape), dtype=delta.dtype, device=delta.device)
        return cls(layer, *((identity, delta.T) if delta.shape[0] <= delta.shape[1] else (delta, identity)))


@dataclass(frozen=True)
class Site:
    """The weight that an update goes into; read-only.

    `weight` is the current W, `base` is W before the first edit, both d_out × d_in in the model's precision. `derived`
    is what was derived from the base before, for `of_base`.
    """

    layer: int
    weight: Tensor
    base: Tensor
    null_space: NullSpace | None = None
    derived: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def of_base(self, derive: Callable[..., Derived], *settings: Hashable) -> Derived:
        """derive(base, *settings), computed once for all updates of a layer, as the base never changes.

        Treat the result as read-only. `derive` must depend on nothing else: a plain function of a module.
        """
        key = (self.layer, derive, *settings)
        if key not in self.derived:
            self.derived[key] = derive(self.base, *settings)
        found: Derived = self.derived[key]
        return found


@dataclass(frozen=True)
class Write:
    """Writes an update into a weight, as W + Δ: first the modifiers change it, in order, then it is projected.

    Both happen before the next layer measures what is left to do. Invariant: the same Write of the same Update into the
    same weight gives the same bits, so a history of updates can be replayed. Modifiers see `null_spaces`; the result is
    projected onto them only with `projects`. `base` is W before the first edit, by layer; by default the current
    weight.

    With `between`, what a call asks for and does not write (because modifiers, the projection or the weight's precision
    took it) passes these modifiers, and is asked for again by the next call: it is in `owed`, d_out × d_in by layer,
    which such a call needs and brings up to date. Then `owed` belongs to the invariant: of the weight and it.
    """

    modifiers: Sequence[Modifier] = ()
    projects: bool = False
    null_spaces: Mapping[int, NullSpace] = field(default_factory=dict)
    base: Mapping[int, Tensor] = field(default_factory=dict)
    between: Sequence[Modifier] = ()
    _derived: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def in_factors(self) -> bool:
        """Whether a call returns exactly the update that it wrote."""
        return not self.between and all(modifier.in_factors for modifier in self.modifiers)

    @property
    def again(self) -> Write:
        """The Write that repeats a call exactly, given the update that the call returned."""
        return Write() if self.in_factors else self

    @gradients(False)
    def __call__(
        self, projection: OutProjection, update: Update, owed: MutableMapping[int, Tensor] | None = None
    ) -> Update:
        """Write. Returns the update as it was written or, if that is not in factors, as it was given.

        Raises EditError if a modifier returns something that is no Δ of this layer, or if the weight does not hold
        what was written to it.
        """
        if not self.between:
            return self._write(projection, update, update)
        if owed is None:
            raise EditError("what earlier updates did not write is needed: pass `owed`, an empty dict at the beginning")
        weight, layer = projection.matrix, update.layer
        before, asked = weight.to(torch.float64, copy=True), update.dense()
        if layer in owed:
            asked += owed[layer]
        self._write(projection, update, asked)
        left: Update | Tensor = asked - (projection.matrix.to(before) - before)
        for modifier in self.between:
            left = modified(left, self._site(projection, layer), modifier)
        left = left.dense() if isinstance(left, Update) else left
        owed[layer] = left.to(torch.promote_types(weight.dtype, torch.float32))
        return update

    def _site(self, projection: OutProjection, layer: int) -> Site:
        derived = self._derived if layer in self.base else {}  # of the current weight nothing lasts
        weight = projection.matrix
        return Site(layer, weight, self.base.get(layer, weight), self.null_spaces.get(layer), derived)

    def _write(self, projection: OutProjection, update: Update, change: Update | Tensor) -> Update:
        """Write the change; returns it if it is in factors, else the `update` that it stands for."""
        weight, layer = projection.matrix, update.layer
        space = self.null_spaces[layer] if self.projects else None
        site = self._site(projection, layer)
        for modifier in self.modifiers:
            change = modified(change if isinstance(change, Update) else Update.of(layer, change), site, modifier)
        if isinstance(change, Tensor):
            _read_back(projection, _add(weight, change if space is None else space.project(change)))
            return update
        if space is not None:
            change = Update(layer, change.left, space.project(change.right.T).T)
        right = change.right.to(torch.float64)
        written = 0
        for row in range(0, len(weight), _ROWS):  # in blocks: a dense float64 Δ is larger than the weight
            part = slice(row, row + _ROWS)
            written += _add(weight[part], change.left[part].to(torch.float64) @ right.T)
        _read_back(projection, written)
        return change if self.in_factors else update


def modified(change: Update | Tensor, site: Site, modifier: Modifier) -> Update | Tensor:
    """The change after the modifier. Raises EditError if that is no Δ of this layer."""
    found = modifier.function(change, site)
    if isinstance(found, Update):
        shape, fits = (len(found.left), len(found.right)), found.layer == site.layer
    else:
        shape, fits = tuple(getattr(found, "shape", ())), isinstance(found, Tensor) and not modifier.in_factors
    if not fits or shape != tuple(site.weight.shape):
        wanted = "an Update" if modifier.in_factors else "an Update or a Tensor"
        raise EditError(
            f"the modifier {modifier.name} must return {wanted} of layer {site.layer}, {len(site.weight)} × "
            f"{site.weight.shape[1]}: it returned {type(found).__name__} {' × '.join(map(str, shape))}"
        )
    return found


def ended(accumulated: Tensor, site: Site, modifiers: Sequence[Modifier]) -> Tensor:
    """ΔW after the modifiers that act at the end, d_out × d_in in float64; the same object if they do nothing."""
    for modifier in modifiers:
        change = modified(accumulated, site, modifier)
        accumulated = change.dense() if isinstance(change, Update) else change
    return accumulated


def _add(weight: Tensor, delta: Tensor) -> int:
    """W + Δ, in float32 or better, rounded once. Returns the checksum of what was written."""
    work = torch.promote_types(weight.dtype, torch.float32)
    new = (weight.to(work) + delta.to(weight.device, work)).to(weight.dtype)
    weight.copy_(new)
    return _checksum(new)


def _checksum(weight: Tensor) -> int:
    """The sum of the entries' bits: a second copy to compare with would cost as much memory as the weight."""
    return int(weight.view(_BITS[weight.itemsize]).sum())


def _read_back(projection: OutProjection, written: int) -> None:
    """Raises EditError unless the module's weight, asked for again, is what was written.

    A guarded weight is not: the guard projects it before it is next used.
    """
    if not is_guarded(projection) and _wrapped(_checksum(projection.matrix)) != _wrapped(written):
        raise EditError(
            f"what was written to {projection.name}.weight is not there: {type(projection.module).__name__} makes its "
            "weight anew whenever it is asked for it. Give it an ordinary parameter first"
        )


def _wrapped(checksum: int) -> int:
    """Modulo 2⁶⁴, in which torch counts."""
    return checksum % 2**64
