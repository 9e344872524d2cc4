"""EasyEdit's own AlphaEdit, from a checkout of its HEAD, to run beside ours on the same model and the same facts.

The environment variable EASYEDIT_HOME names the checkout. Nothing of EasyEdit's is changed: it gets the null-space
projections and the context templates ready made, so that both sides start from the same ones, and it is kept quiet.

    edit = AlphaEdit(model, tokenizer, {"v_num_grad_steps": 5}, projections, contexts)
    for batch in batches_of_requests:
        edit(batch)  # in place
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

# EasyEdit imports these two. Resolved here, so that transformers looks for optional packages before `_stand_ins` exist.
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from alphaedit_plugin.editors.requests import Request, parse_requests

# The paper's settings for a Llama model, on SmolLM2-135M's thirty layers, by EasyEdit's names.
SMOLLM2: dict[str, Any] = {
    "alg_name": "AlphaEdit",
    "model_name": "llama",  # EasyEdit makes no cache_c for a model of another name
    "device": "cpu",
    "layers": [4, 5, 6, 7, 8],
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "v_loss_layer": 29,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75,
    "kl_factor": 0.0625,
    "L2": 10,
    "nullspace_threshold": 2e-2,
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "model.embed_tokens",  # tied: `lm_head` has the same weight
    # Not read, because P is given. P_loc has to exist all the same, else P is computed again.
    "P_loc": os.devnull,
    "stats_dir": os.devnull,
    "mom2_adjustment": True,
    "mom2_update_weight": 15000,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
}

# What EasyEdit imports at the top of its files and none of the code we run ever calls.
_NOT_CALLED = {"datasets": ["load_dataset"], "matplotlib": [], "matplotlib.style": ["context"]}


@cache
def load() -> SimpleNamespace:
    """EasyEdit's packages `alphaedit`, `memit` and `rome`, imported from EASYEDIT_HOME.

    `import easyeditor` wants some twenty multimodal packages. So `easyeditor` and `easyeditor.models` become empty
    packages (for the rest of this process), and only the submodules that we ask for are executed.
    """
    root = _home() / "easyeditor"
    for name, folder in {"easyeditor": root, "easyeditor.models": root / "models"}.items():
        if name in sys.modules:
            raise SystemExit(f"{name} is imported already: run this in a process of its own")
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    with _stand_ins(), quiet():
        names = ("alphaedit", "memit", "rome")
        return SimpleNamespace(**{name: importlib.import_module(f"easyeditor.models.{name}") for name in names})


class AlphaEdit:
    """EasyEdit's AlphaEdit on one model. Each call writes a batch of requests into it, in place.

    `hyperparameters` are what differs from SMOLLM2; `null_space_projections` holds the dense P of every layer;
    `contexts` begin with "{}", as ours do. EasyEdit keeps P, the contexts and cache_c (the keys of earlier batches)
    in globals of a module. Every object has a fresh copy of that module, so that none sees another's.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Mapping[str, Any],
        null_space_projections: Mapping[int, Tensor],
        contexts: Sequence[str],
    ) -> None:
        self.model, self.tokenizer = model, _padding(tokenizer)
        self.hyperparameters = _hyperparameters(hyperparameters)
        self._main = _fresh(load().alphaedit.AlphaEdit_main)
        self._main.P = torch.stack([null_space_projections[layer].float() for layer in self.hyperparameters.layers])
        self._main.P_loaded = True
        self._main.CONTEXT_TEMPLATES_CACHE = _nested(contexts)

    def __call__(self, requests: Sequence[Request | Mapping[str, Any]]) -> None:
        with quiet():
            self._main.apply_AlphaEdit_to_model(self.model, self.tokenizer, _flat(requests), self.hyperparameters)

    @property
    def cache_c(self) -> Tensor | None:
        """Layers × d × d: Σ k kᵀ of everything written so far; None before the first call."""
        return getattr(self._main, "cache_c", None)


def compute_z(
    model: nn.Module,
    tokenizer: Any,
    request: Request | Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    layer: int,
    contexts: Sequence[str],
) -> Tensor:
    """z* of one request, by the function that `AlphaEdit` calls for each. Arguments as there."""
    (flat,) = _flat([request])
    flat["target_new"] = " " + flat["target_new"]  # otherwise done by the caller
    with quiet():
        z: Tensor = load().alphaedit.compute_z.compute_z(
            model, _padding(tokenizer), flat, _hyperparameters(hyperparameters), layer, _nested(contexts)
        )
    return z.detach()


@contextmanager
def quiet() -> Iterator[None]:
    """EasyEdit prints every step of every fact, and its statistics draw progress bars on stderr."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _home() -> Path:
    value = os.environ.get("EASYEDIT_HOME", "")
    if not (Path(value) / "easyeditor" / "models" / "alphaedit").is_dir():
        found = f"{value!r} is not one" if value else "it is not set"
        raise SystemExit(
            f"set EASYEDIT_HOME to a checkout of EasyEdit ({found}): git clone https://github.com/zjunlp/EasyEdit"
        )
    return Path(value).resolve()


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules in the place of those packages that are not installed."""
    missing = {name for name in _NOT_CALLED if find_spec(name.partition(".")[0]) is None}
    for name in missing:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(_NOT_CALLED[name]))
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _fresh(module: Any) -> Any:
    """The module executed once more, with globals of its own."""
    spec = module.__spec__
    copied = module_from_spec(spec)
    spec.loader.exec_module(copied)
    return copied


def _hyperparameters(changes: Mapping[str, Any]) -> Any:
    return load().alphaedit.AlphaEditHyperParams(**{**SMOLLM2, **changes})


def _padding(tokenizer: Any) -> Any:
    """A copy that pads, on the right: EasyEdit's positions count from the left."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _nested(contexts: Sequence[str]) -> list[list[str]]:
    """In two groups of equal weight: the bare prompt, and the templates with a text before it."""
    return [group for group in (list(contexts[:1]), list(contexts[1:])) if group]


def _flat(requests: Sequence[Request | Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [asdict(request) for request in parse_requests(requests)]
