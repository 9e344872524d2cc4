"""Hyperparameters of EasyEdit's own methods, for any model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..editors.hyperparameters import ADAM, Hyperparameters
from ..errors import HyperparameterError
from ..model.decoder import Decoder
from ..model.module_names import module_names
from ..storage.yaml_file import yaml_mapping
from .edition import easyedit_module
from .methods import COVERED
from .names import Named, functions

_OUR_KEYS = ("null_space", "reduced_precision")  # in the files that we ship, and unknown to EasyEdit


def hyperparameters(named: Named, model: Any, given: Mapping[str, Any] | str | Path | None = None) -> Any:
    """EasyEdit's hyperparameter object: the `given` values (or a YAML of EasyEdit's or ours), the rest derived.

    Names of modules come from the model, the settings of MEMIT, ROME, AlphaEdit and their kin from
    `Hyperparameters.for_model`. FT and GRACE get what EasyEdit's files say for Llama, at the same relative depth. The
    device is always the model's.

    Raises HyperparameterError for keys that the method does not know, and for missing ones that cannot be derived.
    """
    function = functions()[named.method]
    values, source = _read(given)
    if values.get("alg_name", named.method) != named.method:
        raise HyperparameterError(f"{source} is for {values['alg_name']}, not for {named.method}")
    cls = inspect.signature(function).parameters["hparams"].annotation
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in _OUR_KEYS}
    values = {key: value for key, value in values.items() if key not in _OUR_KEYS}
    if unknown := sorted(values.keys() - fields.keys()):
        raise HyperparameterError(f"{source}: {named.method} knows no {', '.join(unknown)}, only {', '.join(fields)}")
    needed = [name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    values["device"] = _device(model)
    if set(needed) - values.keys():
        values = {key: value for key, value in _derived(named.method, model).items() if key in fields} | values
    if missing := [name for name in needed if name not in values]:
        raise HyperparameterError(
            f"{named} needs {', '.join(missing)}: give EasyEdit's file for it (a checkout has them in hparams/)"
        )
    if values.get("replacement", "replace_last") != "replace_last":
        raise HyperparameterError(f"{source}: {named.method} is measured with replacement replace_last only")
    if "archive" in values:
        values["archive"] = _archive(values["archive"], named)
    return cls(**values)


def layers_of(settings: Any) -> list[int]:
    """The layers whose out-projections the method writes; empty if it writes something else."""
    return list(settings.layers) if settings.alg_name in COVERED else []


def _read(given: Mapping[str, Any] | str | Path | None) -> tuple[dict[str, Any], str]:
    if given is None or isinstance(given, Mapping):
        return dict(given or {}), "the hyperparameters"
    values = yaml_mapping(given)
    numbers = easyedit_module("util.hparams").HyperParams.construct_float_from_scientific_notation
    return dict(numbers(dict(values))), str(given)


def _derived(method: str, model: Any) -> dict[str, Any]:
    decoder = Decoder(model)
    depth = len(decoder)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    values: dict[str, Any] = {
        "alg_name": method,
        # AlphaEdit infers from the model's name how its matrices are stored, so it gets a name that says so.
        "model_name": f"{name} ({'gpt2-xl' if decoder.out_projection(0).transposed else 'llama'})",
        **module_names(decoder),
        "v_loss_layer": depth - 1,
        "fact_token": "subject_last",
        "layer_selection": "all",
        "mom2_dataset": "wikipedia",
        "mom2_n_samples": 100000,
        "mom2_dtype": "float32",
        "stats_dir": "data/stats",
        "P_loc": "",
        "nullspace_threshold": 2e-2,
        "model_parallel": False,
    }
    if method == "FT":
        return values | {
            "rewrite_module_tmp": values["rewrite_module_tmp"] + ".weight",
            "layers": [round(21 / 32 * depth)],
            "num_steps": 25,
            "lr": 5e-4,
            "weight_decay": 0,
            "kl_factor": 0,
            "norm_constraint": False,
            "objective_optimization": "prompt_last",
            "batch_size": 1,
        }
    if method == "GRACE":
        return values | {
            "inner_params": [values["rewrite_module_tmp"].replace(".{}", f"[{round(27 / 32 * depth)}]") + ".weight"],
            "edit_lr": 1.0,
            "n_iter": 50,
            "eps": 1.0,
            "dist_fn": "euc",
            "val_init": "cold",
            "val_train": "sgd",
            "val_reg": None,
            "reg": "early_stop",
            "replacement": "replace_last",
            "eps_expand": "coverage",
            "num_pert": 8,
            "dropout": 0.0,
        }
    if method in COVERED:
        theirs = {"ROME": "rome", "R-ROME": "rome", "AlphaEdit": "alphaedit", "SPHERE": "alphaedit"}
        ours = dataclasses.replace(
            Hyperparameters.for_model(theirs.get(method, "memit"), model, name), target_optimiser=ADAM
        )
        threshold = {} if ours.null_space.threshold is None else {"nullspace_threshold": ours.null_space.threshold}
        return values | ours.as_dict() | threshold
    return {key: values[key] for key in ("alg_name", "model_name", "model_parallel")}


def _device(model: Any) -> int | str:
    """The model's device as EasyEdit writes it: the number of a GPU, or a name such as "cpu"."""
    device = Decoder(model).device
    return device.index or 0 if device.type == "cuda" else str(device)


def _archive(path: Any, named: Named) -> str:
    if not path or not Path(path).is_file():
        raise HyperparameterError(
            f"{named} needs what EasyEdit's trainer has learned for this model: train it (EasyEdit's EditTrainer), and "
            f"set 'archive' in its hyperparameters to that file; {path or 'nothing'!r} is none"
        )
    return str(Path(path).resolve())
