"""The flag in the real EasyEdit: the edition of PyPI, or with EASYEDIT_HOME a checkout of the current one."""

from __future__ import annotations

from support import real_easyedit
from support.paths import ROOT, SUPPORT, TESTS

easyeditor = real_easyedit.load()

import ast
import copy
import dataclasses
import gc
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from support.easyedit_methods import (
    FACTS,
    LAYERS,
    batch_edit,
    call,
    class_of,
    edit,
    editor_of,
    hyperparameters,
    model_of,
    statistics_on_disk,
    weights,
)

import alphaedit_plugin.easyedit as plugin
from alphaedit_plugin.baselines.methods import ADDED, COVERED
from alphaedit_plugin.editors.revive import protected
from alphaedit_plugin.errors import AlphaEditError, HyperparameterError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.nullspace.kronecker import LowCurvature
from alphaedit_plugin.nullspace.null_spaces import (
    NullSpaces,
    null_spaces_of,
)
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.storage.store import Store

HEAD = real_easyedit.is_head()
TABLE = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
FLAG = {"nullity": 12, "progress": False}
METHODS = [name for name in COVERED if name in TABLE]
HERE = [name for name in METHODS if name != "DINM"]  # DINM has a data set and an editor of its own


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """EasyEdit writes logs/ where it is started; the plug-in is installed, and EasyEdit believes in CUDA."""
    monkeypatch.chdir(tmp_path)
    plugin.install()
    with real_easyedit.on_cpu():
        yield


@pytest.fixture
def tokenizer(tokenizer):
    """With an unknown token, which EasyEdit's FT asks for."""
    made = copy.deepcopy(tokenizer)
    made.unk_token = "<pad>"
    return made


@pytest.fixture
def model(tokenizer, tmp_path):
    made = model_of()
    statistics_on_disk(made, tokenizer, tmp_path / "data" / "stats")
    return made


def spaces_of(model, tokenizer, tmp_path, layers=LAYERS):
    statistics = statistics_on_disk(model, tokenizer, tmp_path / "again")
    return null_spaces_of(statistics.of_layers(layers), Criterion(nullity=12))


def outside(model, before, null_spaces) -> dict[int, float]:
    """‖ΔW(I − P)‖ / ‖ΔW‖ by layer."""
    found = {}
    for layer, projection in Decoder(model).out_projections(list(null_spaces)).items():
        delta = projection.stored.detach() - before[f"{projection.name}.weight"]
        delta = (delta.T if projection.transposed else delta).double()
        found[layer] = float((delta - delta @ null_spaces[layer].dense()).norm() / delta.norm())
    return found


@pytest.mark.parametrize("name", HERE)
def test_whatever_a_flagged_method_writes_is_in_the_null_space(name, model, tokenizer, tmp_path):
    hparams = hyperparameters(name)
    hparams.null_space = FLAG
    layers = LAYERS[:1] if name in ("ROME", "R-ROME", "SimIE") else LAYERS
    null_spaces = spaces_of(model, tokenizer, tmp_path, layers)
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)
    names = {f"{p.name}.weight" for p in Decoder(model).out_projections(layers).values()}
    assert {n for n, w in model.named_parameters() if not torch.equal(w, before[n])} == names
    assert max(outside(model, before, null_spaces).values()) < 1e-5
    assert hparams.null_space == FLAG


@pytest.mark.parametrize("tau", [None, 0.3])
@pytest.mark.parametrize("name", [name for name in ("MEMIT", "FT", "RECT", "AlphaEdit") if name in TABLE])
def test_a_modifier_of_the_flag_keeps_the_leading_directions_of_the_unedited_weights_too(name, tau, model, tokenizer):
    hparams = hyperparameters(name)
    settings = {} if tau is None else {"tau": tau}
    hparams.null_space = {**FLAG, "modifiers": {"revive": settings} if settings else ["revive"]}
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)
    changed = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert changed
    for projection in Decoder(model).out_projections(LAYERS).values():
        start = before[f"{projection.name}.weight"]
        delta = (projection.stored.detach() - start).double()
        u, v = protected(start, **settings)
        assert float((u.T @ delta).norm()) <= 1e-5 * float(delta.norm())
        if name in ("MEMIT", "FT") or (name == "AlphaEdit" and HEAD):  # in our own methods P comes last
            assert float((delta @ v).norm()) <= 1e-5 * float(delta.norm())


@pytest.mark.parametrize("energy", [None, 0.3])
@pytest.mark.parametrize("name", [name for name in HERE if name not in ADDED and not COVERED[name].remembers])
def test_under_crisp_whatever_is_written_is_where_the_loss_on_the_text_is_flat(
    name, energy, model, tokenizer, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text("the king came home from the war and saw the old town by the river\n\n" * 60)
    layers = LAYERS[:1] if name in ("ROME", "R-ROME", "SimIE") else LAYERS
    chosen = {} if energy is None else {"energy": energy}
    spaces = LowCurvature.prepare(
        model, tokenizer, layers, corpus=text, tokens=400, store=Store(tmp_path / "again"), **chosen
    )
    hparams = hyperparameters(name)
    hparams.null_space = {"crisp": True, "corpus": str(text), "tokens": 400, "progress": False, **chosen}
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)  # two calls: the second on the edited model, inside of the same directions
    for layer, projection in Decoder(model).out_projections(layers).items():
        delta = projection.stored.detach() - before[f"{projection.name}.weight"]
        delta = (delta.T if projection.transposed else delta).double()
        size = float(delta.norm())
        assert size > 0
        assert float((delta - spaces[layer].project(delta)).norm()) <= 1e-5 * size


