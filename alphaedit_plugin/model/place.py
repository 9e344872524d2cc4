"""Where a weight is in a model: the modules that lead to it, and what its own module holds."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from torch import nn


class Place:
    """One module in a model, as it was when this was made.

    Invariant: after `put_back` the same modules lead to the same module, of the same class, which holds the same
    objects (Parameters, buffers, hooks) in the same order. The numbers in its tensors are not its business.
    """

    def __init__(self, module: nn.Module, leading: Iterable[nn.Module]) -> None:
        self.module, self._class = module, type(module)
        parents = list(leading)
        on_the_way = {id(each) for each in (module, *parents)}
        self._way = [
            (parent, key, child)
            for parent in parents
            for key, child in parent._modules.items()
            if id(child) in on_the_way
        ]
        self._children = [(parent, parent._modules, dict(parent._modules)) for parent in parents]
        self._attributes = dict(vars(module))
        self._tables = [(table, dict(table)) for table in self._attributes.values() if isinstance(table, dict)]

    @classmethod
    def all_of(cls, model: nn.Module, modules: Iterable[nn.Module]) -> list[Place]:
        """The places of several modules in `model`."""
        parents: dict[nn.Module, list[nn.Module]] = {}
        for parent in model.modules():
            for child in parent.children():
                parents.setdefault(child, []).append(parent)

        def leading(module: nn.Module) -> list[nn.Module]:
            found: dict[nn.Module, None] = {}
            waiting = [module]
            while waiting:
                above = [parent for parent in parents.get(waiting.pop(), []) if parent not in found]
                found.update(dict.fromkeys(above))
                waiting += above
            return list(found)

        return [cls(module, leading(module)) for module in modules]

    def change(self) -> str | None:
        """What has become of the module, as far as that decides which weight the model uses; None if nothing has."""
        for parent, key, child in self._way:
            now = parent._modules.get(key)
            if now is not child:
                return f"was replaced (there is now {'nothing' if now is None else f'a {type(now).__name__}'})"
        if type(self.module) is not self._class:
            return f"was made a {type(self.module).__name__}"
        if "weight" not in self.module._parameters:
            return "has got a weight that is computed in every forward pass"
        return None

    def put_back(self) -> None:
        for parent, children, before in self._children:
            _refill(children, before)
            vars(parent)["_modules"] = children  # a ModuleList that loses a block makes itself another dict
        for table, before in self._tables:
            _refill(table, before)
        if type(self.module) is not self._class:
            self.module.__class__ = self._class
        _refill(vars(self.module), self._attributes)


def _refill(table: MutableMapping[str, Any], before: MutableMapping[str, Any]) -> None:
    """`table` holds what it held before, in that order; it stays the same object, for hooks' handles know it."""
    same = list(table) == list(before) and all(table[key] is value for key, value in before.items())
    if not same:
        table.clear()
        table.update(before)
