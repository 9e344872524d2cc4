"""What the tests of editors and of comparisons edit: a tiny model, three facts, and their hyperparameters."""

from __future__ import annotations

import pytest
import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.session.session import Session
from support.spaces import random_covariance
from support.tiny import tiny

LAYERS = (0, 1, 2)
CONTEXTS = ("{}", "The river flows. {}", "I said that they would come again. {}")
RECORDS = (
    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"},
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target_new": "English, they said"},
    {"prompt": "{} plays the sport of", "subject": "Michael Jordan", "target_new": "chess"},
)
REQUESTS = [Request.parse(record, "request") for record in RECORDS]
HYPERPARAMETERS = Hyperparameters(
    layers=LAYERS, v_num_grad_steps=5, v_lr=0.2, mom2_update_weight=0.5, kl_factor=0.0625, clamp_norm_factor=0.75
)
COVARIANCES = {layer: random_covariance(24, layer) for layer in LAYERS}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many models compute norms and softmax in torch.float32, which for a float64 model is a loss, not a gain."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def model_of(name: str = "llama", dtype: torch.dtype = torch.float64, **changes):
    model = tiny(name, dtype=dtype, vocab_size=512, **changes)
    model.set_attn_implementation("eager")
    return model


def weights(model) -> dict[int, torch.Tensor]:
    """W as d_out × d_in."""
    return {layer: p.matrix.clone() for layer, p in Decoder(model).out_projections(list(LAYERS)).items()}


def session(model, tokenizer, method="memit", spaces=None, hyperparameters=HYPERPARAMETERS, **options) -> Session:
    options = {"covariances": COVARIANCES, "contexts": CONTEXTS, **options}
    return Session(model, tokenizer, method, spaces, hyperparameters=hyperparameters, **options)