def test_under_crisp_another_share_is_of_the_same_curvature(model, tokenizer, tmp_path):
    """The loss's gradients are taken once, before the first edit."""
    text = tmp_path / "text.txt"
    text.write_text("the king came home from the war and saw the old town by the river\n\n" * 60)
    hparams, before = hyperparameters("MEMIT"), weights(model)
    wide = LowCurvature.prepare(
        model, tokenizer, LAYERS, energy=0.4, corpus=text, tokens=400, store=Store(tmp_path / "again")
    )
    editor = editor_of(model, tokenizer, hparams)
    for energy in (0.1, 0.4):  # the narrower lies inside the wider
        hparams.null_space = {"crisp": True, "corpus": str(text), "tokens": 400, "progress": False, "energy": energy}
        edit(editor, sequential_edit=True)
    for layer, projection in Decoder(model).out_projections(LAYERS).items():
        delta = (projection.stored.detach() - before[f"{projection.name}.weight"]).double()
        assert float((delta - wide[layer].project(delta)).norm()) <= 1e-5 * float(delta.norm())


@pytest.mark.parametrize("name", [name for name in TABLE if name in ADDED or name in ("AlphaEdit", "SPHERE")])
def test_crisp_is_no_p_that_a_method_could_solve_with(name, model, tokenizer):
    hparams, before = hyperparameters(name), weights(model)
    with pytest.raises(HyperparameterError, match=f"{name}: null_space.crisp is no P"):
        hparams.null_space = {"crisp": True}
    hparams.null_space = FLAG
    vars(hparams)["null_space"] = {"crisp": True}  # whoever sets it past us learns of it before anything is written
    editor = editor_of(model, tokenizer, hparams)
    with pytest.raises(HyperparameterError, match=f"{name}: null_space.crisp is no P"):
        edit(editor, sequential_edit=True)
    assert all(torch.equal(weight, before[key]) for key, weight in model.named_parameters())


@pytest.mark.skipif("SimIE" not in TABLE, reason="the edition of PyPI has no SimIE: set EASYEDIT_HOME to a checkout")
def test_crisp_is_no_p_for_simies_base_either(model, tokenizer):
    hparams, before = hyperparameters("SimIE"), weights(model)
    hparams.base_hparams.alg_name = "AlphaEdit"
    hparams.null_space = {"crisp": True, "progress": False}
    editor = editor_of(model, tokenizer, hparams)
    with pytest.raises(HyperparameterError, match=r"AlphaEdit: null_space\.crisp is no P"):
        edit(editor, sequential_edit=True)
    assert all(torch.equal(weight, before[key]) for key, weight in model.named_parameters())


@pytest.mark.skipif("DINM" not in TABLE, reason="the edition of PyPI has no DINM: set EASYEDIT_HOME to a checkout")
def test_dinm_is_projected_in_whatever_layer_it_chooses(model, tokenizer, tmp_path):
    hparams = hyperparameters("DINM", null_space=FLAG)
    constraint = {"general knowledge constraint": {"prompt": "The river flows", "ground_truth": "to the sea"}}
    for layer in (2, 0):
        hparams.layers = [layer]
        before, null_spaces = weights(model), spaces_of(model_of(), tokenizer, tmp_path, [layer])
        call("DINM", model, tokenizer, [{**FACTS[0], "locality": constraint}], hparams)
        assert outside(model, before, null_spaces)[layer] < 1e-5 or layer == 0  # then P is of the edited model
        changed = [n for n, parameter in model.named_parameters() if not torch.equal(parameter, before[n])]
        assert changed == [f"model.layers.{layer}.mlp.down_proj.weight"]


@pytest.mark.skipif("SimIE" not in TABLE, reason="the edition of PyPI has no SimIE: set EASYEDIT_HOME to a checkout")
def test_simies_own_update_is_projected_by_its_base_methods_flag(model, tokenizer, tmp_path):
    hparams = hyperparameters("SimIE")
    hparams.base_hparams.null_space = FLAG
    before, null_spaces = weights(model), spaces_of(model, tokenizer, tmp_path, LAYERS[:1])
    for fact in FACTS[:2]:
        call("SimIE", model, tokenizer, [fact], hparams)
    assert max(outside(model, before, null_spaces).values()) < 1e-5


@pytest.mark.skipif("SimIE" not in TABLE, reason="the edition of PyPI has no SimIE: set EASYEDIT_HOME to a checkout")
@pytest.mark.parametrize("on_disk", [True, False])
def test_simie_finds_the_statistics_of_its_base_method(on_disk, tokenizer, tmp_path, monkeypatch, caplog):
    layer_stats = importlib.import_module("easyeditor.models.rome.layer_stats")
    monkeypatch.setattr(layer_stats, "load_dataset", None)
    model, null_spaces = model_of(), spaces_of(model_of(), tokenizer, tmp_path)
    if on_disk:
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    hparams = hyperparameters("SimIE", base_method="MEMIT", null_space=FLAG)
    before = weights(model)
    with caplog.at_level(logging.INFO, logger="alphaedit_plugin"):
        call("SimIE", model, tokenizer, FACTS[:1], hparams)
    assert max(outside(model, before, null_spaces).values()) < 1e-5
    assert ("nothing is computed" in caplog.text) == on_disk
    hparams.base_hparams.null_space = {"nullity": 2}
    with pytest.raises(HyperparameterError, match="different null_space"):
        call("SimIE", model, tokenizer, FACTS[:1], hparams)


