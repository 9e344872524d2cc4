"""Sessions on wrapped models: they edit the model inside, and what they export fits it."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors import safe_open
from support.editing import CONTEXTS, COVARIANCES, HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.spaces import random_spaces
from support.tiny import model_of
from support.wrapping import WRAPPERS, lora

from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.model.loading import save_model
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.session.patch import apply_patch, revert_patch
from alphaedit_plugin.session.session import Session

IDS = torch.tensor([[5, 9, 11, 3, 60]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def edited(model, tokenizer, method="memit", **options):
    found = session(model, tokenizer, method, **options)
    found.edit(RECORDS)
    return found


@pytest.mark.parametrize("method", ["memit", "rome"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_edit_of_a_wrapped_model_is_that_of_the_model_inside(wrap, method, tokenizer):
    plain, wrapped = model_of("llama"), wrap(model_of("llama"))
    before, one, other = weights(plain), edited(plain, tokenizer, method), edited(wrapped, tokenizer, method)
    for layer in LAYERS:
        now, same = weights(plain)[layer], weights(wrapped)[layer]
        assert float((now - before[layer]).norm()) > 0
        assert float((now - same).norm()) <= 1e-6 * float((now - before[layer]).norm())
    other.undo()
    assert all(torch.equal(weights(wrapped)[layer], before[layer]) for layer in LAYERS)
    assert one.report().drift.keys() == other.report().drift.keys()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_patch_of_a_wrapped_model_fits_the_model_inside_and_the_wrapped_one(wrap, tokenizer, tmp_path):
    edited(wrapped := wrap(model_of("llama")), tokenizer).to_patch(tmp_path / "patch.safetensors")
    after = weights(wrapped)
    for other in (model_of("llama"), wrap(model_of("llama"))):
        before = weights(other)
        apply_patch(other, tmp_path / "patch.safetensors")
        assert all(torch.equal(weights(other)[layer], after[layer]) for layer in LAYERS)
        revert_patch(other, tmp_path / "patch.safetensors")
        assert all(torch.equal(weights(other)[layer], before[layer]) for layer in LAYERS)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_adapter_of_a_wrapped_model_loads_on_the_model_inside(wrap, tokenizer, tmp_path):
    edited(wrapped := wrap(model_of("llama")), tokenizer).to_lora(tmp_path / "adapter")
    plain = model_of("llama")
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), logits(wrapped), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model_of("llama")), logits(wrapped))
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "base_layer" in name or "_orig_mod" in name]  # noqa: SIM118
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{layer}.mlp.down_proj" for layer in LAYERS]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_session_saved_on_a_wrapped_model_goes_on_on_the_model_inside(wrap, tokenizer, tmp_path):
    edited(
        wrapped := wrap(model_of("llama")), tokenizer, "memit+P", spaces=random_spaces(model_of("llama"), LAYERS)
    ).save(tmp_path / "session")
    plain = model_of("llama")
    resumed = Session.resume(tmp_path / "session", plain, tokenizer)
    assert resumed.facts
    assert all(torch.equal(weights(plain)[layer], weights(wrapped)[layer]) for layer in LAYERS)


def test_a_trained_adapter_stays_active_and_an_edit_adds_what_it_adds_to_the_merged_model(tokenizer):
    """Of the out-projections themselves too: LoRA's part and the edit are sums."""
    everywhere = ("q_proj", "gate_proj", "up_proj", "down_proj")
    wrapped = lora(model_of("llama"), *everywhere, trained=True)
    merged = lora(model_of("llama"), *everywhere, trained=True).merge_and_unload()
    torch.testing.assert_close(logits(wrapped), logits(merged))
    assert not torch.allclose(logits(wrapped), logits(model_of("llama")))
    edited(wrapped, tokenizer)
    edited(merged, tokenizer)
    torch.testing.assert_close(logits(wrapped), logits(merged), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), logits(merged), rtol=1e-5, atol=1e-6)


def test_an_adapter_that_scales_by_the_weights_norm_is_refused(tokenizer):
    model = lora(model_of("llama"), "down_proj", trained=True, use_dora=True)
    before = weights(model)
    with pytest.raises(ModelStructureError, match=r"adapter around model\.layers\.0\.mlp\.down_proj.*merge_and_unload"):
        session(model, tokenizer)
    assert all(torch.equal(weights(model)[layer], before[layer]) for layer in LAYERS)


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_prompt_tuning_changes_what_the_model_reads_and_is_refused(config, tokenizer):
    model = peft.get_peft_model(model_of("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelStructureError, match="PeftModelForCausalLM around LlamaForCausalLM changes what it reads"):
        session(model, tokenizer)
    with model.disable_adapter():
        assert session(model, tokenizer).edit(RECORDS)


def test_the_guard_projects_what_is_written_to_the_layer_inside_an_adapter():
    model = lora(model_of("llama"), "down_proj", trained=True)
    spaces = random_spaces(model, [1])
    start = weights(model)[1]
    with torch.no_grad(), guard(model, spaces):
        model.base_model.model.model.layers[1].mlp.down_proj.base_layer.weight.add_(1.0)
    delta = weights(model)[1] - start
    assert float(delta.norm()) > 0
    assert float((delta - spaces[1].project(delta)).norm()) <= 1e-6 * float(delta.norm())


def test_a_model_that_carries_an_adapter_is_not_saved_without_its_edit(tokenizer, tmp_path):
    model = model_of("llama", torch.float32)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(StoreError, match="merge_and_unload"):
        save_model(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_settings_derived_for_a_wrapped_model_are_those_of_the_model_inside(tokenizer):
    options = {"covariances": COVARIANCES, "contexts": CONTEXTS, "hyperparameters": HYPERPARAMETERS}
    one = Session(model_of("llama"), tokenizer, "memit", **options)
    other = Session(torch.nn.DataParallel(model_of("llama")), tokenizer, "memit", **options)
    assert one.hyperparameters == other.hyperparameters
