"""What PEFT, torch.compile and data parallelism put around a model is seen through."""

from __future__ import annotations

import peft
import pytest
import torch
from support.tiny import tiny
from support.wrapping import WRAPPERS, lora
from torch import nn

from alphaedit_plugin.errors import ModelStructureError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.fingerprint import fingerprints, model_name
from alphaedit_plugin.model.wrappers import inner, plain_name, unwrapped

LAYERS = range(4)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_matrices_and_fingerprints_are_those_of_the_model_inside(wrap):
    plain, model = tiny("llama"), tiny("llama")
    wrapped = wrap(model)
    found, expected = (Decoder(each).out_projections(LAYERS) for each in (wrapped, plain))
    assert unwrapped(wrapped) is Decoder(wrapped).model is model
    for layer in LAYERS:
        assert found[layer].name == expected[layer].name
        assert isinstance(found[layer].module, nn.Linear)
        assert torch.equal(found[layer].matrix, expected[layer].matrix)
    assert fingerprints(wrapped, [3]) == fingerprints(plain, [3])
    assert model_name(wrapped) == model_name(plain)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_template_names_the_same_matrix(wrap):
    wrapped = wrap(tiny("llama"))
    by_structure = Decoder(wrapped).out_projection(2)
    by_name = Decoder(wrapped, "model.layers.{}.mlp.down_proj").out_projection(2)
    assert (by_name.name, by_name.module) == (by_structure.name, by_structure.module)


def test_an_adapter_that_changes_keys_changes_the_fingerprint():
    silent, trained = lora(tiny("llama"), "up_proj"), lora(tiny("llama"), "up_proj", trained=True)
    assert fingerprints(silent, [1]) == fingerprints(tiny("llama"), [1])
    assert fingerprints(trained, [1]) != fingerprints(tiny("llama"), [1])


def test_the_adapter_that_a_model_carries_itself_is_seen_through_too():
    model = tiny("gpt2")
    model.add_adapter(peft.LoraConfig(target_modules=["c_proj"], r=2, fan_in_fan_out=True))
    projection = Decoder(model).out_projection(1)
    assert projection.name == "transformer.h.1.mlp.c_proj"
    assert projection.transposed
    assert (projection.d_in, projection.d_out) == (24, 16)


def test_a_module_around_two_models_says_so():
    with pytest.raises(ModelStructureError, match=r"holds several models \(LlamaForCausalLM, GPT2LMHeadModel\)"):
        unwrapped(nn.ModuleList([tiny("llama"), tiny("gpt2")]))


def test_what_is_no_wrapper_is_left_alone():
    model, matrix = tiny("llama"), nn.Linear(2, 2)
    assert unwrapped(model) is model
    assert unwrapped(matrix) is inner(matrix) is matrix
    assert plain_name("model.layers.0.mlp.down_proj.weight") == "model.layers.0.mlp.down_proj.weight"
    assert plain_name("layers.0._orig_mod.mlp.down_proj.base_layer.weight") == "layers.0.mlp.down_proj.weight"