@pytest.mark.skipif(not HEAD, reason="the edition of PyPI has no AlphaEdit: set EASYEDIT_HOME to a checkout")
def test_alphaedits_keys_are_forgotten_on_request_and_p_follows_the_flag(model, tokenizer, tmp_path, monkeypatch):
    generate = importlib.import_module("easyeditor.util.generate")
    monkeypatch.setattr(generate, "generate_fast", lambda *_, **__: ["The river flows", "They said"])
    hparams = hyperparameters("AlphaEdit", null_space=FLAG)
    base = weights(model)
    for _ in range(2):
        call("AlphaEdit", model, tokenizer, FACTS[:2], hparams)
    edited = weights(model)
    call("AlphaEdit", model, tokenizer, FACTS[2:], hparams, reset_cache=True)
    forgetful = weights(model)
    model.load_state_dict(edited)
    call("AlphaEdit", model, tokenizer, FACTS[2:], copy.deepcopy(hparams))
    assert all(torch.equal(parameter, forgetful[n]) for n, parameter in model.named_parameters())
    model.load_state_dict(base)
    hparams.null_space = {**FLAG, "nullity": 6}
    call("AlphaEdit", model, tokenizer, FACTS[:1], hparams)
    narrower = null_spaces_of(
        statistics_on_disk(model_of(), tokenizer, tmp_path / "narrow").of_layers(LAYERS), Criterion(nullity=6)
    )
    assert max(outside(model, base, narrower).values()) < 1e-5


@pytest.mark.parametrize("name", HERE)
def test_what_easyedit_puts_back_is_as_it_was_bit_for_bit(name, model, tokenizer):
    hparams = hyperparameters(name)
    hparams.null_space = FLAG
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    metrics, _, _ = edit(editor, FACTS[:2], sequential_edit=False)
    assert len(metrics) == 2
    assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "phi", "gemma2", "gptj"])
@pytest.mark.parametrize("name", ["ROME", "MEMIT", "AlphaEdit", "RECT"])
def test_other_architectures_and_names_work_too(name, architecture, tokenizer, tmp_path):
    if architecture != "gpt2" and not HEAD:
        architecture = {"phi": "qwen2", "gemma2": "mistral", "gptj": "llama"}[
            architecture
        ]  # whose layers the old nethook can trace
    model = model_of(architecture)
    null_spaces = spaces_of(model, tokenizer, tmp_path, LAYERS[:1] if name == "ROME" else LAYERS)
    statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    hparams = hyperparameters(name, architecture, model_name=f"my-{architecture}", null_space=FLAG)
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)
    assert max(outside(model, before, null_spaces).values()) < 1e-5


# --------------------------------------------------------------------------------------------- hyperparameters


def test_the_flag_is_read_from_a_file_kept_and_shown(tmp_path):
    path = tmp_path / "memit.yaml"
    lines = [f"{key}: {value!r}" for key, value in dataclasses.asdict(hyperparameters("MEMIT")).items() if value]
    path.write_text("\n".join(lines) + "\nnull_space: {threshold: 2e-2, tokens: 1e3}\n")
    hparams = class_of("MEMIT").from_hparams(str(path))
    assert hparams.null_space == {"threshold": "2e-2", "tokens": "1e3"}  # YAML 1.1 reads these as text
    for kept in (copy.deepcopy(hparams), copy.copy(hparams), dataclasses.replace(hparams, v_lr=0.1)):
        assert kept.null_space == hparams.null_space
    assert dataclasses.asdict(hparams)["null_space"] == hparams.null_space
    path.write_text("\n".join([*lines, "null_space: true"]))
    assert class_of("MEMIT").from_hparams(str(path)).null_space is True
    path.write_text("\n".join(lines))
    assert class_of("MEMIT").from_hparams(str(path)).null_space is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "must be true, false or a mapping"),
        ({"treshold": 0.1}, "did you mean 'threshold'"),
        ({"threshold": 0.1, "energy": 0.1}, "exactly one"),
        ({"threshold": -1}, "positive"),
        ({"tokens": "many"}, "tokens must be a whole number"),
        ({"tokens": 1.5}, "tokens must be a whole number"),
        ({"tokens": float("inf")}, "tokens must be a whole number"),
        ({"tokens": float("nan")}, "tokens must be a whole number"),
        ({"corpus": 3}, "corpus must be text"),
        ({"fast_targets": "on"}, "fast_targets must be true or false"),
        ({"path": "p.safetensors", "threshold": 0.1}, "remove threshold"),
        ({"modifiers": "revive"}, "list of names"),
        ({"modifiers": ["reviv"]}, "did you mean revive"),
        ({"modifiers": ["rect"]}, "rect is no projection"),
        ({"modifiers": {"revive": {"share": 0.2}}}, "revive has no setting share: 0.2; it has tau: 0.1"),
        ({"modifiers": {"revive": {"tau": "much"}}}, "revive has no setting tau: 'much'"),
        ({"modifiers": {"revive": 0.2}}, "or their settings"),
        ({"crisp": 0.1}, "crisp must be true or false"),
        ({"crisp": True, "modifiers": ["revive"]}, "in the place of P: remove modifiers"),
        ({"crisp": True, "path": "p.safetensors"}, "remove path"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_when_it_is_set(value, message):
    with pytest.raises(HyperparameterError, match=message):
        hyperparameters("MEMIT", null_space=value)
    hparams = hyperparameters("MEMIT")
    with pytest.raises(HyperparameterError, match=message):
        hparams.null_space = value
    assert hparams.null_space is None


@pytest.mark.parametrize("name", ["LoRA", "IKE", "KN"])
def test_the_flag_on_a_method_that_it_does_nothing_for_is_an_error_that_says_why(name):
    cls = class_of(name)
    hparams = object.__new__(cls)
    hparams.alg_name = name
    with pytest.raises(HyperparameterError, match=f"null_space does nothing for {name}: it .* use one of ROME"):
        hparams.null_space = True
    hparams.null_space = False
    assert not hparams.null_space


def test_the_flag_on_a_class_that_names_no_method_is_an_error():
    base = importlib.import_module("easyeditor.util.hparams").HyperParams
    with pytest.raises(HyperparameterError, match="does nothing for HyperParams"):
        base(null_space=True)


def test_hyperparameters_that_were_there_before_the_plug_in_are_as_good_as_others():
    plugin.uninstall()
    hparams = hyperparameters("MEMIT")
    plain = dataclasses.asdict(hparams)
    plugin.install()
    assert dataclasses.asdict(hparams) == {**plain, "null_space": None}
    assert dataclasses.replace(hparams, v_lr=0.3).null_space is None
    hparams.null_space = FLAG
    assert dataclasses.replace(hparams, v_lr=0.3).null_space == FLAG
    del hparams.null_space
    assert hparams.null_space is None


def test_a_class_derived_while_the_plug_in_is_installed_may_add_fields():
    @dataclasses.dataclass
    class Mine(importlib.import_module("easyeditor.util.hparams").HyperParams):
        layers: list
        alg_name: str

    assert Mine([1], "MEMIT", null_space=True).null_space is True
    assert Mine([1], "MEMIT").null_space is None


# --------------------------------------------------------------------------------------- statistics and null spaces


def test_easyedits_own_statistics_are_used_and_the_log_says_what_is_projected(model, tokenizer, caplog):
    hparams = hyperparameters("MEMIT", null_space={"nullity": 12})
    editor = editor_of(model, tokenizer, hparams)
    with caplog.at_level(logging.INFO, logger="alphaedit_plugin"):
        edit(editor)
    log = caplog.text
    assert "that EasyEdit has in data/stats/" in log
    assert "nothing is computed" in log
    assert "every update of model.layers.{}.mlp.down_proj is projected (nullity 12" in log
    for layer in LAYERS:
        assert f"layer {layer}: nullity 12 of 24, leakage of P 0." in log
    assert "collecting keys" not in log
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="alphaedit_plugin"):
        edit(editor)
    assert "is projected" not in caplog.text  # once is enough


