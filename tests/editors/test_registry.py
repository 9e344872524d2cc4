"""The registry refuses misuse while decorating, knows names without torch, and survives a broken plug-in."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from support.editing import HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.spaces import random_spaces
from support.tiny import model_of

from alphaedit_plugin.editors import registry
from alphaedit_plugin.editors.editor import Editor
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.layered import LayeredEditor
from alphaedit_plugin.editors.memit import MEMIT
from alphaedit_plugin.editors.registry import find, method, modifier
from alphaedit_plugin.editors.rome import ROME
from alphaedit_plugin.editors.update import Update
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import EditError, HyperparameterError, RegistrationError
from alphaedit_plugin.session.session import Session

SAID = {"summary": "a test", "source": "here"}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is gone afterwards."""
    for name in (*registry.METHODS, *registry.MODIFIERS):
        find(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def plain(update, site, *, share: float = 0.5):
    return update


async def coroutine(update, site):
    return update


def generator(update, site):
    yield update


class OtherConstructor(MEMIT):
    def __init__(self, model):
        pass


class OtherEdit(MEMIT):
    def edit(self):
        pass


class OurSetting(MEMIT):
    settings: ClassVar = {"v_lr": 1.0}


class Unhashable(MEMIT):
    settings: ClassVar = {"table": {}}


@pytest.mark.parametrize(
    ("name", "said", "editor", "wrong"),
    [
        ("My", SAID, MEMIT, "'My'"),
        ("9", SAID, MEMIT, "'9'"),
        ("p", SAID, MEMIT, r"\+P"),
        ("memit", SAID, OtherEdit, "edit"),
        ("memit", SAID, ROME, "taken by"),
        ("rect", SAID, MEMIT, "taken by"),
        ("mine", {"summary": "a test"}, MEMIT, "source"),
        ("mine", {"source": "here"}, MEMIT, "summary"),
        ("mine", {"summary": " ", "source": "here"}, MEMIT, "summary"),
        ("mine", SAID, plain, "subclass of Editor"),
        ("mine", SAID, dict, "subclass of Editor"),
        ("mine", SAID, Editor, "edit"),
        ("mine", SAID, LayeredEditor, "regularisation"),
        ("mine", SAID, OtherConstructor, "preserved"),
        ("mine", SAID, OurSetting, "v_lr"),
        ("mine", SAID, Unhashable, "table"),
    ],
)
def test_a_method_that_could_not_be_used_is_refused_while_decorating(name, said, editor, wrong):
    before = dict(registry._registered)
    with pytest.raises(RegistrationError, match=wrong):
        method(name, **said)(editor)
    assert registry._registered == before


@pytest.mark.parametrize(
    ("options", "function", "wrong"),
    [
        ({"acts": "sometimes"}, plain, "sometimes"),
        ({"acts": "end", "in_factors": True}, plain, "in_factors"),
        ({"folder": "RECT"}, plain, "alone"),
        ({"source": ""}, plain, "source"),
        ({}, MEMIT, "plain function"),
        ({}, len, "plain function"),
        ({}, coroutine, "coroutine"),
        ({}, generator, "generator"),
        ({}, lambda update: update, "update, site"),
        ({}, lambda update, site, other: update, "update, site"),
        ({}, lambda update, site, other=1: update, "update, site"),
        ({}, lambda update, site, *more: update, "update, site"),
        ({}, lambda update, site, **more: update, "update, site"),
        ({}, lambda update, site, *, needed: update, "update, site"),
        ({}, lambda update, site, *, layers=1: update, "layers"),
        ({}, lambda update, site, *, table=None: update, "table"),
    ],
)
def test_a_modifier_that_could_not_be_used_is_refused_while_decorating(options, function, wrong):
    with pytest.raises(RegistrationError, match=wrong):
        modifier("mine", **{**SAID, **options})(function)
    assert "mine" not in registry._registered


def test_a_decorator_without_its_parentheses_says_how_to_write_it():
    with pytest.raises(RegistrationError, match="summary="):
        modifier(plain)
    with pytest.raises(RegistrationError, match="summary="):
        method(MEMIT)


def test_what_is_registered_comes_back_unchanged_and_may_be_registered_again():
    assert modifier("mine", **SAID)(plain) is plain
    assert modifier("mine", **SAID)(plain) is plain
    assert find("mine").settings == {"share": 0.5}
    with pytest.raises(RegistrationError, match="taken by"):
        modifier("mine", **SAID)(lambda update, site: update)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memmit", "no method memmit; did you mean memit?"),
        ("alphaedi+P", "no method alphaedi; did you mean alphaedit?"),
        ("memit@L2=1+prunne", "no method prunne; did you mean prune?"),
        ("memit+rome", "rome is no modifier"),
    ],
)
def test_an_unknown_name_is_answered_by_the_nearest(name, said):
    for check in (registry.check_names, Variant.parse):
        with pytest.raises(HyperparameterError) as caught:
            check(name)
        assert said in str(caught.value)
        assert repr(name) in str(caught.value) or str(caught.value) == said


