"""Whether a word can be the name of a method, told without importing torch."""

from __future__ import annotations

import difflib
import re

from ..errors import HyperparameterError

_NAMES = ("rome", "memit", "memit-seq", "rect", "prune", "alphaedit")


def check_method(name: str) -> None:
    """Raises HyperparameterError for a name that no method of ours begins with; it names the nearest.

    A contender such as `easyedit:FT`, `my_editor.py:edit` or `package.module:edit` passes: the comparison checks it.
    """
    head = re.split(r"[@+]", name, maxsplit=1)[0].strip().lower()
    if ":" in head:
        return
    try:
        from ..editors.registry import check_names
    except ImportError:  # until the registry of methods is there
        if head not in _NAMES:
            near = difflib.get_close_matches(head, _NAMES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {', '.join(_NAMES)}"
            raise HyperparameterError(f"no method {name}{hint}") from None
    else:
        check_names(name)
