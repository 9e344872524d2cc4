"""Tuned settings as a hyperparameter file that EasyEdit reads too, with what was measured in its comments."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..editors.hyperparameters import Hyperparameters
from ..editors.registry import find, find_method
from ..editors.variant import Variant
from ..errors import TuningError
from ..model.decoder import Decoder
from ..model.fingerprint import model_name
from ..model.module_names import module_names
from ..storage.files import write_text
from .search import Tuning
from .trials import PARTS, Trial

_WIDTH = 108


def write_hparams(
    path: str | Path,
    model: nn.Module,
    method: str | Variant,
    tuning: Tuning,
    *,
    command: str = "",
    facts: str = "",
    name: str | None = None,
) -> None:
    """Write the settings of the best trial, whole or not at all.

    `command` is what made them and `facts` says which the pilot was, for the comments; `name` is the model's, by
    default what its configuration says. The keys are those of EasyEdit's file for the method; a criterion that EasyEdit
    has no key for is `null_space`, which it reads with the plug-in. Raises TuningError if it cannot be written.
    """
    variant = method if isinstance(method, Variant) else Variant.parse(method)
    name = name or model_name(model)
    values = easyedit_values(variant, model, tuning.best.hyperparameters, name)
    comments = "\n".join(f"# {line}".rstrip() for line in _comments(variant, tuning, Path(path), command, facts, name))
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=_WIDTH)
    write_text(Path(path), f"{comments}\n{text}", TuningError)


def easyedit_values(variant: Variant, model: nn.Module, settings: Hyperparameters, name: str) -> dict[str, Any]:
    """The settings under EasyEdit's keys, with the keys that it needs besides."""
    editor = find_method(variant.solver).editor
    decoder = Decoder(model, settings.rewrite_module_tmp)
    device = decoder.device
    threshold = settings.null_space.threshold
    values: dict[str, Any] = {
        "alg_name": find(variant.method).folder or variant.method,
        "model_name": str(name),  # plain, for YAML
        "stats_dir": "./data/stats",
        "device": (device.index or 0) if device.type == "cuda" else str(device),
        "layers": list(settings.layers),
        "clamp_norm_factor": settings.clamp_norm_factor,
        "layer_selection": "all",
        "fact_token": "subject_last",
        "v_num_grad_steps": settings.v_num_grad_steps,
        "v_lr": settings.v_lr,
        "v_loss_layer": len(decoder) - 1,
        "v_weight_decay": settings.v_weight_decay,
        "kl_factor": settings.kl_factor,
        "mom2_adjustment": settings.mom2_adjustment,
        "mom2_update_weight": settings.mom2_update_weight,
        **module_names(decoder),
        "mom2_dataset": "wikipedia",
        "mom2_n_samples": 100000,
        "mom2_dtype": "float32",
    }
    if settings.target_optimiser != Hyperparameters.target_optimiser:
        values["target_optimiser"] = settings.target_optimiser
    if settings.rewrite_module_tmp is not None:
        values["rewrite_module_tmp"] = settings.rewrite_module_tmp
    if editor.regularised_by != "mom2_update_weight" and not editor.needs_null_spaces:  # ROME has neither
        del values["layer_selection"], values["mom2_update_weight"]
        values["context_template_length_params"] = [list(pair) for pair in settings.context_template_length_params]
    elif settings.context_template_length_params != Hyperparameters.context_template_length_params:
        values["context_template_length_params"] = [list(pair) for pair in settings.context_template_length_params]
    if editor.needs_null_spaces:
        values |= {"P_loc": "./null_space_project.pt", "L2": settings.L2}
        if threshold is not None:
            values["nullspace_threshold"] = threshold
    if variant.projected and "nullspace_threshold" not in values:
        values["null_space"] = settings.as_dict()["null_space"]
    ours = {"reduced_precision": settings.reduced_precision, "tokens": settings.tokens, "own": dict(settings.own)}
    return values | {key: value for key, value in ours.items() if value}


def _comments(variant: Variant, tuning: Tuning, path: Path, command: str, facts: str, name: str) -> list[str]:
    best = tuning.best
    ended = "no step improves on it" if tuning.finished else "the time was over: repeat the command to go on"
    lines = [
        f"{variant} on {name}, tuned on {datetime.date.today().isoformat()} in {tuning.seconds / 60:.0f} minutes with "
        f"{tuning.facts} facts{f' of {facts}' if facts else ''}: {_shown(best)}; {ended}.",
        f"Use it: alphaedit edit MODEL FACTS --method {variant} --hparams {path.name} --out DIR (compare too takes "
        "--hparams).",
    ]
    if command:
        lines.append(f"Made by: {command}")
    if tuning.trace is not None:
        recall = ", ".join(f"{100 * value:.1f}" for value in tuning.trace.recall.tolist())
        lines.append(
            f"Causal trace of {tuning.trace.facts} facts ({100 * tuning.trace.clean:.0f} % clean, "
            f"{100 * tuning.trace.corrupted:.0f} % corrupted): points of the object's probability that the "
            f"feed-forward parts of {tuning.trace.window} blocks around layer 0, 1, … give back at the subject's last "
            f"token: {recall}"
        )
    lines = [part for line in lines for part in textwrap.wrap(line, _WIDTH, break_on_hyphens=False)]
    return [*lines, "", *table(tuning), ""]


def _shown(trial: Trial) -> str:
    return ", ".join(
        [*(f"{part} {100 * value:.1f}" for part, value in trial.scores.items()), f"drift {100 * trial.drift:.1f} %"]
    )


def table(tuning: Tuning) -> list[str]:
    """The trials as lines of text, in the order in which they were made; the best is marked."""
    rows = [row_of(trial) for trial in tuning.trials]
    known = [key for key in rows[0] if len({row[key] for row in rows}) > 1 or key in (*PARTS, "layers", "score")]
    width = {key: max(len(key), *(len(row[key]) for row in rows)) for key in known}
    lines = ["  " + "  ".join(key.rjust(width[key]) for key in known)]
    for trial, row in zip(tuning.trials, rows, strict=True):
        mark = "*" if trial == tuning.best else " "
        failed = f"  failed: {trial.failure[:60]}" if trial.failure else ""
        lines.append(f"{mark} " + "  ".join(row[key].rjust(width[key]) for key in known) + failed)
    return lines


def row_of(trial: Trial) -> Mapping[str, str]:
    """A trial as text, by column. Shares are in percent."""
    values = trial.hyperparameters
    layers = values.layers
    consecutive = len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1))
    return {
        "layers": f"{layers[0]}-{layers[-1]}" if consecutive else ",".join(map(str, layers)),
        "mom2_update_weight": f"{values.mom2_update_weight:g}",
        "L2": f"{values.L2:g}",
        "null_space": str(values.null_space),
        "clamp_norm_factor": f"{values.clamp_norm_factor:g}",
        "v_lr": f"{values.v_lr:g}",
        **{part: f"{100 * trial.scores[part]:.1f}" if part in trial.scores else "-" for part in PARTS},
        "drift %": f"{100 * trial.drift:.1f}",
        "score": f"{100 * trial.score:.2f}",
        "seconds": f"{trial.seconds:.0f}",
    }