def test_names_are_checked_without_torch():
    code = """
import sys
from alphaedit_plugin.editors import registry
registry.check_names("MEMIT@L2=1e+3+rect+P")
assert "memit" in registry.names()
try:
    registry.check_names("memmit")
except Exception as error:
    assert "did you mean memit?" in str(error)
else:
    raise SystemExit("memmit passed")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_broken_plug_in_is_one_warning_and_harms_no_other(tmp_path, monkeypatch, caplog):
    (tmp_path / "brokenplug.py").write_text("raise RuntimeError('out of order')\n")
    (tmp_path / "emptyplug.py").write_text("")
    information = tmp_path / "broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[alphaedit_plugin]\nbroken = brokenplug\nempty = emptyplug\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        names = [each.name for each in registry.listed()]
    assert names[: len(registry.METHODS)] == sorted(registry.METHODS)
    assert {"rect", "prune"} <= set(names)
    assert not {"broken", "empty"} & set(names)
    assert [("broken" in line, "empty" in line) for line in caplog.messages] == [(True, False), (False, True)]
    assert "out of order" in caplog.messages[0]
    with pytest.raises(HyperparameterError, match="out of order"):
        Variant.parse("broken+P")
    assert str(Variant.parse("memit+P")) == "memit+P"


def test_modifiers_act_in_the_order_given_and_keep_it():
    for name in ("first", "second"):
        modifier(name, **SAID)(lambda update, site: update)
    modifier("last", acts="end", **SAID)(lambda delta, site: delta)
    for name in ("memit+first+second", "memit+second+first", "memit+second+rect+first+last+P", "rect+first+prune+last"):
        assert str(Variant.parse(name)) == name
    assert Variant.parse("memit+last+second+first").modifiers == ("second", "first", "last")
    with pytest.raises(HyperparameterError, match=r"memit\+first"):
        Variant.parse("first")


def test_rects_share_can_be_changed_and_is_saved_only_then(tokenizer, tmp_path):
    model = model_of()
    start = weights(model)
    running = session(model, tokenizer, "rect@keep=0.25", hyperparameters=HYPERPARAMETERS)
    assert "own" not in HYPERPARAMETERS.as_dict()
    assert running.hyperparameters.as_dict()["own"] == {"keep": 0.25}
    running.edit(RECORDS)
    for layer, weight in weights(model).items():
        assert int((weight != start[layer]).sum()) == round(0.25 * weight.numel())
    running.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of(), tokenizer)
    assert all(torch.equal(weight, weights(model)[layer]) for layer, weight in weights(resumed.model).items())
    with pytest.raises(HyperparameterError, match="did you mean 'keep'"):
        Variant.parse("memit@kep=0.3+rect")
    for wrong in ("memit@keep=0.3", "rect@keep=much", "rect@keep=true"):
        with pytest.raises(HyperparameterError, match="keep"):
            Variant.parse(wrong)


def test_a_modifier_sees_the_weight_now_the_base_and_the_null_space(tokenizer):
    """And a dense one is run again by a replay, with the same sight: undoing gives the same bits."""
    sites = []

    @modifier("watching", **SAID)
    def watching(update, site):
        sites.append((site.layer, site.weight.clone(), site.base.clone(), site.null_space))
        return update.dense() * (site.weight / site.base).abs().clamp(max=2)

    model = model_of()
    start, spaces = weights(model), random_spaces(model, LAYERS)
    running = session(model, tokenizer, "memit+watching+P", spaces)
    running.edit(RECORDS[:2])
    once = weights(model)
    running.edit(RECORDS[2:])
    for layer, _, base, space in sites:
        assert torch.equal(base, start[layer])
        assert space is spaces[layer]
    assert all(torch.equal(weight, once[layer]) for layer, weight, *_ in sites[3:])
    sites.clear()
    running.undo()
    assert all(torch.equal(weight, once[layer]) for layer, weight in weights(model).items())
    assert [layer for layer, *_ in sites] == list(LAYERS)
    assert all(torch.equal(base, start[layer]) for layer, _, base, _ in sites)


def test_what_is_no_update_of_the_layer_is_refused_and_nothing_is_written(tokenizer):
    modifier("nothing", **SAID)(lambda update, site: None)
    modifier("turned", **SAID)(lambda update, site: update.dense().T)
    modifier("dense", in_factors=True, **SAID)(lambda update, site: update.dense())
    modifier("elsewhere", **SAID)(lambda update, site: Update(update.layer + 1, update.left, update.right))
    for name in ("nothing", "turned", "dense", "elsewhere"):
        model = model_of()
        start = weights(model)
        with pytest.raises(EditError, match=name):
            session(model, tokenizer, f"memit+{name}").edit(RECORDS)
        assert all(torch.equal(weight, start[layer]) for layer, weight in weights(model).items())


def test_a_modifier_after_a_dense_one_still_gets_an_update(tokenizer):
    seen = []

    @modifier("later", **SAID)
    def later(update, site):
        seen.append(update)
        return update

    ours, theirs = model_of(), model_of()
    session(ours, tokenizer, "rect+later").edit(RECORDS)
    session(theirs, tokenizer, "rect").edit(RECORDS)
    assert len(seen) == len(LAYERS)
    assert all(isinstance(update, Update) for update in seen)
    assert all(torch.equal(weight, weights(theirs)[layer]) for layer, weight in weights(ours).items())


def test_a_setting_of_what_acts_at_the_end_is_none_of_its_trajectory(tokenizer):
    @modifier("shrink", acts="end", **SAID)
    def shrink(delta, site, *, share: float = 0.5):
        return delta * share

    variant = Variant.parse("memit@share=0.25@v_lr=0.1+shrink")
    assert str(variant.trajectory) == "memit@v_lr=0.1"
    model = model_of()
    start = weights(model)
    running = session(model, tokenizer, variant)
    running.edit(RECORDS)
    whole = weights(model)
    running.finish()
    for layer, weight in weights(model).items():
        assert torch.allclose(weight - start[layer], 0.25 * (whole[layer] - start[layer]), atol=1e-12)
    along = session(model_of(), tokenizer, variant.trajectory, hyperparameters=running.hyperparameters)
    assert along.hyperparameters.own == {}


def test_an_own_setting_of_a_file_that_nobody_knows_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("layers: [1]\nown: {kep: 0.3}\n")
    with pytest.raises(
        HyperparameterError, match=r"own\.yaml: no method has a setting 'kep' of its own; did you mean 'keep'"
    ):
        Hyperparameters.from_yaml(path)
    path.write_text("layers: [1]\nown: {keep: 0.3}\n")
    assert Hyperparameters.from_yaml(path).own == {"keep": 0.3}
