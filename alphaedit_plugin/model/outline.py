"""A model without its weights: its modules and their shapes, from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import AlphaEditError, ModelStructureError
from .gguf import gguf_of, is_gguf
from .loading import DTYPES


def outlined(name: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model on the meta device, tokenizer), for the names that `load` takes; no weights are read.

    Of a GGUF file the header is read, and the model is float32, as it is after conversion. Raises ModelStructureError
    for what is no decoder, or has no tokenizer.
    """
    if dtype not in ("auto", *DTYPES):
        raise ModelStructureError(f"a model cannot be loaded as {dtype!r}: say {', '.join(DTYPES)}, or auto, its own")
    try:
        with _place(name) as place:
            config: Any = AutoConfig.from_pretrained(**place, trust_remote_code=trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=trust_remote_code)
        own = torch.float32 if is_gguf(name) else getattr(config, "dtype", None) or torch.float32
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config,
                dtype=own if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
            )
        model.tie_weights()
    except AlphaEditError:
        raise
    except Exception as failure:  # transformers and the hub share no error type
        raise ModelStructureError(
            f"cannot outline the model {name!r}: {failure}. It takes config.json and a tokenizer's files, no weights"
        ) from failure
    return model.eval().requires_grad_(False), tokenizer


@contextmanager
def _place(name: str) -> Iterator[dict[str, str]]:
    """What `from_pretrained` is given."""
    if not is_gguf(name):
        yield {"pretrained_model_name_or_path": name}
        return
    with gguf_of(name) as file:
        yield {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
