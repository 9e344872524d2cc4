"""The projection hook: while it is active, all writes to a guarded weight stay in the null space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GuardError, ModelStructureError
from ..model.decoder import Decoder, OutProjection
from .null_spaces import NullSpaces
from .projection import NullSpace

_plain = torch._C.DisableTorchFunctionSubclass
_data_of = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]


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
        *,
        swap: bool = True,
    ) -> None:
        self.tensor = tensor
        self.null_space = null_space
        self.transposed = transposed
        self.start = tensor.detach().clone() if start is None else start
        self.plain_type = type(tensor)
        self.copies: list[_Guard] = []
        self._remember()
        if swap:
            tensor.__class__ = _guarded_type(self)

    def _remember(self) -> None:
        self.version, self.pointer = self.tensor._version, self.tensor.data_ptr()

    def projected(self, value: Tensor) -> Tensor:
        """W_start + (value − W_start)P, in the tensor's type; Δ is projected in float32 and rounded once."""
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
        """Put W_start back, exactly."""
        with torch.no_grad():
            if self.tensor.shape == self.start.shape and self.tensor.dtype == self.start.dtype:
                self.tensor.detach().copy_(self.start)
            else:  # `w.data = x` with another shape or type
                _set_data(self.tensor, self.start.clone())

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
                guard.copies.append(_Guard(copied, guard.null_space, guard.transposed, guard.start))
                return copied

    Guarded.__name__ = Guarded.__qualname__ = guard.plain_type.__name__
    return Guarded


@contextmanager
def guard(
    model: nn.Module | Decoder, null_spaces: NullSpaces | Mapping[int, NullSpace], *, check_model: bool = True
) -> Iterator[None]:
    """Keep every write to the guarded out-projections inside their null spaces.

    Inside the block, each in-place write to a weight in `null_spaces` becomes W ← W_start + (W_new − W_start)P, with
    W_start the weight at the start of the block. Because the change is measured from W_start, this is idempotent, and
    writing W_start back restores it exactly. An editor's own loop sees the projected weights. The guard works with any
    editor, on Linear and Conv1D, in float32, bfloat16 and float16 (there Δ is rounded once, to the weight's precision),
    with tied weights, with accelerate's dispatch hooks, and in copies of the model.

    Inside the block, make a new Parameter from `w.detach()`: torch refuses to make one from a guarded `w`.

    When the block ends, writes that bypassed the hook are projected as well. If the block raises, or leaves a weight
    that is not finite, every guarded weight returns to W_start.

    `check_model=False` attaches null spaces to a model other than the one they were made from: use it for the second
    and later batches, when the model has been edited already.

    Two things differ from unguarded torch. A write through an alias (`v = w.data`) is projected only when `w` itself is
    next used. Writing through `.data` between a forward pass and its backward pass is an error, like any other in-place
    write there.

    Raises WrongModelError, ModelStructureError or GuardError (nested guards) before anything is touched, and GuardError
    at the end if a weight is not finite or was replaced by one of another shape.
    """
    decoder = guarded_decoder(model, null_spaces)
    projections = decoder.out_projections(list(null_spaces))
    for layer, projection in projections.items():
        if is_guarded(projection):
            raise GuardError(f"{projection.name} is guarded already: leave the outer guard before entering another")
        if projection.d_in != null_spaces[layer].d_in:
            raise ModelStructureError(
                f"{projection.name} has d_in {projection.d_in}, its null space {null_spaces[layer].d_in}: it belongs "
                "to another model"
            )
    if check_model and isinstance(null_spaces, NullSpaces):
        null_spaces.check(decoder)

    guards: dict[int, _Guard] = {}
    handles = []
    try:
        for layer, projection in projections.items():
            tensor, space = projection.stored, null_spaces[layer]
            offloaded = projection.module.weight is not tensor
            guards[layer] = _Guard(tensor, space.to(tensor.device), projection.transposed, swap=not offloaded)
            if offloaded:
                # accelerate makes Parameters of this tensor, so its type must stay; look before each forward instead.
                handles.append(projection.module.register_forward_pre_hook(_Look(guards[layer])))
        yield
        with _plain():
            _finish(projections, guards)
    except BaseException:
        with _plain():
            for layer, guard_ in guards.items():
                _roll_back(projections[layer], guard_)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for guard_ in reversed(guards.values()):
            guard_.release()


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


def _finish(projections: Mapping[int, OutProjection], guards: Mapping[int, _Guard]) -> None:
    """Project what the hook could not see, and accept the result only if it is finite."""
    for layer, projection in projections.items():
        for guard_ in guards[layer].everyone():
            guard_.project_now()
        current = projection.stored
        if current is not guards[layer].tensor:
            if current.shape != guards[layer].start.shape:
                raise GuardError(f"{projection.name}.weight was replaced by one of shape {tuple(current.shape)}")
            with torch.no_grad():
                current.detach().copy_(guards[layer].projected(current.detach()))
        if not torch.isfinite(current.detach()).all():
            raise GuardError(f"the edit left {projection.name}.weight with values that are not finite; it is undone")


def _roll_back(projection: OutProjection, guard_: _Guard) -> None:
    for each in guard_.everyone():
        each.restore()
    current = projection.module.weight
    replaced = current is not guard_.tensor and current.device.type != "meta"
    if replaced and isinstance(guard_.tensor, nn.Parameter):
        projection.module.weight = guard_.tensor
