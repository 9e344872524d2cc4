"""What stands around a model or a matrix, and what is inside.

PEFT, torch.compile and data parallelism put a module of their own around a model; adapters such as LoRA put one around
a matrix. Both are seen through by what they hold, not by their names.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelStructureError

_INNER = ("base_layer", "_orig_mod")
"""Where an adapter keeps the layer that it was put around, and torch.compile the module that it compiles."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside `model`; `model` itself if it is one, or if there is none.

    A Hugging Face model is whatever knows by its own class what its embeddings are. Raises ModelStructureError if
    several are equally far inside.
    """
    level = [model]
    while level:
        found = [module for module in level if hasattr(type(module), "get_output_embeddings")]
        if len(found) > 1:
            raise ModelStructureError(
                f"{type(model).__name__} holds several models ({', '.join(type(each).__name__ for each in found)}): "
                "give the one that is to be edited"
            )
        if found:
            return found[0]
        level = [child for module in level for child in module.children()]
    return model


def inner(module: Any) -> Any:
    """The layer that an adapter or torch.compile was put around; the module itself if there is nothing around it."""
    found = next((vars(module)["_modules"][name] for name in _INNER if name in vars(module)["_modules"]), None)
    return module if found is None else inner(found)


def plain_name(name: str) -> str:
    """The name that a module or weight has when nothing is put around it."""
    return ".".join(part for part in name.split(".") if part not in _INNER)
