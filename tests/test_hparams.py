"""Hyperparameter files: EasyEdit's are understood, mistakes are reported with file and key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.hparams import Hyperparameters, TargetSettings
from alphaedit_plugin.nullspace import PAPER_THRESHOLD, Criterion
from alphaedit_plugin.shipped import shipped

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
    assert found.null_space == Criterion(threshold=PAPER_THRESHOLD)


def test_target_settings_carry_every_setting_over(tmp_path):
    text = "layers: [1]\nv_num_grad_steps: 7\nv_lr: 0.3\nv_weight_decay: 0.2\nkl_factor: 0.1\nclamp_norm_factor: 2\n"
    found = read(tmp_path, text + "reduced_precision: true\n").target_settings
    assert found == TargetSettings(steps=7, lr=0.3, weight_decay=0.2, kl_factor=0.1, clamp=2.0, reduced_precision=True)


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


@settings(max_examples=30, deadline=None)
@given(
    layers=st.lists(st.integers(0, 40), min_size=1, unique=True),
    numbers=st.fixed_dictionaries(
        {name: st.floats(0, 1e6) for name in ("v_lr", "v_weight_decay", "kl_factor", "mom2_update_weight")}
    ),
    criterion=st.one_of(
        st.floats(1e-9, 1e9).map(lambda x: Criterion(threshold=x)),
        st.floats(1e-6, 0.99).map(lambda x: Criterion(energy=x)),
        st.integers(1, 5000).map(lambda x: Criterion(nullity=x)),
    ),
)
def test_what_as_dict_writes_from_yaml_reads_back(tmp_path_factory, layers, numbers, criterion):
    first = Hyperparameters(layers=tuple(sorted(layers)), null_space=criterion, **numbers)
    values = {key: value for key, value in first.as_dict().items() if value is not None}
    assert read(tmp_path_factory.mktemp("round"), yaml.safe_dump(values)) == first


def test_every_shipped_file_loads_and_fits_easyedits_shape():
    paths = sorted(shipped("hparams").glob("*/*.yaml"))
    assert paths
    for path in paths:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = Hyperparameters.from_yaml(path)
        assert list(found.layers) == sorted(values["layers"])
        assert values["alg_name"] == path.parent.name
        assert Path(values["model_name"]).name.lower() == path.stem


@pytest.mark.parametrize("name", ["smollm2-135m", "someone/SmolLM2-135M", "/models/smollm2-135m/"])
def test_the_shipped_file_is_found_by_the_models_short_name(name):
    path = shipped("hparams/MEMIT/smollm2-135m.yaml")
    assert Hyperparameters.for_model("memit", tiny("llama"), name) == Hyperparameters.from_yaml(path)


@pytest.mark.parametrize("depth", [1, 2, 4, 5, 6, 12, 30])
def test_an_unknown_model_gets_up_to_five_consecutive_layers_that_exist(depth):
    model = tiny("llama", num_hidden_layers=depth)
    layers = Hyperparameters.for_model("memit", model, "unknown/model").layers
    assert len(layers) == min(5, depth)
    assert list(layers) == list(range(layers[0], layers[0] + len(layers)))
    assert layers[0] >= 0
    assert layers[-1] < depth
