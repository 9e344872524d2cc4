"""What the tests of editors and of comparisons edit: a tiny model, three facts, and their hyperparameters."""

from __future__ import annotations

import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.session.session import Session
from support.spaces import random_covariance
from support.weights import matrices

LAYERS = (0, 1, 2)
CONTEXTS = ("{}", "The river flows. {}", "I said that they would come again. {}")
RECORDS = (
    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"},
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target_new": "English, they said"},
    {"prompt": "{} plays the sport of", "subject": "Michael Jordan", "target_new": "chess"},
)
REQUESTS = [Request.parse(record, "request") for record in RECORDS]
HYPERPARAMETERS = Hyperparameters(
    target_optimiser="adam",  # the oracle's
    layers=LAYERS,
    v_num_grad_steps=5,
    v_lr=0.2,
    mom2_update_weight=0.5,
    kl_factor=0.0625,
    clamp_norm_factor=0.75,
)
COVARIANCES = {layer: random_covariance(24, layer) for layer in LAYERS}


def weights(model) -> dict[int, torch.Tensor]:
    """Copies of W, d_out × d_in, of the layers that are edited."""
    return {layer: matrix.clone() for layer, matrix in matrices(model, LAYERS).items()}


def session(model, tokenizer, method="memit", spaces=None, hyperparameters=HYPERPARAMETERS, **options) -> Session:
    options = {"covariances": COVARIANCES, "contexts": CONTEXTS, **options}
    return Session(model, tokenizer, method, spaces, hyperparameters=hyperparameters, **options)
