"""The real EasyEdit on this machine: `load()` imports the edition of PyPI, or the checkout that EASYEDIT_HOME names.

Nothing of EasyEdit is changed. What it cannot do without here is lent to it from outside: inert modules for the
multimodal packages, during the import only; and for the edition of PyPI, which knows only CUDA and transformers 4, a
CPU that answers to "cuda", layers that return tuples, and three functions that transformers has dropped.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from torch.overrides import TorchFunctionMode
from transformers.utils import import_utils

HOME = os.environ.get("EASYEDIT_HOME")
NEEDED = ("datasets", "higher", *(() if HOME else ("easyeditor",)))

_MULTIMODAL = frozenset(
    """
    av cv2 einops fairscale hydra iopath matplotlib nltk omegaconf openai PIL pandas qwen_vl_utils regex rouge scipy
    seaborn sentence_transformers sklearn timm torchvision zhipuai
    """.split()  # noqa: SIM905
)


def load() -> ModuleType:
    """`easyeditor`; skips, saying what is missing, where it cannot be had."""
    if "easyeditor" in sys.modules:
        return sys.modules["easyeditor"]
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"the real EasyEdit needs {', '.join(missing)}: see `make install`", allow_module_level=True)
    if HOME:
        if not (Path(HOME) / "easyeditor").is_dir():
            pytest.fail(f"EASYEDIT_HOME is {HOME!r}, which is no checkout of EasyEdit", pytrace=False)
        sys.path.insert(0, HOME)
    for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        if not hasattr(transformers.modeling_utils, name):
            setattr(transformers.modeling_utils, name, None)
    with _stand_ins():
        return importlib.import_module("easyeditor")


def is_head() -> bool:
    """Whether it is the current edition and not that of PyPI."""
    return hasattr(load(), "AlphaEditHyperParams") and HOME is not None


@contextmanager
def on_cpu() -> Iterator[None]:
    """Where EasyEdit asks for CUDA it gets the CPU, and tuples from layers, as the edition of PyPI needs them."""
    if is_head():
        yield
        return
    cuda, register = torch.Tensor.cuda, torch.nn.Module.register_forward_hook
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.register_forward_hook = lambda module, hook, **options: register(
        module, _as_tuple(hook) if type(module).__name__.endswith(("DecoderLayer", "Block")) else hook, **options
    )
    try:
        with _CudaIsCpu():
            yield
    finally:
        torch.Tensor.cuda, torch.nn.Module.register_forward_hook = cuda, register


def _as_tuple(hook: Any) -> Any:
    """A hook of EasyEdit's (in the edition of PyPI), shown a tuple as transformers 4 did."""
    if not getattr(hook, "__module__", "").startswith("easyeditor"):
        return hook

    def shown(module: Any, args: Any, output: Any) -> Any:
        result = hook(module, args, (output,))
        return result[0] if isinstance(result, tuple) else result

    return shown


class _CudaIsCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, str | torch.device) and _names_cuda(value) else value

        return func(*map(here, args), **{key: here(value) for key, value in (kwargs or {}).items()})


def _names_cuda(device: str | torch.device) -> bool:
    """With an index, as EasyEdit writes it; torch itself asks for "cuda" to see what there is."""
    return str(device).startswith("cuda:")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Inert modules for what is not installed. transformers has looked around before."""
    for name in dir(import_utils):
        if name.startswith("is_") and name.endswith("_available"):
            try:
                getattr(import_utils, name)()
            except Exception:
                continue
    names = {name for name in _MULTIMODAL if find_spec(name) is None}
    finder = _Finder(names)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Inert(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Inert(ModuleType):
    """Any name in it is a class that can be derived from, called and used as a decorator, and does nothing."""

    __all__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _NothingType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Nothing(metaclass=_NothingType):
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()
