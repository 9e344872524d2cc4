"""EasyEdit with one more key in its YAML, `null_space`. Importing this module installs it.

    import alphaedit_plugin.easyedit          # before or after easyeditor; or `alphaedit easyedit SCRIPT.py ARGS…`
    from easyeditor import BaseEditor, MEMITHyperParams

    hparams = MEMITHyperParams.from_hparams("llama.yaml")   # which says `null_space: true`, or:
    hparams.null_space = {"threshold": 2e-2, "corpus": "wiki.txt"}
    editor = BaseEditor.from_hparams(hparams)               # every ΔW that it writes is now ΔWP

Without the key nothing changes. This module, and `easyeditor` too, has `RECTHyperParams`, `PRUNEHyperParams` and, for
the edition that lacks it, `AlphaEditHyperParams`. This module itself imports only the standard library, and changes
EasyEdit only when that is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from ..baselines.edition import MISSING, PACKAGE

if TYPE_CHECKING:
    from .adapter import Adapter


def install() -> None:
    """Make EasyEdit understand `null_space`: now if it is imported already, otherwise at its import. Idempotent."""
    finder = _installed()
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    # Only the real package, once imported, has this submodule; a stand-in is left alone.
    if finder.adapter is None and f"{PACKAGE}.util.alg_dict" in sys.modules:
        finder.attach()


def uninstall() -> None:
    """Restore every class and dict of EasyEdit. Idempotent."""
    finder = _installed()
    if finder is not None:
        sys.meta_path.remove(finder)
        if finder.adapter is not None:
            finder.adapter.detach()


def __getattr__(name: str) -> Any:
    """The hyperparameter classes of the methods that EasyEdit lacks. Raises AttributeError for any other name."""
    if not name.endswith("HyperParams"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(PACKAGE), name, None)
    if found is None:
        raise AttributeError(f"neither EasyEdit nor the plug-in has {name} (is the plug-in installed into EasyEdit?)")
    return found


class _Finder(MetaPathFinder):
    """Finds nothing itself: it notices that EasyEdit is being imported."""

    adapter: Adapter | None = None

    def attach(self) -> None:
        from .adapter import Adapter

        if self.adapter is not None:  # EasyEdit was loaded once more
            self.adapter.detach()
        self.adapter = Adapter()
        self.adapter.attach()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        if _somebody_only_asks():
            return None
        raise ModuleNotFoundError(MISSING, name=PACKAGE)


class _Loader(Loader):
    """Runs EasyEdit's own loader, then attaches the adapter."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if _installed() is self._finder:
            self._finder.attach()


def _somebody_only_asks() -> bool:
    """Whether `importlib.util.find_spec` asks, which accepts None as an answer, and not an import."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is importlib.util.find_spec.__code__:
            return True
        frame = frame.f_back
    return False


def _installed() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


install()