def test_nobody_downloads_wikipedia(tokenizer, tmp_path, monkeypatch):
    """Without statistics on disk MEMIT's own λC comes from the plug-in too."""
    layer_stats = importlib.import_module("easyeditor.models.rome.layer_stats")

    def load_dataset(*_, **__):
        raise AssertionError("EasyEdit would download Wikipedia")

    monkeypatch.setattr(layer_stats, "load_dataset", load_dataset)
    model, null_spaces = model_of(), spaces_of(model_of(), tokenizer, tmp_path)
    before = weights(model)
    with pytest.raises(AssertionError, match="Wikipedia"):
        call("MEMIT", model, tokenizer, FACTS, hyperparameters("MEMIT"))
    call("MEMIT", model, tokenizer, FACTS, hyperparameters("MEMIT", null_space=FLAG))
    assert max(outside(model, before, null_spaces).values()) < 1e-5


def test_a_corpus_that_the_flag_names_goes_before_the_statistics_on_disk(model, tokenizer, tmp_path, caplog):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The river flows through the old town to the sea. " * 60)
    options = {
        "nullity": 12,
        "corpus": str(corpus),
        "tokens": 300,
        "cache_dir": str(tmp_path / "mine"),
        "progress": False,
    }
    hparams = hyperparameters("MEMIT", null_space=options)
    with caplog.at_level(logging.INFO, logger="alphaedit_plugin"):
        edit(editor_of(model, tokenizer, hparams))
    assert f"statistics: {corpus}" in caplog.text
    assert list((tmp_path / "mine" / "covariance").iterdir())


def test_null_spaces_of_a_file_are_used_and_those_of_another_model_refused(model, tokenizer, tmp_path):
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    null_spaces.save(tmp_path / "p.safetensors")
    hparams = hyperparameters("MEMIT", null_space={"path": str(tmp_path / "p.safetensors")})
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)
    assert max(outside(model, before, null_spaces).values()) < 1e-5
    stranger = model_of(seed=7)
    untouched = weights(stranger)
    with pytest.raises(WrongModelError, match="belong to hub/tiny-llama"):
        edit(editor_of(stranger, tokenizer, copy.deepcopy(hparams)))
    assert all(torch.equal(parameter, untouched[n]) for n, parameter in stranger.named_parameters())
    with pytest.raises(AlphaEditError, match="no null space of layers \\[3\\]"):
        edit(editor_of(model_of(), tokenizer, dataclasses.replace(hparams, layers=[1, 3])))


@pytest.mark.parametrize("source", ["its .npz", "text that the model writes", "a file"])
@pytest.mark.parametrize("fast", [False, True], ids=["own targets", "fast targets"])
@pytest.mark.parametrize("name", ["MEMIT", *(["AlphaEdit"] if HEAD else [])])
def test_a_flagged_call_looks_for_the_models_parts_once(name, source, fast, tokenizer, tmp_path, monkeypatch):
    """Once per template, however many stations ask for them."""
    model, flag = model_of(), {**FLAG, "fast_targets": fast}
    if source == "its .npz":
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    elif source == "a file":
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        spaces_of(model, tokenizer, tmp_path).save(tmp_path / "p.safetensors")
        flag = {"path": str(tmp_path / "p.safetensors"), "fast_targets": fast}
    else:
        flag["cache_dir"] = str(tmp_path / "empty")
    hparams, built, construct = hyperparameters(name, null_space=flag), [], Decoder.__init__

    def counted(self, model, template=None):
        built.append((id(model), template))
        construct(self, model, template)

    monkeypatch.setattr(Decoder, "__init__", counted)
    for fact in FACTS[:2]:
        built.clear()
        call(name, model, tokenizer, [fact], hparams)
        assert (id(model), hparams.rewrite_module_tmp) in built
        assert len(built) == len(set(built))


# ----------------------------------------------------------------------------------------- one editor after another


