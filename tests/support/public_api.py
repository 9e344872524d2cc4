"""The public API as text, a line for each name and for each public attribute of its classes.

`python tests/support/public_api.py > tests/data/public_api.txt` after a change that is meant.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import alphaedit_plugin


def described() -> Iterator[str]:
    for name in sorted(alphaedit_plugin.__all__):
        yield from _lines(name, getattr(alphaedit_plugin, name))


def _lines(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        return
    yield f"class {name}{_signature(value)}" if not issubclass(value, Exception) else f"class {name}"
    ours = [base for base in reversed(inspect.getmro(value)) if base.__module__.startswith(alphaedit_plugin.__name__)]
    for attribute, found in sorted({name: each for base in ours for name, each in vars(base).items()}.items()):
        if attribute.startswith("_"):
            continue
        if isinstance(found, property):
            yield f"    {name}.{attribute}: property"
        elif callable(found) or isinstance(found, classmethod | staticmethod):
            yield f"    {name}.{attribute}{_signature(getattr(value, attribute))}"


def _signature(value: Any) -> str:
    """Names, kinds and defaults; no annotations, which say the same in more ways than one."""
    signature = inspect.signature(value)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_default(parameter))
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(parameter: inspect.Parameter) -> Any:
    """A default as it is written, where its repr would differ from process to process."""
    if parameter.default is parameter.empty:
        return parameter.empty
    text = repr(parameter.default)
    return _Shown("…") if " at 0x" in text or "<" in text else _Shown(text)


if __name__ == "__main__":
    print("\n".join(described()))
