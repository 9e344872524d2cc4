"""The projection hook: while it is active, all writes to a guarded weight stay in the null space."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GuardError, ModelStructureError, NullSpaceError
from ..model.decoder import Decoder, OutProjection
from ..model.place import Place
from ..restoring import restoring
from .null_spaces import NullSpaces
from .projection import NullSpace

_plain = torch._C.DisableTorchFunctionSubclass
_data_of = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_entering = threading.Lock()
"""Held while a guard looks whether a weight is free, and takes it."""


class _Guard:
    """Keeps one tensor W at W_start + ΔP.

    Invariant, whenever the tensor is next used: W − W_start lies in the null space. Every in-place operation, through
    any view, advances the tensor's version counter; the counter is read around every operation that takes the tensor,
    so a write is noticed. `.data` returns an alias that shares the counter, so writes through it are noticed too. Only
    a write that leaves no trace (through a raw pointer, or by a Parameter that replaces the guarded one) waits until
    the guard ends.
    """

    def __init__(
        self,
        tensor: Tensor,
        null_space: NullSpace,
        transposed: bool,
        start: Tensor | None = None,
    ) -> None:
        self.tensor = tensor
        self.null_space = null_space
        self.transposed = transposed
        self.start = tensor.detach().clone() if start is None else start
        self.plain_type, self.requires_grad = type(tensor), tensor.requires_grad
        self.copies: list[_Guard] = []
        self._home = tensor.detach()
        self._remember()

    def watch(self) -> None:
        """From now on every operation on the tensor enforces the guard, until `release`."""
        self.tensor.__class__ = _guarded_type(self)

    def _remember(self) -> None:
        self.version, self.pointer = self.tensor._version, self.tensor.data_ptr()

    def projected(self, value: Tensor) -> Tensor:
        """W_start + (value − W_start)P, in the tensor's type; Δ is projected in float32 and rounded once."""
        if value.shape != self.start.shape:
            raise GuardError(
                f"a guarded weight of shape {tuple(self.start.shape)} was replaced by one of shape {tuple(value.shape)}"
            )
        start = self.start.to(value.device)
        work = torch.promote_types(value.dtype, torch.float32)
        delta = value.to(work) - start.to(work)
        delta = self.null_space.project(delta.T).T if self.transposed else self.null_space.project(delta)
        return (start.to(work) + delta).to(value.dtype)

    def enforce(self) -> None:
        """Project what was written since the last call. Call with torch functions disabled."""
        tensor = self.tensor
        if tensor._version == self.version and tensor.data_ptr() == self.pointer:
            return
        self.project_now()

    def project_now(self) -> None:
        with torch.no_grad():
            value = self.tensor.detach()
            if self.tensor.data_ptr() != self.pointer:
                # `w.data = x`: x belongs to the caller, and must not change.
                _set_data(self.tensor, self.projected(value))
            else:
                value.copy_(self.projected(value))
        self._remember()

    def restore(self) -> None:
        """Put W_start back, exactly, and in its own memory, unless the model has moved to another device."""
        tensor, home = self.tensor, self._home
        with torch.no_grad():
            moved = tensor.device != home.device and (tensor.shape, tensor.dtype) == (home.shape, home.dtype)
            if not moved:
                _set_data(tensor, home)
            tensor.detach().copy_(self.start)
        if tensor.is_leaf:
            tensor.requires_grad_(self.requires_grad)

    def release(self) -> None:
        """Make the tensor an ordinary one again."""
        self.tensor.__class__ = self.plain_type
        for copy in reversed(self.copies):
            copy.release()

    def everyone(self) -> Iterator[_Guard]:
        yield self
        for copy in self.copies:
            yield from copy.everyone()