@pytest.mark.parametrize("name", [name for name in ("MEMIT", "AlphaEdit", "RECT", "PRUNE") if name in {*TABLE, *ADDED}])
def test_two_editors_alive_at_once_do_not_see_each_other(name, tokenizer, tmp_path):
    def alone(seed: int) -> dict[str, torch.Tensor]:
        model = model_of(seed=seed)
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats" / str(seed))
        editor = editor_of(model, tokenizer, flagged(seed))
        for fact in FACTS:
            edit(editor, [fact], sequential_edit=True)
        return weights(model)

    def flagged(seed: int):
        return hyperparameters(name, null_space=FLAG, stats_dir=str(tmp_path / "data" / "stats" / str(seed)))

    expected = {seed: alone(seed) for seed in (0, 1)}
    models = {seed: model_of(seed=seed) for seed in (0, 1)}
    editors = {seed: editor_of(models[seed], tokenizer, flagged(seed)) for seed in (0, 1)}
    for fact in FACTS:
        for seed in (0, 1):
            edit(editors[seed], [fact], sequential_edit=True)
    for seed in (0, 1):
        found = weights(models[seed])
        assert all(torch.equal(found[n], expected[seed][n]) for n in found)


@pytest.mark.parametrize("name", ["AlphaEdit", "PRUNE", "RECT"])
def test_an_edit_that_was_put_back_leaves_nothing_behind(name, tokenizer, tmp_path):
    """Independent edits are independent: the keys of an edit that is undone are not kept."""
    found = []
    for facts in (FACTS[2:], FACTS):
        model = model_of()
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        editor = editor_of(model, tokenizer, hyperparameters(name, null_space=FLAG))
        for fact in facts[:-1]:
            edit(editor, [fact], sequential_edit=False)
        edit(editor, facts[-1:], sequential_edit=True)
        found.append(weights(model))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.parametrize("name", ["AlphaEdit", "PRUNE", "RECT"])
def test_edits_that_stay_are_remembered(name, tokenizer, tmp_path):
    """The third edit is another one when the first two are in mind (and in the weights)."""
    model = model_of()
    statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    hparams = hyperparameters(name, null_space=FLAG)
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    for fact in FACTS[:2]:
        edit(editor, [fact], sequential_edit=True)
    standing = weights(model)
    edit(editor, FACTS[2:], sequential_edit=True)
    assert max(outside(model, before, null_spaces).values()) < 1e-5

    with torch.no_grad():
        for n, parameter in model.named_parameters():
            parameter.copy_(standing[n])
    twin = editor_of(model, tokenizer, copy.deepcopy(hparams))  # begins anew: knows no earlier edit
    edit(twin, FACTS[2:], sequential_edit=True)
    forgetful = weights(model)
    assert name == "RECT" or any(not torch.equal(forgetful[n], standing[n]) for n in forgetful)


@pytest.mark.skipif(not HEAD, reason="the edition of PyPI has no AlphaEdit: set EASYEDIT_HOME to a checkout")
def test_alphaedit_under_the_flag_is_easyedits_with_the_right_p(tokenizer, tmp_path):
    """Against EasyEdit's own run in a module of its own, given the dense P as the file that it looks for."""
    from alphaedit_plugin.easyedit.private import private_module

    model = model_of()
    statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    torch.save(torch.stack([null_spaces[layer].dense().float() for layer in LAYERS]), "p.pt")
    hparams = hyperparameters("AlphaEdit", P_loc="p.pt")
    before, own = weights(model), private_module(TABLE["AlphaEdit"].__wrapped__)
    for fact in FACTS:
        torch.manual_seed(0)
        own.apply_AlphaEdit_to_model(model, tokenizer, [dict(fact)], hparams)
    expected, model = weights(model), model_of()
    editor = editor_of(model, tokenizer, hyperparameters("AlphaEdit", null_space=FLAG, P_loc="nowhere.pt"))
    for fact in FACTS:
        edit(editor, [fact], sequential_edit=True)
    assert not Path("null_space_project.pt").exists()
    for n, parameter in model.named_parameters():
        assert (parameter - expected[n]).norm() <= 1e-4 * (expected[n] - before[n]).norm()


@pytest.mark.parametrize("name", [name for name in ("MEMIT", "AlphaEdit", "RECT", "PRUNE") if name in {*TABLE, *ADDED}])
def test_a_batch_is_edited_at_once_and_put_back_or_left(name, model, tokenizer, tmp_path):
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    hparams = hyperparameters(name, null_space=FLAG)
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    batch_edit(editor, FACTS, sequential_edit=False)
    assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())
    batch_edit(editor, FACTS, sequential_edit=True)
    assert max(outside(model, before, null_spaces).values()) < 1e-5


@pytest.mark.parametrize("name", ["MEMIT", "AlphaEdit", "RECT", "PRUNE"])
def test_a_copy_is_edited_in_the_place_of_the_model(name, model, tokenizer, tmp_path):
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    hparams, before = hyperparameters(name, null_space=FLAG), weights(model)
    first, _ = call(name, model, tokenizer, [FACTS[0]], hparams, copy=True)
    second, _ = call(name, first, tokenizer, [FACTS[1]], hparams)
    again, _ = call(name, model, tokenizer, [FACTS[0]], hparams, copy=True)
    assert second is first
    assert first is not model
    assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())
    assert max(outside(again, before, null_spaces).values()) < 1e-5
    assert max(outside(first, before, null_spaces).values()) < 1e-5

    straight, hparams = model_of(), hyperparameters(name, null_space=FLAG)
    for fact in FACTS[:2]:
        call(name, straight, tokenizer, [fact], hparams)
    found, expected = weights(first), weights(straight)
    assert all(torch.equal(found[n], expected[n]) for n in found)


@pytest.mark.parametrize("name", ["MEMIT", "AlphaEdit", "RECT"])
def test_a_flagged_call_that_fails_leaves_the_model_as_it_was(name, model, tokenizer):
    hparams = hyperparameters(name, null_space=FLAG)
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    edit(editor, sequential_edit=True)
    standing = weights(model)
    with pytest.raises((AssertionError, AlphaEditError)):
        call(name, model, tokenizer, [{**FACTS[1], "subject": "Nobody"}], hparams)
    assert all(torch.equal(parameter, standing[n]) for n, parameter in model.named_parameters())
    assert any(not torch.equal(standing[n], before[n]) for n in standing)


