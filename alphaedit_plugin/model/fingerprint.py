"""Which model is this? A hash of everything that the keys of a layer depend on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..restoring import swapping
from ..storage.tensors import tensor_digest
from .decoder import Decoder, OutProjection, Projection
from .gradients import gradients
from .trace import evaluating
from .wrappers import inner, plain_name, unwrapped
from .writable import dimensions

_VOLATILE = frozenset(
    {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "id2label",
        "label2id",
        "tie_word_embeddings",
    }
)


def weights_digest(projections: Mapping[int, OutProjection]) -> str:
    """A digest of the weights: an equal digest means unchanged weights."""
    return " ".join(tensor_digest(projection.stored) for projection in projections.values())


def fingerprints(model: nn.Module | Decoder, layers: Sequence[int]) -> dict[int, str]:
    """layer → hash of the class, the settings, the embeddings and the weights of blocks 0 … layer, as they are now.

    Two copies of one model have equal hashes. A hash changes with any weight or setting that the keys of `layer` depend
    on, and with the edited matrix itself. Layers above do not matter, nor does the place where the weights are kept.
    Reads every byte once (0.2 s for SmolLM2 up to layer 8); the hash of layer n extends that of n − 1.
    """
    decoder = Decoder.of(model)
    top = max(layers)
    decoder.block(top)
    above = {id(decoder.head), id(decoder.final_norm)}
    skipped = (
        f"{decoder.blocks_name}.",
        *(f"{name}." for name, module in decoder.model.named_modules() if id(module) in above),
    )

    stages = [[(name, tensor) for name, tensor in _tensors(decoder.model) if not name.startswith(skipped)]]
    stages += [list(_tensors(decoder.blocks[layer], buffers=False)) for layer in range(top + 1)]
    flat = [tensor for stage in stages for _, tensor in stage]
    digests = iter(_digests(flat))

    running = f"{type(decoder.model).__name__} {_settings(decoder.model.config)}"
    chain: list[str] = []
    for stage in stages:
        lines = [running, *(f"{name} {next(digests)}" for name, _ in stage)]
        running = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        chain.append(running)
    return {layer: chain[layer + 1] for layer in layers}


def _digests(tensors: Sequence[Tensor]) -> list[str]:
    """The digest of each tensor, in as many threads as there are processors: hashlib releases the GIL."""
    found: list[str] = [""] * len(tensors)
    failures: list[Exception] = []
    left = deque(range(len(tensors)))

    def work() -> None:
        with suppress(IndexError):
            while True:
                place = left.popleft()
                try:
                    found[place] = tensor_digest(tensors[place])
                except Exception as failure:
                    failures.append(failure)

    with _beside(work, left):
        work()
    if failures:
        raise failures[0]
    return found


@swapping
def _beside(work: Callable[[], None], left: deque[int]) -> Iterator[None]:
    """Threads that work beside the block. (Ctrl-C in a ThreadPoolExecutor's own locks would have it wait for ever.)"""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(len(left), os.cpu_count() or 1) - 1)]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        left.clear()
        for thread in threads:
            thread.join()


def whole_weights(module: nn.Module) -> list[Tensor]:
    """The weights of a module, wherever accelerate keeps them."""
    return [tensor for _, tensor in _tensors(module, buffers=False)]


def _settings(config: Any) -> str:
    """The configuration as JSON, without the settings that do not affect the keys."""
    values = {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith(("_", "output_", "return_"))
        and not key.endswith(("_token_id", "dropout", "_pdrop"))
        and key not in _VOLATILE
    }
    return json.dumps(values, sort_keys=True, default=str)


def _tensors(module: nn.Module, *, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, wherever accelerate keeps them; buffers too (rotary frequencies are buffers).

    Names are those of a model without adapters, and an adapter that adds nothing is passed over.
    """
    silent: list[str] = []
    for place, child in module.named_modules():
        if inner(child) is not child and _is_silent(child):
            silent += [f"{place}.{name}" for name, part in child.named_children() if inner(part) is not inner(child)]
        if place.startswith(tuple(silent)):
            continue
        prefix = plain_name(place)
        weights_map = getattr(getattr(child, "_hf_hook", None), "weights_map", None)
        for name, parameter in child.named_parameters(recurse=False):
            tensor: Tensor = parameter
            if parameter.device.type == "meta" and weights_map is not None:
                tensor = weights_map[name]
            yield f"{prefix}.{name}", tensor
        if buffers:
            yield from ((f"{prefix}.{name}", buffer) for name, buffer in child.named_buffers(recurse=False))


@gradients(False)
def _is_silent(adapter: Any) -> bool:
    """Whether an adapter around a matrix leaves what that matrix puts out as it is."""
    layer = inner(adapter)
    if not isinstance(layer, Projection):
        return False
    key = torch.linspace(-1, 1, dimensions(layer, isinstance(layer, Conv1D))[1]).to(layer.weight.device, torch.float32)
    key = key[None].to(layer.weight.dtype)
    with evaluating(adapter):
        return torch.equal(adapter(key), layer(key))


def model_name(model: nn.Module) -> str:
    model = unwrapped(model)
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
