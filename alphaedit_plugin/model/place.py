"""Where a weight is in a model: the modules that lead to it, and what its own module holds."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any
from weakref import ref

from torch import nn

_IN_FRONT = ("forward", "weight")
"""Attributes that, set on the module itself, are used instead of its class's or of its Parameter."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def leading(model: nn.Module, modules: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """For each of `modules`, the modules of `model` that lead to it."""
    parents: dict[nn.Module, list[nn.Module]] = {}
    for parent in model.modules():
        for child in parent.children():
            parents.setdefault(child, []).append(parent)

    def above(module: nn.Module) -> list[nn.Module]:
        found: dict[nn.Module, None] = {}
        waiting = [module]
        while waiting:
            new = [parent for parent in parents.get(waiting.pop(), []) if parent not in found]
            found.update(dict.fromkeys(new))
            waiting += new
        return list(found)

    return [above(module) for module in modules]


class Place:
    """One module in a model, as it was when this was made: the steps that lead to it, and by what it computes.

    It keeps no module alive.
    """

    def __init__(self, module: nn.Module, parents: Sequence[nn.Module]) -> None:
        self._module, self._class = ref(module), type(module)
        on_the_way = {module, *parents}
        self._steps = [
            (ref(parent), key, ref(child))
            for parent in parents
            for key, child in parent._modules.items()
            if child in on_the_way
        ]
        self._in_front = {name: vars(module).get(name) for name in _IN_FRONT}
        self._hooks = {name: list(vars(module)[name]) for name in _HOOKS}

    @property
    def module(self) -> nn.Module | None:
        """None if it is gone, or was never complete (a copy that failed)."""
        module = self._module()
        return module if module is not None and "_parameters" in vars(module) else None

    def copied(self, memo: Mapping[int, Any]) -> Place | None:
        """The same place in a copy; None if the module has none. `memo` is that of `copy.deepcopy`: id → copy."""
        if id(self._module()) not in memo:
            return None
        place = copy.copy(self)
        place._module = ref(memo[id(self._module())])
        place._steps = [
            (ref(memo[id(parent())]), key, ref(memo[id(child())]))
            for parent, key, child in self._steps
            if id(parent()) in memo and id(child()) in memo
        ]
        place._in_front = {name: memo.get(id(value), value) for name, value in self._in_front.items()}
        return place

    def change(self) -> str | None:
        """What has become of the module, as far as that decides which weight the model uses; None if nothing has."""
        for parent, key, child in self._steps:
            above = parent()
            if above is None or "_modules" not in vars(above):
                continue
            now = above._modules.get(key)
            if now is None or now is not child():
                return f"was replaced (there is now {'nothing' if now is None else f'a {type(now).__name__}'})"
        module = self.module
        if module is None:
            return None
        if type(module) is not self._class:
            return f"was made a {type(module).__name__}"
        if "weight" not in module._parameters:
            return "has got a weight that is computed in every forward pass"
        for name, before in self._in_front.items():
            if vars(module).get(name) is not before:
                return f"has got another `{name}`"
        if any(list(vars(module)[name]) != before for name, before in self._hooks.items()):
            return "has got other hooks than before"
        return None


class Arrangement:
    """How a module stands in a model.

    Invariant: after `put_back` the same modules lead to the same module, of the same class, which holds the same
    objects (Parameters, buffers, hooks) in the same order. The numbers in its tensors are not its business.
    """

    def __init__(self, module: nn.Module, parents: Sequence[nn.Module]) -> None:
        self._module, self._class = module, type(module)
        self._children = [(parent, parent._modules, dict(parent._modules)) for parent in parents]
        self._attributes = dict(vars(module))
        self._tables = [(table, dict(table)) for table in self._attributes.values() if isinstance(table, dict)]

    def put_back(self) -> None:
        for parent, children, before in self._children:
            _refill(children, before)
            vars(parent)["_modules"] = children  # a ModuleList that loses a block makes itself another dict
        for table, before in self._tables:
            _refill(table, before)
        if type(self._module) is not self._class:
            self._module.__class__ = self._class
        _refill(vars(self._module), self._attributes)


def _refill(table: MutableMapping[str, Any], before: MutableMapping[str, Any]) -> None:
    """`table` holds what it held before, in that order; it stays the same object, for hooks' handles know it."""
    same = list(table) == list(before) and all(table[key] is value for key, value in before.items())
    if not same:
        table.clear()
        table.update(before)