@pytest.mark.parametrize("name", ["MEMIT", "RECT", "PRUNE"])
@pytest.mark.parametrize("path", [False, True], ids=["statistics", "file"])
def test_options_that_do_not_concern_p_may_change_between_two_calls(name, path, tokenizer, tmp_path):
    """P stays that of the model before the first edit, and the sequence goes on."""
    model = model_of()
    null_spaces = null_spaces_of(
        prepare_statistics(model, tokenizer, LAYERS, store=Store(tmp_path / "s")), Criterion(nullity=12)
    )
    null_spaces.save(tmp_path / "p.safetensors")
    flag = {"path": str(tmp_path / "p.safetensors"), "progress": False} if path else FLAG
    if path:
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    hparams, before = hyperparameters(name, null_space=flag), weights(model)
    call(name, model, tokenizer, FACTS[:1], hparams)
    hparams.null_space = {**flag, "progress": True, **({"fast_targets": True} if name == "MEMIT" else {})}
    call(name, model, tokenizer, FACTS[1:2], hparams)
    hparams.null_space = {**flag, "cache_dir": str(tmp_path / "elsewhere")}
    call(name, model, tokenizer, FACTS[2:], hparams)
    assert max(outside(model, before, null_spaces).values()) < 1e-5


def test_a_file_that_was_right_before_the_first_edit_serves_for_further_layers(model, tokenizer, tmp_path):
    null_spaces = spaces_of(model, tokenizer, tmp_path)
    null_spaces.save(tmp_path / "p.safetensors")
    hparams = hyperparameters("MEMIT", null_space={"path": str(tmp_path / "p.safetensors")}, layers=LAYERS[:1])
    before = weights(model)
    call("MEMIT", model, tokenizer, FACTS[:1], hparams)
    hparams.layers = LAYERS
    call("MEMIT", model, tokenizer, FACTS[1:], hparams)
    assert max(outside(model, before, null_spaces).values()) < 1e-5


def test_one_object_may_serve_two_methods(tokenizer, tmp_path):
    """What a run remembers is that of one method."""
    found = []
    for names in (("RECT", "PRUNE"), ("PRUNE",)):
        model = model_of()
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        hparams = hyperparameters("RECT", null_space=FLAG)
        for name in names:
            hparams.alg_name = name
            _, before = call(
                name, model, tokenizer, FACTS[:1], hparams, return_orig_weights=True, keep_original_weight=True
            )
            found.append(weights(model))
            for n, weight in before.items():
                dict(model.named_parameters())[n].copy_(weight)
    rect, prune, alone = found
    assert all(torch.equal(prune[n], alone[n]) for n in alone)
    assert any(not torch.equal(rect[n], alone[n]) for n in alone)


def test_a_sequence_whose_end_fails_is_as_before_that_call(model, tokenizer, tmp_path, monkeypatch):
    from alphaedit_plugin.session.session import Session

    hparams, finish = hyperparameters("PRUNE", null_space=FLAG), Session.finish
    call("PRUNE", model, tokenizer, FACTS[:1], hparams)
    standing = weights(model)

    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "finish", fail)
    with pytest.raises(KeyboardInterrupt):
        call("PRUNE", model, tokenizer, FACTS[1:2], hparams)
    monkeypatch.setattr(Session, "finish", finish)
    assert all(torch.equal(parameter, standing[n]) for n, parameter in model.named_parameters())
    call("PRUNE", model, tokenizer, FACTS[2:], hparams)
    straight, again = model_of(), hyperparameters("PRUNE", null_space=FLAG)
    for fact in (FACTS[0], FACTS[2]):
        call("PRUNE", straight, tokenizer, [fact], again)
    assert all(torch.equal(p, dict(straight.named_parameters())[n]) for n, p in model.named_parameters())


def test_a_copy_and_its_model_prepare_further_layers_apart(model, tokenizer, tmp_path):
    null_spaces = spaces_of(model_of(), tokenizer, tmp_path, [2])
    hparams = hyperparameters("MEMIT", null_space=FLAG, layers=[1], stats_dir="nowhere")
    edited, _ = call("MEMIT", model, tokenizer, FACTS[:1], hparams, copy=True)
    hparams.layers = [2]
    call("MEMIT", edited, tokenizer, FACTS[1:2], hparams)
    before = weights(model)
    call("MEMIT", model, tokenizer, FACTS[1:2], hparams)
    assert outside(model, before, null_spaces)[2] < 1e-5


@pytest.mark.parametrize("name", ["MEMIT", "RECT"])
def test_edited_copies_are_let_go(name, model, tokenizer):
    hparams = hyperparameters(name, null_space=FLAG)
    edited, _ = call(name, model, tokenizer, FACTS[:1], hparams, copy=True)
    reference = weakref.ref(edited)
    del edited
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("name", [name for name in ("FT", "DINM") if name in TABLE])
def test_a_bias_is_not_written_with_the_weight(name, tokenizer, tmp_path):
    """FT trains every parameter whose name holds the template, and some of EasyEdit's files leave out ".weight"."""
    model, layers = model_of("gpt2"), LAYERS[:1]
    constraint = {"general knowledge constraint": {"prompt": "The river flows", "ground_truth": "to the sea"}}
    null_spaces = spaces_of(model, tokenizer, tmp_path, layers)
    template = "transformer.h.{}.mlp.c_proj"
    hparams = hyperparameters(name, "gpt2", null_space=FLAG, layers=layers, rewrite_module_tmp=template)
    before = weights(model)
    call(name, model, tokenizer, [{**FACTS[0], "locality": constraint}], hparams)
    changed = [n for n, parameter in model.named_parameters() if not torch.equal(parameter, before[n])]
    assert changed == [f"{template.format(1)}.weight"]
    assert outside(model, before, null_spaces)[1] < 1e-5
    assert hparams.rewrite_module_tmp == template


