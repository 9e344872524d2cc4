"""What of EasyEdit is changed while the plug-in is installed, and how it is put back."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..baselines.edition import PACKAGE
from ..baselines.methods import ADDED, COVERED, check_covered
from .added import added_methods
from .flag import Options
from .flagged import constrained
from .undoable import put, set_attribute


class Adapter:
    """Changes EasyEdit's hyperparameter classes, its table of methods and its list of batchable ones.

    Invariant: `detach` undoes all that `attach` did, and nothing else.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Call when `easyeditor` has been imported."""
        package = importlib.import_module(PACKAGE)
        # Not by attribute: after the import, `easyeditor.util` is the module of another package.
        hyperparams = importlib.import_module(f"{PACKAGE}.util.hparams").HyperParams
        table = importlib.import_module(f"{PACKAGE}.util.alg_dict").ALG_DICT
        batchable = importlib.import_module(f"{PACKAGE}.editors.batch_editor").BatchEditor

        for cls in (hyperparams, *_subclasses(hyperparams)):
            self._understand_flag(cls)
        self._set(hyperparams, "null_space", _Flag())
        for name in COVERED.keys() & table.keys():
            self._put(table, name, constrained(name, table[name]))

        lacking = [name for name in ADDED if name not in table]
        for name, (cls, apply) in added_methods(lacking).items():
            self._put(table, name, apply)
            self._set(package, cls.__name__, cls)
        in_batches = batchable.is_batchable_method

        def is_batchable_method(alg_name: str) -> bool:
            return alg_name in lacking or in_batches(alg_name)

        self._set(batchable, "is_batchable_method", staticmethod(is_batchable_method))

    def detach(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _understand_flag(self, cls: type) -> None:
        """`cls(null_space=…)`; `replace` hands the flag on and `asdict` shows it."""
        for ours in _FIELDS:
            if "__dataclass_fields__" in vars(cls):
                self._put(cls.__dataclass_fields__, ours.name, ours)  # type: ignore[attr-defined]
        if "__init__" not in vars(cls):
            return
        original = cls.__init__  # type: ignore[misc]

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, null_space: Any = None, **others: Any) -> None:
            original(self, *args, **others)
            self.null_space = null_space

        self._set(cls, "__init__", __init__)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append(set_attribute(owner, name, value))

    def _put(self, table: dict[str, Any], key: str, value: Any) -> None:
        self._undo.append(put(table, key, value))


class _Flag:
    """The attribute `null_space`: a value is checked when it is set, and kept as given."""

    def __get__(self, hparams: Any, owner: type | None = None) -> Any:
        return None if hparams is None else vars(hparams).get("null_space")

    def __set__(self, hparams: Any, value: Any) -> None:
        given = Options.parse(value, type(hparams).__name__)
        # A class derived while we are installed sets its fields in an order of its own: alg_name may be yet to come.
        underway = not hasattr(hparams, "alg_name") and "alg_name" in type(hparams).__dataclass_fields__
        if given is not None and not underway:
            check_covered(hparams)
            given.check_method(hparams.alg_name)
        vars(hparams)["null_space"] = value

    def __delete__(self, hparams: Any) -> None:
        vars(hparams).pop("null_space", None)


@dataclass
class _Ours:
    """The field that we add to every hyperparameter class; keyword-only, so that derived classes may add fields."""

    null_space: Any = field(default=None, kw_only=True)


_FIELDS = tuple(_Ours.__dataclass_fields__.values())


def _subclasses(cls: type) -> Iterator[type]:
    each: type
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)
