"""Loading a model and its tokenizer by path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from support.tiny import tiny
from support.weights import assert_same, everything
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.model.loading import load, save_model


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    tiny("llama", vocab_size=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_is_loaded_ready_to_edit(checkpoint, tokenizer):
    model, loaded_tokenizer = load(str(checkpoint))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._name_or_path == str(checkpoint)
    for (name, loaded), saved in zip(model.named_parameters(), tiny("llama", vocab_size=512).parameters(), strict=True):
        assert torch.equal(loaded, saved), name
    assert loaded_tokenizer("The capital")["input_ids"] == tokenizer("The capital")["input_ids"]


def test_the_type_asked_for_is_the_type_given(checkpoint):
    model, _ = load(str(checkpoint), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ModelStructureError, match="nothing here"):
        load(str(tmp_path / "nothing here"))


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "models/", "../model"])
def test_a_path_where_nothing_is_is_no_matter_of_the_hubs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    with pytest.raises(ModelStructureError, match=f"there is no model folder {re.escape(name)}:"):
        load(name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OfflineModeIsEnabled, "not in Hugging Face's cache; the hub cannot be reached"),
        (ConnectionError, "not in Hugging Face's cache; the hub cannot be reached"),
        (RepositoryNotFoundError, "there is no folder org/model here, and the model org/model is not on Hugging Face"),
        (GatedRepoError, "the model org/model is gated: ask for it at https://huggingface.co/org/model"),
    ],
)
def test_why_the_hub_gives_no_model_is_said_without_asking_again(error, said, monkeypatch):
    asked = []

    def refused(url, **_options):
        asked.append(url)
        raise error.__new__(error)

    monkeypatch.setattr("alphaedit_plugin.model.loading.get_hf_file_metadata", refused)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    with pytest.raises(ModelStructureError, match=re.escape(said)):
        load("org/model")
    assert len(asked) == 1


def test_a_model_in_the_hubs_cache_needs_no_network(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("alphaedit_plugin.model.loading.try_to_load_from_cache", lambda name, file: "somewhere")
    monkeypatch.setattr("alphaedit_plugin.model.loading.get_hf_file_metadata", None)
    for each in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        read = each.from_pretrained
        monkeypatch.setattr(each, "from_pretrained", lambda name, read=read, **options: read(checkpoint, **options))
    assert load("org/model")[0].config._name_or_path == "org/model"


def test_a_model_that_is_spread_is_placed_by_accelerate(checkpoint, monkeypatch):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    asked, read = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **o: asked.append(o) or read(*a, **o))
    load(str(checkpoint), device="spread")
    load(str(checkpoint))
    assert [options.get("device_map") for options in asked] == ["auto", None]
    monkeypatch.setattr("alphaedit_plugin.model.loading.find_spec", lambda name: None)
    with pytest.raises(ModelStructureError, match="'spread' needs accelerate"):
        load(str(checkpoint), device="spread")


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ModelStructureError, match="the device 'nowhere' cannot be used here"):
        load(str(tmp_path / "no model"), device="nowhere")


def test_a_type_that_does_not_exist_is_refused(checkpoint):
    with pytest.raises(ModelStructureError, match="float33"):
        load(str(checkpoint), dtype="float33")


@pytest.mark.parametrize("dtype", ["nn", "int8"])
def test_a_type_that_no_model_can_have_is_refused(checkpoint, dtype):
    with pytest.raises(ModelStructureError):
        load(str(checkpoint), dtype=dtype)


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (
            lambda: T5ForConditionalGeneration(T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)),
            "an encoder-decoder (t5)",
        ),
        (lambda: BertForMaskedLM(BertConfig(vocab_size=512, **SIZES)), "a masked language model (bert)"),
        (lambda: ViTModel(ViTConfig(**SIZES)), "no language model that writes text (vit)"),
    ],
    ids=["t5", "bert", "vit"],
)
def test_a_checkpoint_of_no_decoder_is_named_for_what_it_is(model, kind, tokenizer, tmp_path, caplog):
    model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    caplog.clear()
    with pytest.raises(ModelStructureError) as caught:
        load(str(tmp_path))
    said = f"{tmp_path} is {kind}: only decoders such as GPT-2, Llama or Qwen can be edited"
    assert str(caught.value) == said
    assert caught.value.__cause__ is None
    assert not caplog.records


# ------------------------------------------------------------------------------------------------------- saving


def is_checkpoint_of(folder, model, tokenizer):
    found, found_tokenizer = load(str(folder))
    assert_same(everything(found), everything(model))
    return found_tokenizer("The capital")["input_ids"] == tokenizer("The capital")["input_ids"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_is_loaded_again(name, dtype, tokenizer, tmp_path):
    """Tied weights (gpt2, gemma) included."""
    model = tiny(name, vocab_size=512, dtype=dtype)
    save_model(model, tokenizer, tmp_path / "deep" / "model")
    assert is_checkpoint_of(tmp_path / "deep" / "model", model, tokenizer)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_a_checkpoint_is_replaced_whole(tokenizer, tmp_path):
    """Nothing of a checkpoint in many parts stays beside one in a single file."""
    tiny("llama", vocab_size=512).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    before = {path.name for path in (tmp_path / "model").iterdir()}
    edited = tiny("llama", vocab_size=512, seed=1)
    save_model(edited, tokenizer, tmp_path / "model")
    assert is_checkpoint_of(tmp_path / "model", edited, tokenizer)
    assert not {name for name in before if "-of-" in name} & {path.name for path in (tmp_path / "model").iterdir()}
    assert [path.name for path in tmp_path.iterdir() if "cache" not in path.name] == ["model"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", ["weights", "tokenizer", "first rename", "second rename"])
def test_a_checkpoint_that_cannot_be_replaced_stays_as_it_was(step, error, tokenizer, tmp_path, monkeypatch):
    old, new = tiny("llama", vocab_size=512), tiny("llama", vocab_size=512, seed=1)
    save_model(old, tokenizer, tmp_path / "model")
    renames, rename = [], Path.rename

    def fail(*_args, **_kwargs):
        raise error("No space left on device")

    def failing_rename(path, target):
        renames.append(path)
        return fail() if len(renames) == {"first rename": 1, "second rename": 2}[step] else rename(path, target)

    with monkeypatch.context() as patch:
        if step == "weights":
            patch.setattr(type(new), "save_pretrained", fail)
        elif step == "tokenizer":
            patch.setattr(type(tokenizer), "save_pretrained", fail)
        else:
            patch.setattr(Path, "rename", failing_rename)
        with pytest.raises(StoreError if error is OSError else error, match="No space left"):
            save_model(new, tokenizer, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir() if "cache" not in path.name] == ["model"]
    assert is_checkpoint_of(tmp_path / "model", old, tokenizer)


def test_a_place_where_no_checkpoint_can_be_is_an_error_that_names_it(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        save_model(tiny("llama", vocab_size=512), tokenizer, tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_checkpoint_is_not_replaced_by_one(kind, tokenizer, tmp_path):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("years of work")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    try:
        save_model(tiny("llama", vocab_size=512), tokenizer, place)
    except StoreError as refused:
        refusal = str(refused)
    else:
        refusal = str(place)
    assert str(place) in refusal
    assert (place if kind == "file" else place / "thesis.txt").read_text() == "years of work"