# ------------------------------------------------------------------------------------------------- fast targets


@pytest.mark.parametrize("name", [n for n in METHODS if COVERED[n].standard_targets])
def test_fast_targets_give_the_same_edit(name, tokenizer, tmp_path):
    found = {}
    for fast in (False, True):
        model = model_of()
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        before = weights(model)
        hparams = hyperparameters(name, null_space={**FLAG, "fast_targets": fast}, v_num_grad_steps=8)
        call(name, model, tokenizer, FACTS, hparams)
        found[fast] = {n: w - before[n] for n, w in weights(model).items()}
    moved = [n for n, delta in found[False].items() if delta.norm() > 0]
    assert len(moved) == len(LAYERS)
    assert all((found[True][n] - found[False][n]).norm() <= 1e-3 * found[False][n].norm() for n in moved)


@pytest.mark.parametrize(
    "change",
    [{"prompt": "The capital of France is "}, {"target_new": "Warsaw "}, {"subject": "of France"}, {"case_id": 3.0}],
    ids=str,
)
def test_fast_targets_leave_to_easyedit_what_it_reads_otherwise(change, tokenizer, tmp_path):
    requests, found = [FACTS[0], {**FACTS[1], **change}], {}
    for fast in (False, True):
        model = model_of()
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        before = weights(model)
        call("MEMIT", model, tokenizer, requests, hyperparameters("MEMIT", null_space={**FLAG, "fast_targets": fast}))
        found[fast] = {n: w - before[n] for n, w in weights(model).items()}
    for n, delta in found[False].items():
        assert (found[True][n] - delta).norm() <= 1e-3 * delta.norm()


def test_fast_targets_are_those_of_the_call(tokenizer, tmp_path):
    """Switched off again, or with other requests, nothing of an earlier call is left."""
    found = []
    for fast in (True, False):
        model = model_of()
        statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
        hparams = hyperparameters("MEMIT", null_space={**FLAG, "fast_targets": fast})
        call("MEMIT", model, tokenizer, FACTS[:1], hparams)
        middle = weights(model)
        hparams.null_space = FLAG
        call("MEMIT", model, tokenizer, FACTS[:2], hparams)
        found.append({n: w - middle[n] for n, w in weights(model).items()})
    for n, delta in found[1].items():
        assert (found[0][n] - delta).norm() <= 1e-2 * delta.norm()


def test_fast_targets_are_refused_where_they_would_be_others(model, tokenizer):
    before = weights(model)
    fast = {**FLAG, "fast_targets": True}
    with pytest.raises(HyperparameterError, match="which ROME does not use"):
        call("ROME", model, tokenizer, FACTS[:1], hyperparameters("ROME", null_space=fast))
    with pytest.raises(HyperparameterError, match="v_loss_layer 3"):
        call("MEMIT", model, tokenizer, FACTS[:1], hyperparameters("MEMIT", null_space=fast, v_loss_layer=2))
    assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())


# ---------------------------------------------------------------------------------------------- what is added


@pytest.mark.parametrize("flag", [None, FLAG], ids=["plain", "projected"])
@pytest.mark.parametrize("name", [name for name in ADDED if name not in METHODS])
def test_an_added_method_is_ours(name, flag, tokenizer, tmp_path):
    """Through BaseEditor in two edits, and by a Session in two batches."""
    from alphaedit_plugin.editors.hyperparameters import Hyperparameters
    from alphaedit_plugin.session.session import Session

    model = model_of()
    statistics = statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats").of_layers(LAYERS)
    hparams = hyperparameters(name, null_space=flag)
    editor = editor_of(model, tokenizer, hparams)
    for fact in FACTS[:2]:
        edit(editor, [fact], sequential_edit=True)

    twin = model_of()
    criterion = Criterion(nullity=12) if flag else Criterion(threshold=2e-2)
    values = {
        key: value for key, value in dataclasses.asdict(hparams).items() if value is not None and key != "null_space"
    }
    session = Session(
        twin,
        tokenizer,
        ADDED[name] + ("+P" if flag else ""),
        null_spaces_of(statistics, criterion) if flag or name == "AlphaEdit" else None,
        hyperparameters=Hyperparameters.from_mapping({**values, "target_optimiser": "adam"}, "the test"),  # EasyEdit's
        covariances=statistics.covariances,
        check_model=False,
    )
    before = weights(twin)
    for fact in FACTS[:2]:
        session.edit([fact])
        session.finish()
    for n, parameter in model.named_parameters():
        # EasyEdit's .npz hold float32
        assert (parameter - dict(twin.named_parameters())[n]).norm() <= 1e-3 * (before[n] - parameter).norm()


def test_the_shipped_files_load_into_easyedits_classes_and_ours(tmp_path):
    from alphaedit_plugin.storage.shipped import shipped

    models = {path.name for path in shipped("hparams/AlphaEdit").glob("*.yaml")}
    assert {"gpt2-xl.yaml", "llama3-8b.yaml"} <= models
    for name in ("ROME", "MEMIT", "RECT", "PRUNE", "AlphaEdit"):
        paths = sorted(shipped(f"hparams/{name}").glob("*.yaml"))
        assert {path.name for path in paths} == models
        for path in paths:
            text = path.read_text(encoding="utf-8")
            if name in METHODS:  # what is ours and EasyEdit's own classes do not know
                text = "\n".join(line for line in text.split("\n") if not line.startswith("reduced_precision"))
            (tmp_path / path.name).write_text(text)
            assert class_of(name).from_hparams(str(tmp_path / path.name)).alg_name == name
    with pytest.raises(HyperparameterError, match="must say alg_name: RECT"):
        class_of("RECT").from_hparams(str(shipped("hparams/PRUNE/gpt2-xl.yaml")))


# ------------------------------------------------------------------------------------------------ a real model


