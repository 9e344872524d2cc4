"""The projection hook: while it is active, all writes to a guarded weight stay in the null space."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import GuardError, ModelStructureError, NullSpaceError
from ..model.decoder import Decoder, OutProjection
from ..model.gradients import gradients
from ..model.place import Arrangement, Place, leading
from ..model.wrappers import unwrapped
from ..restoring import restoring
from .null_spaces import Spaces
from .projection import Allowed, NullSpace

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
        null_space: Allowed,
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
        with gradients(False):
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
        with gradients(False):
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
    model: nn.Module | Decoder, null_spaces: Spaces | Mapping[int, Allowed], *, check_model: bool = True
) -> Iterator[Guarding]:
    """Keep every write to the guarded out-projections inside their null spaces.

    Inside the block, each in-place write to a weight in `null_spaces` becomes W ← W_start + (W_new − W_start)P, with
    W_start the weight at the start of the block. Because the change is measured from W_start, this is idempotent, and
    writing W_start back restores it exactly. An editor's own loop sees the projected weights. The guard works with any
    editor, on Linear and Conv1D, in float32, bfloat16 and float16 (there Δ is rounded once, to the weight's precision),
    with tied weights, with accelerate's dispatch hooks, and in copies of the model. Layers that share one weight are
    guarded together or not at all; P then projects onto what their null spaces have in common.

    Inside the block, make a new Parameter from `w.detach()`: torch refuses to make one from a guarded `w`. One that
    replaces a guarded `w` is projected when the block ends.

    When the block ends, writes that bypassed the hook are projected as well. If the block raises, or leaves something
    that cannot be projected (a weight that is not finite, a module that was replaced or wrapped, a weight that is now
    computed, a hook or a `forward` put on the module), every guarded weight returns to W_start, and its module to its
    place, its hooks and its Parameter.

    All this holds for copies too that `copy.deepcopy` makes inside the block, of the model or of parts of it, as long
    as they exist. A model made in another way (from its class and a state_dict, by pickle) is not known, unless it is
    named: `with guard(…) as guarding: …; guarding.include(other)`.

    In place of null spaces anything may be given that is `Allowed`, such as `LowCurvature`: P is then its projection.

    `check_model=False` attaches null spaces to a model other than the one they were made from: use it for the second
    and later batches, when the model has been edited already.

    Two things differ from unguarded torch. A write through an alias (`v = w.data`) is projected only when `w` itself is
    next used. Writing through `.data` between a forward pass and its backward pass is an error, like any other in-place
    write there.

    Raises WrongModelError, ModelStructureError (weights that are computed, or shared with a layer that is not guarded)
    or GuardError (nested guards, also another thread's; null spaces of one shared weight with nothing in common) before
    anything is touched, and GuardError at the end if what the block left cannot be projected.
    """
    yield from _guarding({guarded_decoder(model, null_spaces): null_spaces}, check_model)


@restoring
def guards(
    null_spaces: Mapping[Decoder, Spaces | Mapping[int, Allowed]], *, check_model: bool = True
) -> Iterator[Guarding]:
    """`guard` for several kinds of out-projection at once, by the decoder that finds them: all is accepted or none."""
    yield from _guarding(null_spaces, check_model)


def _guarding(null_spaces: Mapping[Decoder, Spaces | Mapping[int, Allowed]], check_model: bool) -> Iterator[Guarding]:
    prepared = []
    for decoder, spaces in null_spaces.items():
        projections = decoder.out_projections(list(spaces), together=True)
        _check_free(projections)
        for layer, projection in projections.items():
            if projection.d_in != spaces[layer].d_in:
                raise ModelStructureError(
                    f"{projection.name} has d_in {projection.d_in}, its null space {spaces[layer].d_in}: it belongs "
                    "to another model"
                )
        prepared.append((decoder, projections, _common(projections, spaces)))
        if check_model and isinstance(spaces, Spaces):
            spaces.check(decoder)

    guarding = Guarding()
    try:
        with _entering:
            for each in prepared:
                guarding._take(*each)
        yield guarding
        with _plain():
            guarding._finish()
    except BaseException:
        with _plain():
            guarding._put_back()
        raise
    finally:
        guarding._release()


@dataclass
class _Watched:
    """One guarded out-projection: in the model, and in each copy of it (`copies` keeps none of them alive)."""

    decoder: Decoder
    projection: OutProjection
    place: Place
    arrangement: Arrangement
    guard: _Guard | None = None
    copies: list[Place] = field(default_factory=list)
    handle: RemovableHandle | None = None

    def modules(self) -> set[nn.Module]:
        found = (self.projection.module, *(place.module for place in self.copies))
        return {module for module in found if module is not None}

    def unhook(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            for module in self.modules():
                module._forward_pre_hooks.pop(self.handle.id, None)

    def in_a_copy(self, place: Place) -> OutProjection:
        return replace(self.projection, module=place.module, name=f"a copy's {self.projection.name}")


Held = tuple[_Guard, OutProjection, Tensor]
"""A guard, an out-projection that it holds at the end, and the tensor that is there by then."""


class Guarding:
    """What a guard watches: the out-projections of one model, in that model, its copies, and what `include` adds."""

    def __init__(self) -> None:
        self._all: list[_Watched] = []
        self._included: list[nn.Module] = []

    def include(self, model: Any) -> None:
        """When the block ends, `model`, which was made inside it, is projected and checked like the guarded one.

        A copy that `copy.deepcopy` makes is known already. What is no model, or is a part of a known one, does not
        count.
        """
        if isinstance(model, nn.Module):
            self._included.append(model)

    def _take(self, decoder: Decoder, projections: Mapping[int, OutProjection], spaces: Mapping[int, Allowed]) -> None:
        _check_free(projections)
        ways = leading(decoder.given, [projection.module for projection in projections.values()])
        new = [
            _Watched(decoder, projection, Place(projection.module, way), Arrangement(projection.module, way))
            for projection, way in zip(projections.values(), ways, strict=True)
        ]
        self._all += new
        for each in new:
            projection, tensor = each.projection, each.projection.stored
            vars(projection.module)[_MARK] = _Mark(each.place, each.copies)
            each.guard = next((known.guard for known in new if known.guard and known.guard.tensor is tensor), None)
            if each.guard is not None:
                continue
            space = spaces[projection.layer].to(tensor.device)
            each.guard = _Guard(tensor, space, projection.transposed)
            if projection.module.weight is tensor:
                each.guard.watch()
            else:
                # accelerate makes Parameters of this tensor, so its type must stay; look before each forward.
                each.handle = projection.module.register_forward_pre_hook(_Look(each.guard))

    def _guards(self) -> list[_Guard]:
        return list({id(each.guard): each.guard for each in self._all if each.guard is not None}.values())

    def _finish(self) -> None:
        """Project what no guard could see, and accept the result only if all of it is finite."""
        for each in self._all:
            each.unhook()
        held = [*self._held_by_known(), *self._held_by_included()]
        first: dict[int, Held] = {}
        for guard_, projection, tensor in held:
            other, named, _ = first.setdefault(tensor.data_ptr(), (guard_, projection, tensor))
            if other is not guard_:
                raise GuardError(f"inside the guard {projection.name}.weight was tied to that of {named.name}")
        watched = set()
        for guard_ in self._guards():
            for each_guard in guard_.everyone():
                each_guard.project_now()
                watched.add(id(each_guard.tensor))
        for guard_, projection, tensor in held:
            if id(tensor) not in watched:
                with gradients(False):
                    tensor.detach().copy_(guard_.projected(tensor.detach()))
            if not torch.isfinite(tensor.detach()).all():
                raise GuardError(
                    f"the edit left {projection.name}.weight with values that are not finite; it is undone"
                )

    def _held_by_known(self) -> Iterator[Held]:
        """Of the model and its copies."""
        if any(place.change() for each in self._all for place in each.copies):
            gc.collect()  # nobody needs to answer for a copy that only a cycle of references keeps
        for each in self._all:
            for place in (each.place, *each.copies):
                projection = each.projection if place is each.place else each.in_a_copy(place)
                _check_place(projection, place)
                if place.module is not None:
                    yield _held(each, projection)

    def _held_by_included(self) -> Iterator[Held]:
        for model in self._included:
            parts = set(model.modules())
            if all(not parts.isdisjoint(each.modules()) for each in self._all):
                continue
            for decoder in {each.decoder: None for each in self._all}:
                if model not in set(decoder.given.modules()):
                    yield from self._held_by(model, decoder)

    def _held_by(self, model: nn.Module, like: Decoder) -> Iterator[Held]:
        """The same out-projections in a model that nobody saw being made."""
        try:
            inside = unwrapped(model)
            if not (hasattr(type(inside), "get_output_embeddings") or type(inside) is type(like.model)):
                return
            guarded = {each.projection.layer: each for each in self._all if each.decoder is like}
            found = Decoder(model, like.template).out_projections(list(guarded), together=True)
        except ModelStructureError as failure:
            raise GuardError(
                f"{type(model).__name__}, made inside the guard, does not have the guarded weights: {failure}"
            ) from failure
        for layer, projection in found.items():
            each = guarded[layer]
            there = inside.get_submodule(projection.name)
            projection = replace(projection, name=f"the new model's {projection.name}")
            if type(there) is not type(like.model.get_submodule(each.projection.name)):
                raise GuardError(
                    f"{projection.name} is wrapped (in a {type(there).__name__}), which cannot be projected"
                )
            alike = each.place.copied({id(each.projection.module): projection.module})
            if alike is not None:
                _check_place(projection, alike)
            yield _held(each, projection)

    def _put_back(self) -> None:
        for each in self._all:
            each.arrangement.put_back()
        for guard_ in self._guards():
            for each_guard in guard_.everyone():
                each_guard.restore()

    def _release(self) -> None:
        for each in self._all:
            each.unhook()
            for module in each.modules():
                vars(module).pop(_MARK, None)
        for guard_ in reversed(self._guards()):
            guard_.release()


def _check_place(projection: OutProjection, place: Place) -> None:
    if (change := place.change()) is not None:
        raise GuardError(f"{projection.name} {change} inside the guard, which cannot project that; the edit is undone")


def _held(watched: _Watched, projection: OutProjection) -> Held:
    """Raises GuardError if the tensor that is there cannot be projected."""
    assert watched.guard is not None
    try:
        tensor = projection.stored
    except ModelStructureError as failure:
        raise GuardError(f"inside the guard a weight was replaced: {failure}") from failure
    if tensor.shape != watched.guard.start.shape:
        raise GuardError(f"{projection.name}.weight was replaced by one of shape {tuple(tensor.shape)}")
    return watched.guard, projection, tensor


def guarded_decoder(model: nn.Module | Decoder, null_spaces: Spaces | Mapping[int, Allowed]) -> Decoder:
    """`model`, with its out-projections where `null_spaces` were made."""
    template = null_spaces.provenance.get("template") if isinstance(null_spaces, Spaces) else None
    return Decoder.of(model, template)


class _Look:
    """A forward pre-hook that enforces a guard."""

    def __init__(self, guard_: _Guard) -> None:
        self._guard = guard_

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        self._guard.enforce()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Look:
        return self  # a copy of the module is looked at when the guard ends


_MARK = "_guard_mark"


class _Mark:
    """Lies beside a guarded weight, and so learns of every copy that `copy.deepcopy` makes of its module."""

    def __init__(self, place: Place, copies: list[Place]) -> None:
        self._place, self._copies = place, copies

    def __deepcopy__(self, memo: dict[int, Any]) -> _Mark:
        copied = self._place.copied(memo)
        if copied is None:
            return self  # a copy of the attributes alone
        self._copies.append(copied)
        return _Mark(copied, self._copies)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(None), ()  # a pickled model needs none


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


def _common(projections: Mapping[int, OutProjection], null_spaces: Mapping[int, Allowed]) -> Mapping[int, Allowed]:
    """layer → null space; for layers that share one weight, what their null spaces have in common."""
    found = dict(null_spaces)
    sharing: dict[int, list[int]] = {}
    for layer, projection in projections.items():
        sharing.setdefault(projection.stored.data_ptr(), []).append(layer)
    for layers in sharing.values():
        if len(layers) == 1:
            continue
        named = f"layers {', '.join(map(str, layers))} share one weight"
        one_sided = [space for layer in layers if type(space := null_spaces[layer]) is NullSpace]
        if len(one_sided) < len(layers):
            raise GuardError(f"{named}: its output side cannot be spared too, so give null spaces, and no modifiers")
        tensors = {id(projections[layer].stored) for layer in layers}
        if len(tensors) > 1 or len({projections[layer].transposed for layer in layers}) > 1:
            raise GuardError(f"{named}, but not one Parameter: tie them, or give each its own")
        try:
            common = NullSpace.intersection(one_sided)
        except NullSpaceError as failure:
            raise GuardError(
                f"{named}, and no direction is null in all of them: choose a larger null space, or one layer's own "
                "weight"
            ) from failure
        found.update(dict.fromkeys(layers, common))
    return found
