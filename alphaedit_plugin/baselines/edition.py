"""EasyEdit itself: what it is called, where it comes from, and which edition it is."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from types import ModuleType

from ..errors import CompareError
from .hush import hushed

PACKAGE = "easyeditor"
MISSING = (
    "EasyEdit is neither installed nor on the path. Either edition will do: the current one, by `git clone "
    "https://github.com/zjunlp/EasyEdit`, `pip install -r EasyEdit/requirements.txt` and the checkout on PYTHONPATH; "
    "or that of 2023, which has ROME and MEMIT (see docs/easyedit.md for what it needs), by "
    "`pip install easyeditor==0.0.1.dev0` (on a newer Python with --no-deps)"
)


def easyedit_module(name: str) -> ModuleType:
    """`easyeditor.{name}`, imported: from the checkout that EASYEDIT_HOME names, else from the path.

    Raises CompareError if there is no EasyEdit, or if something that it imports is missing.
    """
    home = os.environ.get("EASYEDIT_HOME")
    places = [home] if home and PACKAGE not in sys.modules else []
    sys.path[:0] = places
    try:
        with hushed():
            importlib.import_module(PACKAGE)
            return importlib.import_module(f"{PACKAGE}.{name}")
    except ImportError as failure:
        if getattr(failure, "name", None) == PACKAGE:
            raise CompareError(f"easyedit: needs EasyEdit. {MISSING}, or a checkout that EASYEDIT_HOME names") from None
        raise CompareError(
            f"EasyEdit cannot be imported: {failure}. It imports all that its requirements.txt lists: install that"
        ) from failure
    finally:
        for place in places:
            sys.path.remove(place)


def edition() -> str:
    """The version of an installed EasyEdit, otherwise "a checkout". EasyEdit must have been imported."""
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"
    same = Path(str(installed.locate_file(PACKAGE))).resolve() == _folder().resolve()
    return installed.version if same else "a checkout"


def source_digest() -> str:
    """SHA-256 of EasyEdit's Python files, in hexadecimal. EasyEdit must have been imported."""
    source = hashlib.sha256()
    for path in sorted(_folder().rglob("*.py")):
        source.update(path.read_bytes())
    return source.hexdigest()


def _folder() -> Path:
    return Path(str(sys.modules[PACKAGE].__file__)).parent