@pytest.fixture(scope="module")
def smollm2(demo, tmp_path_factory):
    """(model, tokenizer, null spaces, stats_dir) with statistics of a short text, where EasyEdit looks for them."""
    from alphaedit_plugin.storage.shipped import shipped

    model, tokenizer = demo
    folder = tmp_path_factory.mktemp("smollm2")
    statistics = prepare_statistics(
        model, tokenizer, [7, 8], source=shipped("examples/heldout.txt"), tokens=2500, store=Store(folder / "store")
    )
    for layer, projection in Decoder(model).out_projections([7, 8]).items():
        for name in (model.config._name_or_path.rsplit("/")[-1], model.config._name_or_path.replace("/", "_")):
            path = folder / name / "wikipedia_stats" / f"{projection.name}_float32_mom2_100.npz"
            statistics.covariances[layer].save_npz(path, sample_size=100)
    null_spaces = null_spaces_of(statistics, Criterion(nullity=0.7), store=Store(folder / "store"))
    padding = copy.deepcopy(tokenizer)
    padding.pad_token_id = padding.eos_token_id  # as BaseEditor does for a model that it loads
    return model, padding, null_spaces, folder


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("name", ["ROME", "MEMIT"])
def test_smollm2_learns_a_fact_through_base_editor(name, flagged, smollm2):
    model, tokenizer, null_spaces, folder = smollm2
    hparams = hyperparameters(
        name,
        layers=[7] if name == "ROME" else [7, 8],
        stats_dir=str(folder),
        lm_head_module="model.embed_tokens",
        v_loss_layer=29,
        v_num_grad_steps=12,
        v_lr=0.5,
        clamp_norm_factor=2.0,
        context_template_length_params=[[5, 5]],
        null_space={"nullity": 0.7, "progress": False} if flagged else None,
    )
    editor, before = editor_of(model, tokenizer, hparams), weights(model)
    projections = Decoder(model).out_projections(hparams.layers)
    fact = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}
    with put_back(projections):
        metrics, edited, _ = edit(editor, [fact], sequential_edit=True)
        assert edited is model
        assert metrics[0]["pre"]["rewrite_acc"] != [1.0]
        assert metrics[0]["post"]["rewrite_acc"] == [1.0]
        found = outside(model, before, NullSpaces({n: null_spaces[n] for n in hparams.layers}, {}))
        changed = {n for n, parameter in model.named_parameters() if not torch.equal(parameter, before[n])}
    assert changed == {f"{projection.name}.weight" for projection in projections.values()}
    assert max(found.values()) < 1e-4 if flagged else min(found.values()) > 1e-2


# ----------------------------------------------------------------------------------------- installing, uninstalling


def test_uninstalling_leaves_every_class_and_dict_as_found():
    plugin.uninstall()
    plugin.uninstall()
    base = importlib.import_module("easyeditor.util.hparams").HyperParams
    batchable = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor

    def snapshot():
        classes = [base, batchable]
        for cls in classes:
            classes += [each for each in cls.__subclasses__() if each.__module__.startswith("easyeditor")]
        return (
            dict(TABLE),
            list(TABLE),
            {cls: dict(vars(cls)) for cls in classes},
            {cls: dict(cls.__dataclass_fields__) for cls in classes if hasattr(cls, "__dataclass_fields__")},
            set(vars(easyeditor)),
        )

    clean = snapshot()
    assert "null_space" not in clean[3][class_of("MEMIT")]
    plugin.install()
    plugin.install()
    assert snapshot() != clean
    finder = next(each for each in sys.meta_path if isinstance(each, plugin._Finder))
    finder.attach()  # as when EasyEdit is loaded once more
    plugin.uninstall()
    assert snapshot() == clean


def test_a_missing_easyedit_is_an_error_that_tells_how_to_get_one(monkeypatch):
    plugin.uninstall()
    monkeypatch.setattr(sys, "modules", {n: m for n, m in sys.modules.items() if not n.startswith("easyeditor")})
    monkeypatch.setattr(sys, "meta_path", [])
    plugin.install()
    with pytest.raises(ModuleNotFoundError, match=r"git clone https://github.com/zjunlp/EasyEdit.*pip install"):
        importlib.import_module("easyeditor")
    assert importlib.util.find_spec("easyeditor") is None  # whoever only asks gets an answer


# ---------------------------------------------------------------------------------------- in processes of their own


def run_child(tmp_path, name, *mode, command=(sys.executable,)):
    """What `easyedit_child.py` prints, as JSON."""
    folder = tmp_path / name
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SUPPORT / "easyedit_child.py"), *mode],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_plugin(tmp_path_factory):
    return run_child(tmp_path_factory.mktemp("child"), "without")


def test_without_the_flag_a_run_is_bit_identical_to_one_without_the_plug_in(without_plugin, tmp_path):
    installed = run_child(tmp_path, "installed", "before")
    assert not without_plugin.pop("installed")
    assert installed.pop("installed")
    assert installed == without_plugin


@pytest.mark.parametrize("mode", ["before", "after"])
def test_the_plug_in_may_be_imported_before_easyedit_or_after_it(mode, without_plugin, tmp_path):
    flagged = run_child(tmp_path, mode, mode, "flagged")
    assert flagged["installed"]
    assert max(flagged["outside"].values()) < 1e-5
    assert min(without_plugin["outside"].values()) > 1e-2


def test_alphaedit_easyedit_runs_a_script_unchanged(tmp_path):
    """The script never mentions the plug-in."""
    command = (sys.executable, "-m", "alphaedit_plugin", "easyedit")
    flagged = run_child(tmp_path, "script", "flagged", command=command)
    assert flagged["installed"]
    assert max(flagged["outside"].values()) < 1e-5


def test_installing_imports_nothing_heavy():
    code = "import sys, alphaedit_plugin.easyedit; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert "alphaedit_plugin" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "yaml", "easyeditor"}
