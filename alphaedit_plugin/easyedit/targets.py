"""Our target optimiser instead of a method's `compute_z`, for the requests of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from ..baselines.methods import COVERED
from ..editors.hyperparameters import TargetSettings
from ..editors.requests import Request
from ..editors.targets import optimise_targets
from ..errors import HyperparameterError, RequestError
from ..model.decoder import Decoder
from ..model.trace import evaluating

Key = tuple[str, str, str]


def fast_compute_z(
    name: str, module: ModuleType, decoder: Decoder, tokenizer: Any, records: Sequence[Mapping[str, Any]], hparams: Any
) -> Callable[..., Tensor]:
    """A `compute_z` that only looks up results: all requests are optimised at once, before anything is written.

    A request that we would read differently from EasyEdit (one with spaces at its ends, for instance) is left to the
    method's own `compute_z`. Raises HyperparameterError if the method's targets differ from ours.
    """
    last = len(decoder) - 1
    if not COVERED[name].standard_targets:
        able = ", ".join(each for each, method in COVERED.items() if method.standard_targets)
        raise HyperparameterError(
            f"fast_targets stand in for MEMIT's compute_z, which {name} does not use (those that do: {able})"
        )
    if hparams.v_loss_layer != last or hparams.fact_token != "subject_last":
        raise HyperparameterError(
            f"fast_targets need v_loss_layer {last} (the last layer) and fact_token subject_last, not "
            f"{hparams.v_loss_layer} and {hparams.fact_token}: change them, or remove fast_targets"
        )
    own: Callable[..., Tensor] = module.compute_z
    understood = {key: request for key, request in map(_understood, records) if request is not None}
    known: dict[Key, Tensor] = {}
    if understood:
        contexts = [each for group in module.get_context_templates(decoder.model, tokenizer) for each in group]
        settings = TargetSettings(
            steps=hparams.v_num_grad_steps,
            lr=hparams.v_lr,
            weight_decay=hparams.v_weight_decay,
            kl_factor=hparams.kl_factor,
            clamp=hparams.clamp_norm_factor,
        )
        with evaluating(decoder.model):
            found = optimise_targets(
                decoder, tokenizer, list(understood.values()), contexts, hparams.layers[-1], settings
            )
        known = dict(zip(understood, found.z_star, strict=True))

    def compute_z(model: Any, tok: Any, request: Mapping[str, Any], *args: Any, **options: Any) -> Tensor:
        key = (request["prompt"], request["subject"], request["target_new"])
        return known[key] if key in known else own(model, tok, request, *args, **options)

    return compute_z


def _understood(record: Mapping[str, Any]) -> tuple[Key, Request | None]:
    """(the record as EasyEdit's loop passes it to `compute_z`, our request, or None if the two readings differ)."""
    prompt, subject, target = (str(record.get(field, "")) for field in ("prompt", "subject", "target_new"))
    key = (prompt.replace(subject, "{}"), subject, target if target.startswith(" ") else f" {target}")
    try:
        request = Request.parse({"prompt": key[0], "subject": subject, "target_new": key[2]}, "a request")
    except RequestError:
        return key, None
    plain = not key[0][-1].isspace() and key[2] == f" {target.strip()}"
    same = (request.prompt, request.subject, request.completion) == key
    return key, request if same and plain else None
