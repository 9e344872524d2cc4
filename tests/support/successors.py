"""What the tests of AlphaEdit's successors share: batches of facts, and one layer's textbook step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from alphaedit_plugin.model.decoder import Decoder
from support import oracle
from support.editing import CONTEXTS, HYPERPARAMETERS, RECORDS

HYPERPARAMETERS = replace(HYPERPARAMETERS, L2=0.3)
TARGETS = {
    "steps": HYPERPARAMETERS.v_num_grad_steps,
    "lr": HYPERPARAMETERS.v_lr,
    "weight_decay": HYPERPARAMETERS.v_weight_decay,
    "kl_factor": HYPERPARAMETERS.kl_factor,
    "clamp": HYPERPARAMETERS.clamp_norm_factor,
}
EXTRA = (
    {"prompt": "The king of {} came home from", "subject": "Paris", "target_new": "America"},
    {"prompt": "{} was born in", "subject": "Marie Curie", "target_new": "Rome"},
)
BATCHES = (RECORDS[:2], RECORDS[2:], EXTRA)


def z_stars(model, tokenizer, layer: int, records) -> Tensor:
    """z* of each record at the output of block `layer`, n × d, by the textbook's whole forward passes."""
    block = Decoder(model).block(layer)
    return _stack(oracle.compute_target(model, tokenizer, each, CONTEXTS, block, **TARGETS)[0] for each in records)


def hidden(model, tokenizer, layer: int, records) -> Tensor:
    """The output of block `layer` at each subject's last token, n × d."""
    block = Decoder(model).block(layer)
    return _stack(oracle.current_z(model, tokenizer, each, block) for each in records)


def value(model, tokenizer, layer: int, records) -> Tensor:
    """What the out-projection of `layer` puts out there, n × d."""
    module, found = Decoder(model).out_projection(layer).module, []
    for record in records:
        text, end = oracle._text(record, "{}")
        ids = oracle._encode(tokenizer, text)[0]
        found.append(oracle._module_output(model, ids, module, oracle.subject_last(tokenizer, text, end)))
    return _stack(found)


def keys(model, tokenizer, layer: int, records) -> Tensor:
    """K1, d_in × n, of the model as it is."""
    return oracle._keys(model, tokenizer, records, CONTEXTS, Decoder(model).out_projection(layer).module)


def add(model, layer: int, delta: Tensor) -> None:
    """W += Δ, d_out × d_in."""
    oracle._add_to_weight(Decoder(model).out_projection(layer).module, delta)


def _stack(vectors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(vectors))
