"""Hyperparameter files: EasyEdit's are understood, mistakes are reported with file and key."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import random_covariance
from support.tiny import tiny
from support.tries import tries

from alphaedit_plugin.editors.hyperparameters import Hyperparameters, TargetSettings
from alphaedit_plugin.editors.registry import listed
from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.nullspace.projection import PAPER_THRESHOLD, Criterion
from alphaedit_plugin.storage.shipped import shipped

# The keys of EasyEdit's hparams/MEMIT/*.yaml, with settings of our own.
EASYEDIT = """
alg_name: "MEMIT"
model_name: "./hugging_cache/gpt-j-6B"
stats_dir: "./data/stats"
device: 0
layers: [3, 4, 5]
clamp_norm_factor: 0.75
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 27
v_weight_decay: 0.5
kl_factor: 0.0625
mom2_adjustment: true
mom2_update_weight: 15000
rewrite_module_tmp: "transformer.h.{}.mlp.fc_out"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
"""


def read(tmp_path: Path, text: str) -> Hyperparameters:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return Hyperparameters.from_yaml(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(HyperparameterError) as caught:
        read(tmp_path, text)
    assert "some.yaml" in str(caught.value)
    return str(caught.value)


def test_easyedits_file_is_accepted_as_it_is(tmp_path):
    found = read(tmp_path, EASYEDIT)
    written = yaml.safe_load(EASYEDIT)
    assert found.layers == tuple(written["layers"])
    assert found.rewrite_module_tmp == written["rewrite_module_tmp"]
    assert found.v_lr == float(written["v_lr"])
    for name in ("v_num_grad_steps", "clamp_norm_factor", "kl_factor", "mom2_update_weight", "v_weight_decay"):
        assert getattr(found, name) == written[name]
    assert found.mom2_adjustment is True
    assert found.null_space == Criterion(threshold=PAPER_THRESHOLD)


def test_easyedits_alphaedit_and_rome_files_are_accepted_too(tmp_path):
    """Their own keys: L2, nullspace_threshold and P_loc; context_template_length_params."""
    more = "L2: 1\nnullspace_threshold: 2e-2\nP_loc: './null_space_project.pt'\nbatch_size: 1\nmax_length: 40\n"
    found = read(tmp_path, EASYEDIT + more + "context_template_length_params: [[5, 10], [10, 10]]\n")
    assert found.L2 == 1.0
    assert found.null_space == Criterion(threshold=2e-2)
    assert found.context_template_length_params == ((5, 10), (10, 10))
    assert read(tmp_path, "layers: [1]\nmom2_adjustment: false").mom2_adjustment is False
    assert "nullspace_threshold" in refused(tmp_path, "layers: [1]\nnullspace_threshold: 1\nnull_space: {energy: 0.1}")


@pytest.mark.parametrize("pairs", [[[5, 10], [10, 10]], [[10, 5]], [[3, 1], [3, 1], [7, 2]]])
def test_context_template_lengths_are_read_from_files_and_changes(tmp_path, pairs):
    expected = tuple((tokens, number) for tokens, number in pairs)
    assert read(tmp_path, f"layers: [1]\ncontext_template_length_params: {pairs}").context_template_length_params == (
        expected
    )
    changed = Hyperparameters(layers=(1,)).changed({"context_template_length_params": pairs}, "x")
    assert changed.context_template_length_params == expected


def test_target_settings_carry_every_setting_over(tmp_path):
    text = "layers: [1]\nv_num_grad_steps: 7\nv_lr: 0.3\nv_weight_decay: 0.2\nkl_factor: 0.1\nclamp_norm_factor: 2\n"
    found = read(tmp_path, text + "reduced_precision: true\ntarget_optimiser: adam\n").target_settings
    assert found == TargetSettings(7, 0.3, 0.2, 0.1, clamp=2.0, reduced_precision=True, optimiser="adam")
    assert read(tmp_path, text).target_settings.optimiser == "normalised"


@pytest.mark.parametrize("number", ["5e-1", "5E-1", "0.5", ".5", "'0.5'", "5.0e-1"])
def test_floats_are_understood_however_they_are_written(tmp_path, number):
    found = read(tmp_path, f"layers: [1]\nv_lr: {number}\nnull_space: {{threshold: {number}}}")
    assert found.v_lr == 0.5
    assert found.null_space == Criterion(threshold=0.5)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("{threshold: 2e-2}", Criterion(threshold=2e-2)),
        ("{energy: 0.1}", Criterion(energy=0.1)),
        ("{nullity: 0.5}", Criterion(nullity=0.5)),
        ("{nullity: 300}", Criterion(nullity=300)),
    ],
)
def test_the_null_space_may_be_chosen_by_any_criterion(tmp_path, criterion, expected):
    assert read(tmp_path, f"layers: [1]\nnull_space: {criterion}").null_space == expected


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("v_rl", "v_lr"),
        ("layer", "layers"),
        ("clamp_norm_facto", "clamp_norm_factor"),
        ("mom2_update_wieght", "mom2_update_weight"),
        ("nullspace", "null_space"),
        ("lm_head_modul", "lm_head_module"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_valid_one(tmp_path, key, nearest):
    message = refused(tmp_path, f"layers: [1]\n{key}: 1")
    assert repr(key) in message
    assert repr(nearest) in message


@pytest.mark.parametrize("key", ["zzzzzz", "7", "true", "null"])
def test_a_key_like_no_other_is_reported_with_all_valid_ones(tmp_path, key):
    message = refused(tmp_path, f"layers: [1]\n{key}: 1")
    assert all(field.name in message for field in fields(Hyperparameters))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", "4"),
        ("layers", "[]"),
        ("layers", "[4, 4]"),
        ("layers", "[-1]"),
        ("layers", "[4.0]"),
        ("layers", "[true]"),
        ("layers", "'4, 5'"),
        ("layers", "null"),
        ("v_lr", "fast"),
        ("v_lr", "[0.5]"),
        ("v_lr", "true"),
        ("v_lr", "-0.5"),
        ("v_lr", ".nan"),
        ("v_lr", ".inf"),
        ("v_lr", "null"),
        ("mom2_update_weight", "{}"),
        ("kl_factor", "''"),
        ("v_num_grad_steps", "0"),
        ("v_num_grad_steps", "2.5"),
        ("v_num_grad_steps", "many"),
        ("reduced_precision", "1"),
        ("reduced_precision", "'yes'"),
        ("rewrite_module_tmp", "model.layers.mlp"),
        ("rewrite_module_tmp", "'{}.{}'"),
        ("rewrite_module_tmp", "3"),
        ("L2", "-1"),
        ("L2", "[10]"),
        ("mom2_adjustment", "1"),
        ("mom2_adjustment", "'true'"),
        ("nullspace_threshold", "low"),
        ("nullspace_threshold", "0"),
        ("context_template_length_params", "5"),
        ("context_template_length_params", "[]"),
        ("context_template_length_params", "[5, 10]"),
        ("context_template_length_params", "[[5, 10, 1]]"),
        ("context_template_length_params", "[[0, 10]]"),
        ("context_template_length_params", "[[5, -1]]"),
        ("context_template_length_params", "[[5, 1.5]]"),
        ("layer_selection", "'random'"),
        ("fact_token", "'last'"),
        ("null_space", "true"),
        ("null_space", "2e-2"),
        ("null_space", "{}"),
        ("null_space", "{thresold: 1}"),
        ("null_space", "{threshold: low}"),
        ("null_space", "{threshold: -1}"),
        ("null_space", "{threshold: 0}"),
        ("null_space", "{threshold: .nan}"),
        ("null_space", "{threshold: 1, energy: 0.5}"),
        ("null_space", "{energy: 2}"),
        ("null_space", "{nullity: 2.5}"),
    ],
)
def test_an_ill_typed_value_is_reported_with_file_and_key(tmp_path, key, value):
    others = "" if key == "layers" else "layers: [1]\n"
    assert key in refused(tmp_path, f"{others}{key}: {value}")


@pytest.mark.parametrize(
    "text", ["", "null", "- a\n- b", "text", "a: [1", "a: b: c", "\tlayers: [1]", "layers: !!x [1]"]
)
def test_malformed_yaml_is_reported_by_file(tmp_path, text):
    refused(tmp_path, text)


def test_missing_layers_are_reported(tmp_path):
    assert "layers" in refused(tmp_path, "v_lr: 0.5")


def test_a_missing_or_binary_file_is_reported_by_name(tmp_path):
    with pytest.raises(HyperparameterError, match="absent"):
        Hyperparameters.from_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HyperparameterError, match="binary"):
        Hyperparameters.from_yaml(tmp_path / "binary.yaml")


def test_layers_are_put_in_ascending_order():
    assert Hyperparameters.from_mapping({"layers": [6, 4, 5]}, "x").layers == (4, 5, 6)


@tries(30)
@given(
    layers=st.lists(st.integers(0, 40), min_size=1, unique=True),
    numbers=st.fixed_dictionaries(
        {name: st.floats(0, 1e6) for name in ("v_lr", "v_weight_decay", "kl_factor", "mom2_update_weight", "L2")}
    ),
    switches=st.fixed_dictionaries({name: st.booleans() for name in ("mom2_adjustment", "reduced_precision")}),
    template=st.sampled_from([None, "model.layers.{}.mlp.down_proj"]),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=3).map(tuple),
    criterion=st.one_of(
        st.floats(1e-9, 1e9).map(lambda x: Criterion(threshold=x)),
        st.floats(1e-6, 0.99).map(lambda x: Criterion(energy=x)),
        st.integers(1, 5000).map(lambda x: Criterion(nullity=x)),
    ),
)
def test_what_as_dict_writes_is_read_back(tmp_path_factory, layers, numbers, switches, template, lengths, criterion):
    """By way of YAML and of JSON, in which a session keeps it."""
    first = Hyperparameters(
        layers=tuple(sorted(layers)),
        null_space=criterion,
        rewrite_module_tmp=template,
        context_template_length_params=lengths,
        **switches,
        **numbers,
    )
    assert Hyperparameters.from_mapping(json.loads(json.dumps(first.as_dict())), "x") == first
    values = {key: value for key, value in first.as_dict().items() if value is not None}
    assert read(tmp_path_factory.mktemp("round"), yaml.safe_dump(values)) == first


@tries(50)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "layers": st.lists(st.integers(0, 40), min_size=1, unique=True),
            "v_lr": st.floats(0, 10),
            "L2": st.floats(0, 10),
            "v_num_grad_steps": st.integers(1, 50),
            "mom2_adjustment": st.booleans(),
        },
    )
)
def test_what_is_changed_changes_and_nothing_else(changes):
    first = Hyperparameters(layers=(1, 2), v_lr=0.3, rewrite_module_tmp="a.{}.b", target_optimiser="adam")
    found = first.changed(changes, "x")
    for field in fields(Hyperparameters):
        expected = changes.get(field.name, getattr(first, field.name))
        assert getattr(found, field.name) == (tuple(sorted(expected)) if field.name == "layers" else expected)
    assert first == Hyperparameters((1, 2), v_lr=0.3, rewrite_module_tmp="a.{}.b", target_optimiser="adam")


def test_a_change_is_checked_as_a_file_is_and_its_error_names_the_place():
    with pytest.raises(HyperparameterError, match=r"over there.*v_rl.*v_lr"):
        Hyperparameters(layers=(1,)).changed({"v_rl": 1}, "over there")
    with pytest.raises(HyperparameterError, match=r"over there.*layers"):
        Hyperparameters(layers=(1,)).changed({"layers": []}, "over there")


# ---------------------------------------------------------------------------------------------------- shipped files

READ_ANOTHERS = {"memit-seq", "encore", "betaedit"}
METHODS = {each.name: each.folder for each in listed() if each.name not in READ_ANOTHERS}
SHIPPED = sorted(shipped("hparams").glob("*/*.yaml"))
MODELS = {path.stem for path in SHIPPED}
MODEL = tiny("llama")  # of which nothing is asked where a file is found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_file_loads_and_fits_easyedits_shape(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = Hyperparameters.from_yaml(path)
    assert list(found.layers) == sorted(values["layers"])
    assert values["alg_name"] == path.parent.name
    for key, value in values.items():  # what the file says is what is read, wherever we have a setting of that name
        if hasattr(found, key) and key not in ("layers", "null_space", "context_template_length_params"):
            assert getattr(found, key) == (float(value) if isinstance(value, str) and "{}" not in value else value)
    if "context_template_length_params" in values:
        assert [list(pair) for pair in found.context_template_length_params] == values["context_template_length_params"]
    needed = {"model_name", "stats_dir", "device", "fact_token", "v_loss_layer", "layer_module_tmp", "mlp_module_tmp"}
    needed |= {"attn_module_tmp", "ln_f_module", "lm_head_module", "mom2_dataset", "mom2_n_samples", "mom2_dtype"}
    assert needed <= set(values)
    assert values["v_loss_layer"] >= max(found.layers)
    assert found.rewrite_module_tmp.startswith(values["layer_module_tmp"])


def test_every_method_has_a_file_for_every_model():
    assert len(SHIPPED) == len(METHODS) * len(MODELS) == 45
    assert {path.parent.name for path in SHIPPED} == set(METHODS.values())
    for folder in METHODS.values():
        assert {path.stem for path in SHIPPED if path.parent.name == folder} == MODELS


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_file_is_found_by_its_own_name_and_by_the_hubs(path):
    """Whatever folder or organisation comes before it, in capitals or not."""
    (method,) = (method for method, folder in METHODS.items() if folder == path.parent.name)
    hub = yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"]
    last = hub.rpartition("/")[2]
    for name in (path.stem, path.stem.upper(), hub, hub.lower(), f"/models/{last}/", f"someone-else/{last}"):
        assert Hyperparameters.for_model(method, MODEL, name) == Hyperparameters.from_yaml(path), name


def test_no_two_files_of_a_method_answer_to_one_name():
    for folder in METHODS.values():
        names: list[str] = []
        for path in (path for path in SHIPPED if path.parent.name == folder):
            hub = yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"].rpartition("/")[2].lower()
            names += {path.stem, hub}
        assert len(set(names)) == len(names)


# The table of AlphaEdit's appendix, which MEMIT, RECT and PRUNE share there.
PAPER = {
    "gpt2-xl": {
        "layers": (13, 14, 15, 16, 17),
        "mom2_update_weight": 20000,
        "v_num_grad_steps": 20,
        "v_lr": 0.5,
    },
    "gpt-j-6b": {
        "layers": (3, 4, 5, 6, 7, 8),
        "mom2_update_weight": 15000,
        "v_num_grad_steps": 25,
        "v_lr": 0.5,
    },
    "llama3-8b": {
        "layers": (4, 5, 6, 7, 8),
        "mom2_update_weight": 15000,
        "v_num_grad_steps": 25,
        "v_lr": 0.1,
    },
}
HUB = {"gpt2-xl": "openai-community/gpt2-xl", "gpt-j-6b": "EleutherAI/gpt-j-6B"}
HUB["llama3-8b"] = "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.mark.parametrize("method", ["memit", "rect", "prune", "alphaedit"])
@pytest.mark.parametrize("model", PAPER)
def test_the_papers_models_are_edited_with_the_papers_values(model, method):
    found = Hyperparameters.for_model(method, MODEL, HUB[model])
    for name, value in PAPER[model].items():
        assert getattr(found, name) == value
    assert (found.clamp_norm_factor, found.kl_factor, found.v_weight_decay) == (0.75, 0.0625, 0.5)
    assert found.L2 == 10
    assert found.null_space == Criterion(threshold=PAPER_THRESHOLD) == Criterion(threshold=2e-2)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_rome_edits_one_layer_with_its_own_templates(model):
    """EasyEdit's and ROME's: short and long ones, 20 where MEMIT writes 5."""
    found = Hyperparameters.for_model("rome", MODEL, model)
    assert len(found.layers) == 1
    assert found.clamp_norm_factor >= 1
    assert {tokens for tokens, _ in found.context_template_length_params} == {5, 10}


@pytest.mark.parametrize("name", ["smollm2-135m", "someone/SmolLM2-135M", "/models/smollm2-135m/"])
def test_the_shipped_file_is_found_by_the_models_short_name(name):
    path = shipped("hparams/MEMIT/smollm2-135m.yaml")
    assert Hyperparameters.for_model("memit", tiny("llama"), name) == Hyperparameters.from_yaml(path)


@pytest.mark.parametrize("method", ["memit", "rect", "prune", "alphaedit"])
@pytest.mark.parametrize("depth", [1, 2, 4, 5, 6, 12, 30])
def test_an_unknown_model_gets_up_to_five_consecutive_layers_that_exist(depth, method):
    model = tiny("llama", num_hidden_layers=depth)
    layers = Hyperparameters.for_model(method, model, "unknown/model").layers
    assert len(layers) == min(5, depth)
    assert list(layers) == list(range(layers[0], layers[0] + len(layers)))
    assert layers[0] >= 0
    assert layers[-1] < depth


@pytest.mark.parametrize("width", [24, 96, 384])
def test_derived_settings_write_half_of_a_key_of_the_text_whatever_the_width(width):
    """MEMIT's Δ = R kᵀ(λC + kkᵀ)⁻¹ maps k to this share of R."""
    found = Hyperparameters.for_model("memit", tiny("llama", intermediate_size=width), "unknown/model")
    covariance = random_covariance(width, tokens=1000).matrix
    factor = torch.linalg.cholesky(covariance)
    keys = factor @ torch.randn(width, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = [
        float(key @ torch.linalg.solve(found.mom2_update_weight * covariance + key.outer(key), key)) for key in keys.T
    ]
    assert sum(inside) / len(inside) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("depth", [1, 2, 4, 5, 6, 12, 30])
def test_an_unknown_model_gets_one_layer_of_those_for_rome_and_romes_settings(depth, caplog):
    """What was derived is logged: nobody should take it for tuned."""
    model = tiny("llama", num_hidden_layers=depth)
    with caplog.at_level(logging.WARNING):
        found = Hyperparameters.for_model("rome", model, "unknown/model")
    assert len(found.layers) == 1
    assert found.layers[0] in Hyperparameters.for_model("memit", model, "unknown/model").layers
    shipped_file = Hyperparameters.for_model("rome", model, "gpt2-xl")
    for name in ("v_num_grad_steps", "v_lr", "clamp_norm_factor", "context_template_length_params"):
        assert getattr(found, name) == getattr(shipped_file, name)
    assert "unknown/model" in caplog.text
    assert "ROME" in caplog.text
