"""A tiny model, facts and statistics that are quick to try settings on."""

from __future__ import annotations

import pytest
from support.command_line import FACTS
from support.tiny import model_of

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import TuningError
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.storage.files import write_text


@pytest.fixture
def pilot(tmp_path):
    import json

    write_text(tmp_path / "pilot.json", json.dumps(FACTS), TuningError)
    return load_facts(tmp_path / "pilot.json")


@pytest.fixture
def model():
    return model_of("llama")


@pytest.fixture
def preparation(store):
    return Preparation(tokens=300, store=store)


@pytest.fixture
def start():
    return Hyperparameters(
        layers=(1, 2),
        v_num_grad_steps=4,
        mom2_update_weight=24.0,
        L2=1.0,
        null_space=Criterion(nullity=12),
        context_template_length_params=((3, 5),),
    )
