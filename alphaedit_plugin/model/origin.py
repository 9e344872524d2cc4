"""Where others find a model: its name on the Hugging Face Hub, or the path of its folder here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..storage.hub import is_name
from .gguf import PACKAGED, is_gguf
from .wrappers import unwrapped

_CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$")


@dataclass(frozen=True)
class Origin:
    """`name` is what transformers and PEFT load it by: the Hub's if it is `on_hub`, else an absolute path, or "" if
    nobody knows. `note` says, in a sentence, how the weights that were loaded differ from those that are found there.
    """

    name: str
    on_hub: bool
    note: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> Origin:
        """Of a model as `model/loading.py` or transformers loaded it."""
        return cls.named(getattr(getattr(unwrapped(model), "config", None), "_name_or_path", ""))

    @classmethod
    def named(cls, name: str) -> Origin:
        """Of the model that goes by this name here."""
        if known := PACKAGED.get(name):
            package, file = known.parts[0]
            return cls(
                known.on_hub, True, f"What was edited and asked is {file} of the PyPI package {package}, in float32."
            )
        if name and Path(name).exists():
            path = str(Path(name).resolve())
            if cached := _CACHED.search(Path(path).as_posix()):
                return cls(f"{cached[1]}/{cached[2]}", True)
            return cls(path, False, "What was edited and asked is this GGUF file, in float32." if is_gguf(name) else "")
        return cls(name, is_name(name))

    @property
    def short(self) -> str:
        """The last part of its name."""
        return self.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
