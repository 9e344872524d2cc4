"""What a session is exported as: a patch, an adapter, a checkpoint."""

from __future__ import annotations

import pytest
import torch
from support.sessions import (
    LAYERS,
    contents,
    edited,
    every_method,
    every_trial,
    logits,
    model_of_kind,
)
from support.weights import assert_same, everything
from transformers import AutoModelForCausalLM

from alphaedit_plugin.model import loading
from alphaedit_plugin.session.patch import apply_patch, revert_patch
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow


@every_trial
def test_a_patch_is_the_session_bit_for_bit_and_back(method, kind, tokenizer, tmp_path):
    editing = edited(kind, tokenizer, method, 0, 1, 2)
    editing.undo()
    model = model_of_kind(kind)
    for finish in (False, True):
        if finish:
            editing.finish()
        editing.to_patch(tmp_path / "p.safetensors")
        about = apply_patch(model, tmp_path / "p.safetensors")
        assert_same(everything(model), everything(editing.model))
        assert about["method"] == method
        assert [fact["case_id"] for fact in about["facts"]] == [fact.case_id for fact in editing.facts]
        revert_patch(model, tmp_path / "p.safetensors")
        assert_same(everything(model), everything(model_of_kind(kind)))


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_a_patch_is_the_same_from_a_resumed_session(method, tokenizer, tmp_path):
    first = edited("wide llama", tokenizer, method, 0, 1)
    first.save(tmp_path / "s")
    first.to_patch(tmp_path / "first.safetensors")
    Session.resume(tmp_path / "s", model_of_kind("wide llama")).to_patch(tmp_path / "second.safetensors")
    (metadata, tensors), (expected, expected_tensors) = (
        contents(tmp_path / f"{n}.safetensors") for n in ("second", "first")
    )
    assert metadata == expected
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected_tensors.items())


@pytest.mark.parametrize("method", ["memit+P", "alphaedit", "rome"])
def test_a_patch_of_few_facts_is_smaller_than_the_weights(method, tokenizer, tmp_path):
    editing = edited("wide llama", tokenizer, method, 0, 1)
    editing.to_patch(tmp_path / "p.safetensors")
    weights = sum(p.matrix.numel() * p.matrix.itemsize for p in editing.projections.values())
    assert (tmp_path / "p.safetensors").stat().st_size < weights / 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@every_method
def test_an_adapter_gives_the_sessions_logits(method, kind, tokenizer, tmp_path):
    peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    ranks = editing.to_lora(tmp_path / "lora")
    assert set(ranks) == set(editing.hyperparameters.layers)
    with_adapter = peft.PeftModel.from_pretrained(model_of_kind(kind), tmp_path / "lora")
    expected = logits(editing.model)
    scale = float(expected.abs().max())
    assert float((logits(model_of_kind(kind)) - expected).abs().max()) > 1e-3 * scale, "the edit does not show"
    assert float((logits(with_adapter) - expected).abs().max()) < 1e-4 * scale


def test_an_adapter_of_less_energy_is_thinner(tokenizer, tmp_path):
    editing = edited("llama", tokenizer, "alphaedit", 0, 1, 2, 3)
    whole, thin = editing.to_lora(tmp_path / "whole"), editing.to_lora(tmp_path / "thin", energy=0.5)
    assert all(thin[layer] < whole[layer] for layer in LAYERS)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@pytest.mark.parametrize("method", ["memit+P", "alphaedit", "prune"])
def test_an_edited_model_is_an_ordinary_checkpoint(method, kind, tokenizer, tmp_path):
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    editing.model.save_pretrained(tmp_path / "plain")
    loading.save_model(editing.model, editing.tokenizer, tmp_path / "ours")
    for folder in ("plain", "ours"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype="auto")
        assert_same(everything(again), everything(editing.model))
        assert torch.equal(logits(again), logits(editing.model))