def _guarded_type(guard: _Guard) -> type:
    """A subclass of the tensor's own type, for this one tensor while the guard lasts.

    Changing the type of the object, rather than the object, keeps its identity for optimisers, tied modules and
    accelerate's hooks.
    """

    class Guarded(guard.plain_type):  # type: ignore[name-defined,misc]
        _guard = guard

        @classmethod
        def __torch_function__(
            cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            with _plain():
                guards = (guard,) if len(types) == 1 else [t._guard for t in types if hasattr(t, "_guard")]
                for each in guards:
                    each.enforce()
                # .data would hand out an alias with a version counter of its own.
                result = args[0].detach() if func == _data_of else func(*args, **(kwargs or {}))
                for each in guards:
                    each.enforce()
                return result

        def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
            """A copy is guarded too: some editors copy the model first and edit the copy."""
            if id(self) in memo:
                return memo[id(self)]
            with _plain():
                guard.enforce()
                copied = self.detach().clone()
                if issubclass(guard.plain_type, nn.Parameter):
                    copied = guard.plain_type(copied, requires_grad=self.requires_grad)
                memo[id(self)] = copied
                copy = _Guard(copied, guard.null_space, guard.transposed, guard.start)
                guard.copies.append(copy)
                copy.watch()
                return copied

    Guarded.__name__ = Guarded.__qualname__ = guard.plain_type.__name__
    return Guarded


@restoring
def guard(
    model: nn.Module | Decoder, null_spaces: NullSpaces | Mapping[int, NullSpace], *, check_model: bool = True
) -> Iterator[None]:
    """Keep every write to the guarded out-projections inside their null spaces.

    Inside the block, each in-place write to a weight in `null_spaces` becomes W ← W_start + (W_new − W_start)P, with
    W_start the weight at the start of the block. Because the change is measured from W_start, this is idempotent, and
    writing W_start back restores it exactly. An editor's own loop sees the projected weights. The guard works with any
    editor, on Linear and Conv1D, in float32, bfloat16 and float16 (there Δ is rounded once, to the weight's precision),
    with tied weights, with accelerate's dispatch hooks, and in copies of the model. Layers that share one weight are
    guarded together or not at all; P then projects onto what their null spaces have in common.

    Inside the block, make a new Parameter from `w.detach()`: torch refuses to make one from a guarded `w`. One that
    replaces a guarded `w` is projected when the block ends; a copy of the model that is made in between holds it
    unprojected.

    When the block ends, writes that bypassed the hook are projected as well. If the block raises, or leaves something
    that cannot be projected (a weight that is not finite, a module that was replaced or wrapped, a weight that is now
    computed), every guarded weight returns to W_start, and its module to its place, its hooks and its Parameter.

    `check_model=False` attaches null spaces to a model other than the one they were made from: use it for the second
    and later batches, when the model has been edited already.

    Two things differ from unguarded torch. A write through an alias (`v = w.data`) is projected only when `w` itself is
    next used. Writing through `.data` between a forward pass and its backward pass is an error, like any other in-place
    write there.

    Raises WrongModelError, ModelStructureError (weights that are computed, or shared with a layer that is not guarded)
    or GuardError (nested guards, also another thread's; null spaces of one shared weight with nothing in common) before
    anything is touched, and GuardError at the end if what the block left cannot be projected.
    """
    decoder = guarded_decoder(model, null_spaces)
    projections = decoder.out_projections(list(null_spaces), together=True)
    _check_free(projections)
    for layer, projection in projections.items():
        if projection.d_in != null_spaces[layer].d_in:
            raise ModelStructureError(
                f"{projection.name} has d_in {projection.d_in}, its null space {null_spaces[layer].d_in}: it belongs "
                "to another model"
            )
    spaces = _common(projections, null_spaces)
    if check_model and isinstance(null_spaces, NullSpaces):
        null_spaces.check(decoder)

    places: list[Place] = []
    guards: dict[int, _Guard] = {}
    handles = []
    try:
        with _entering:
            _check_free(projections)
            places += Place.all_of(decoder.given, [projection.module for projection in projections.values()])
            for layer, projection in projections.items():
                tensor = projection.stored
                same = next((known for known in guards.values() if known.tensor is tensor), None)
                if same is not None:
                    guards[layer] = same
                    continue
                guards[layer] = _Guard(tensor, spaces[layer].to(tensor.device), projection.transposed)
                if projection.module.weight is tensor:
                    guards[layer].watch()
                else:
                    # accelerate makes Parameters of this tensor, so its type must stay; look before each forward.
                    handles.append(projection.module.register_forward_pre_hook(_Look(guards[layer])))
        yield
        with _plain():
            _finish(projections, places, guards)
    except BaseException:
        with _plain():
            for place in places:
                place.put_back()
            for guard_ in guards.values():
                for each in guard_.everyone():
                    each.restore()
        raise
    finally:
        for handle in handles:
            handle.remove()
        for guard_ in reversed(guards.values()):
            guard_.release()


@restoring
def guards(
    null_spaces: Mapping[Decoder, NullSpaces | Mapping[int, NullSpace]], *, check_model: bool = True
) -> Iterator[None]:
    """`guard` for each of several kinds of out-projection, by the decoder that finds them."""
    if not null_spaces:
        yield
        return
    (decoder, spaces), *others = null_spaces.items()
    with guard(decoder, spaces, check_model=check_model), guards(dict(others), check_model=check_model):
        yield


def guarded_decoder(model: nn.Module | Decoder, null_spaces: NullSpaces | Mapping[int, NullSpace]) -> Decoder:
    """`model`, with its out-projections where `null_spaces` were made."""
    template = null_spaces.provenance.get("template") if isinstance(null_spaces, NullSpaces) else None
    return Decoder.of(model, template)


class _Look:
    """A forward pre-hook that enforces a guard."""

    def __init__(self, guard_: _Guard) -> None:
        self._guard = guard_

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        self._guard.enforce()


def is_guarded(projection: OutProjection) -> bool:
    """Whether a guard is active on this weight."""
    holders = (type(projection.stored), *projection.module._forward_pre_hooks.values())
    return any(hasattr(holder, "_guard") for holder in holders)


def _check_free(projections: Mapping[int, OutProjection]) -> None:
    for projection in projections.values():
        if is_guarded(projection):
            raise GuardError(
                f"{projection.name} is guarded already: leave the outer guard (or the other thread's) before entering "
                "another"
            )


def _common(projections: Mapping[int, OutProjection], null_spaces: Mapping[int, NullSpace]) -> Mapping[int, NullSpace]:
    """layer → null space; for layers that share one weight, what their null spaces have in common."""
    found = dict(null_spaces)
    sharing: dict[int, list[int]] = {}
    for layer, projection in projections.items():
        sharing.setdefault(projection.stored.data_ptr(), []).append(layer)
    for layers in sharing.values():
        if len(layers) == 1:
            continue
        named = f"layers {', '.join(map(str, layers))} share one weight"
        tensors = {id(projections[layer].stored) for layer in layers}
        if len(tensors) > 1 or len({projections[layer].transposed for layer in layers}) > 1:
            raise GuardError(f"{named}, but not one Parameter: tie them, or give each its own")
        try:
            common = NullSpace.intersection([null_spaces[layer] for layer in layers])
        except NullSpaceError as failure:
            raise GuardError(
                f"{named}, and no direction is null in all of them: choose a larger null space, or one layer's own "
                "weight"
            ) from failure
        found.update(dict.fromkeys(layers, common))
    return found


def _finish(projections: Mapping[int, OutProjection], places: list[Place], guards: Mapping[int, _Guard]) -> None:
    """Project what the hook could not see, and accept the result only if it is finite."""
    current: dict[int, Tensor] = {}
    for (layer, projection), place in zip(projections.items(), places, strict=True):
        if (change := place.change()) is not None:
            raise GuardError(f"{projection.name} {change} inside the guard, which cannot project that; it is undone")
        try:
            current[layer] = projection.stored
        except ModelStructureError as failure:
            raise GuardError(f"inside the guard a weight was replaced: {failure}") from failure
        if current[layer].shape != guards[layer].start.shape:
            raise GuardError(f"{projection.name}.weight was replaced by one of shape {tuple(current[layer].shape)}")
        for other, tensor in current.items():
            if tensor.data_ptr() == current[layer].data_ptr() and guards[other] is not guards[layer]:
                raise GuardError(f"inside the guard {projection.name}.weight was tied to that of layer {other}")
    for layer, projection in projections.items():
        guard_, tensor = guards[layer], current[layer]
        for each in guard_.everyone():
            each.project_now()
        if tensor is not guard_.tensor:
            with torch.no_grad():
                tensor.detach().copy_(guard_.projected(tensor.detach()))
        if not torch.isfinite(tensor.detach()).all():
            raise GuardError(f"the edit left {projection.name}.weight with values that are not finite; it is undone")
