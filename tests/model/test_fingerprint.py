"""A fingerprint changes with all that a layer's keys depend on, and with nothing else."""

from __future__ import annotations

from functools import cache

import accelerate
import pytest
import torch
from support.tiny import NAMES, tiny
from transformers import AutoModelForCausalLM

from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.fingerprint import fingerprints

fixed = cache(tiny)


def parameters_up_to(model, layer):
    decoder = Decoder(model)
    above = {id(p) for block in decoder.blocks[layer + 1 :] for p in block.parameters()}
    tied = {id(p) for p in model.get_input_embeddings().parameters()}
    last = {id(p) for module in (decoder.final_norm, decoder.head) for p in module.parameters()} - tied
    below = {name: p for name, p in model.named_parameters() if id(p) not in above | last}
    return below, {name: p for name, p in model.named_parameters() if name not in below}


@pytest.mark.parametrize("name", NAMES)
def test_two_copies_of_a_model_have_the_same_fingerprints(name):
    found = fingerprints(tiny(name), [0, 2, 3])
    assert fingerprints(tiny(name), [3, 0, 2]) == found
    assert fingerprints(tiny(name), [2]) == {2: found[2]}
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_reloaded_checkpoint_has_the_same_fingerprints(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert fingerprints(reloaded, [1, 3]) == fingerprints(model, [1, 3])


@pytest.mark.parametrize("name", NAMES)
def test_any_weight_that_a_layers_keys_depend_on_changes_its_fingerprint_and_no_other_does(name):
    model = tiny(name)
    layer = 1
    before = fingerprints(model, [layer])
    below, above = parameters_up_to(model, layer)
    assert below
    assert above
    for group, changes in ((below, True), (above, False)):
        for parameter_name, parameter in group.items():
            saved = parameter.flatten()[-1].clone()
            parameter.view(-1)[-1] += 1.0
            assert (fingerprints(model, [layer]) != before) is changes, parameter_name
            parameter.view(-1)[-1] = saved
    assert fingerprints(model, [layer]) == before


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "relu"}, {"num_attention_heads": 4}, {"rms_norm_eps": 0.1}, {"rope_theta": 100.0}],
    ids=str,
)
def test_a_setting_that_the_keys_depend_on_changes_the_fingerprint_though_the_weights_are_the_same(change):
    plain, changed = tiny("llama", num_key_value_heads=2, head_dim=8), None
    settings_ = {"num_key_value_heads": 2, "head_dim": 8, **change}
    if "num_attention_heads" in change:
        settings_.update(head_dim=4, num_key_value_heads=4)
    if "rope_theta" in change:
        settings_["rope_parameters"] = {"rope_type": "default", "rope_theta": settings_.pop("rope_theta")}
    changed = tiny("llama", **settings_)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), changed.parameters(), strict=True))
    ids = torch.tensor([[5, 9, 11]])
    assert not torch.allclose(plain(ids).logits, changed(ids).logits)
    assert fingerprints(changed, [1]) != fingerprints(plain, [1])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_offloading_does_not_change_the_fingerprint(name):
    offloaded = tiny(name)
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    assert fingerprints(offloaded, [0, 2]) == fingerprints(fixed(name), [0, 2])
    Decoder(offloaded).out_projection(1).matrix[0, 0] += 1.0
    assert fingerprints(offloaded, [0])[0] == fingerprints(fixed(name), [0])[0]
    assert fingerprints(offloaded, [2]) != fingerprints(fixed(name), [2])
