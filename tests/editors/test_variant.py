"""Methods by name: what is written is what is meant; and methods run side by side."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.editing import CONTEXTS, HYPERPARAMETERS, LAYERS, weights
from support.spaces import random_covariance, random_spaces
from support.tiny import model_of, tiny
from support.tries import tries

from alphaedit_plugin.editors.alphaedit import AlphaEdit
from alphaedit_plugin.editors.betaedit import BetaEdit
from alphaedit_plugin.editors.encore import ENCORE
from alphaedit_plugin.editors.evoedit import EvoEdit
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.memit import MEMIT, MEMITSequential
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.registry import GRAMMAR, MODIFIERS, find, names
from alphaedit_plugin.editors.registry import METHODS as SOLVERS
from alphaedit_plugin.editors.rome import ROME
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import HyperparameterError

MODEL = tiny("llama")  # of which nothing but its depth is asked

# ------------------------------------------------------------------------------------------------------- names

_NUMBERS = st.floats(0, 1e6).filter(lambda x: x == 0 or x > 1e-4) | st.integers(0, 10**6)
_CHANGES = {
    "layers": st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True),
    "v_num_grad_steps": st.integers(1, 100),
    "v_lr": _NUMBERS,
    "v_weight_decay": _NUMBERS,
    "clamp_norm_factor": _NUMBERS,
    "kl_factor": _NUMBERS,
    "mom2_update_weight": _NUMBERS,
    "mom2_adjustment": st.booleans(),
    "L2": _NUMBERS,
    "context_template_length_params": st.lists(
        st.lists(st.integers(1, 20), min_size=2, max_size=2), min_size=1, max_size=3
    ),
    "rewrite_module_tmp": st.sampled_from(["transformer.h.{}.mlp.c_proj", "model.layers.{}.self_attn.o_proj"]),
    "reduced_precision": st.booleans(),
    "target_optimiser": st.just("adam"),  # the other one refuses v_lr: see test_optimisers.py
    "tokens": st.integers(1, 10**9),
    "null_space": st.one_of(
        st.fixed_dictionaries({"threshold": st.floats(1e-3, 1e3)}),
        st.fixed_dictionaries({"energy": st.floats(1e-3, 0.99)}),
        st.fixed_dictionaries({"nullity": st.integers(1, 5000)}),
    ),
}


@st.composite
def variants(draw) -> Variant:
    """Every variant that there is, some hyperparameters changed in an order of their own."""
    solver = draw(st.sampled_from(list(SOLVERS)))
    keys = draw(st.lists(st.sampled_from(list(_CHANGES)), unique=True, max_size=3))
    modifiers = draw(st.lists(st.sampled_from(list(MODIFIERS)), unique=True))
    changes = [(key, draw(_CHANGES[key])) for key in keys]
    if "rect" in modifiers and draw(st.booleans()):
        changes.insert(draw(st.integers(0, len(changes))), ("keep", draw(st.floats(1e-3, 1))))
    return Variant(solver, tuple(modifiers), draw(st.booleans()), tuple(changes))


def test_every_setting_can_be_changed_in_the_tests():
    assert set(_CHANGES) == {field.name for field in fields(Hyperparameters)} - {"own"}


@tries(300)
@given(variant=variants())
def test_a_variant_is_what_its_name_says(variant):
    name = str(variant)
    again = Variant.parse(name)
    assert again == variant
    assert str(again) == name
    assert [type(value) for _, value in again.changes] == [type(value) for _, value in variant.changes]


@tries(100)
@given(key=st.sampled_from(["v_lr", "L2", "mom2_update_weight"]), number=st.floats(0, allow_infinity=False))
@example("mom2_update_weight", 1e20)
@example("v_lr", 1e-20)
@example("L2", 5e-324)
def test_a_number_of_any_size_survives_being_written(key, number):
    """YAML writes 1e20 as 1.0e+20, and a plus begins a suffix."""
    variant = Variant("memit", changes=((key, number),), projected=True)
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize("number", ["1e3", "1e+3", "1.0e+3", "1E+03", "1000", "1000.0"])
def test_a_number_is_understood_however_it_is_written(number):
    variant = Variant.parse(f"memit@mom2_update_weight={number}+P")
    assert variant.projected
    assert variant.hyperparameters(MODEL, "some/model").mom2_update_weight == 1000.0


@tries(100)
@given(variant=variants(), data=st.data())
def test_the_order_of_suffixes_spaces_and_capitals_mean_nothing(variant, data):
    """But for the order of modifiers that act on the same updates."""
    assume(len(variant.trajectory.modifiers) <= 1)
    head, *marks = str(replace(variant, changes=())).split("+")
    changes = str(variant).partition("@")[2].partition("+")[0]
    head = data.draw(st.sampled_from([head, head.upper(), head.title()])) + (f"@{changes}" if changes else "")
    marks = [
        data.draw(st.sampled_from([mark, mark.lower(), mark.upper()])) for mark in data.draw(st.permutations(marks))
    ]
    spaced = data.draw(st.sampled_from(["+", " + ", " +", "+ "])).join([head, *marks])
    assert Variant.parse(f" {spaced} ") == variant


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("memit", "memit"),
        ("MEMIT", "memit"),
        ("Memit+p", "memit+P"),
        ("memit+rect", "rect"),
        ("rect", "rect"),
        ("rect+P", "rect+P"),
        ("memit+P+rect", "rect+P"),
        ("memit+prune", "prune"),
        ("prune+rect", "rect+prune"),
        ("rect+prune", "rect+prune"),
        ("memit+P+prune+rect", "rect+prune+P"),
        ("memit-seq+rect", "memit-seq+rect"),
        ("alphaedit+P", "alphaedit"),
        ("alphaedit+prune+P", "alphaedit+prune"),
        ("alphaedit@L2=1+P", "alphaedit@L2=1"),
        ("rect@v_lr=0.1", "rect@v_lr=0.1"),
        ("memit@v_lr=0.1+rect", "rect@v_lr=0.1"),
        ("prune@v_lr=0.1@L2=3+P", "prune@v_lr=0.1@L2=3+P"),
        ("rome@mom2_adjustment=false+P", "rome@mom2_adjustment=false+P"),
        ("memit@mom2_update_weight=0+P", "memit@mom2_update_weight=0+P"),
    ],
)
def test_each_variant_has_one_name(name, canonical):
    assert str(Variant.parse(name)) == canonical
    assert Variant.parse(canonical) == Variant.parse(name)


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("memit", Variant("memit")),
        ("MEMIT", Variant("memit")),
        ("memit+P", Variant("memit", projected=True)),
        (" Memit+p ", Variant("memit", projected=True)),
        ("rect", Variant("memit", ("rect",))),
        ("prune+P", Variant("memit", ("prune",), projected=True)),
        ("alphaedit", Variant("alphaedit", projected=True)),
        ("rome@v_lr=0.1+rect+prune", Variant("rome", ("rect", "prune"), changes=(("v_lr", 0.1),))),
        ("memit-seq@layers=[3, 4]", Variant("memit-seq", changes=(("layers", [3, 4]),))),
    ],
)
def test_variants_are_parsed_and_written_canonically(text, variant):
    assert Variant.parse(text) == variant
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+P",
        "rome?",
        "memit+",
        "memit+Q",
        "memit+P+P",
        "memit P",
        "rect+rect",
        "P",
        "@v_lr=1",
        "memit++P",
        "memit_seq",
    ],
)
def test_what_is_no_variant_is_an_error_that_names_it_and_the_known_ones(text):
    with pytest.raises(HyperparameterError) as caught:
        Variant.parse(text)
    if nearest := re.fullmatch(r"no method (.+); did you mean (\S+)\?(?: \(in (.+)\))?", str(caught.value)):
        assert nearest[1] in text.lower()
        assert nearest[2] in names()
        assert nearest[1] == text.strip().lower() or nearest[3] == repr(text)
        return
    assert repr(text) in str(caught.value)
    assert GRAMMAR in str(caught.value)
    assert all(solver in str(caught.value) for solver in SOLVERS)


@tries(300)
@given(text=st.text(alphabet="memitrocaluPpd+@=[]{}:,. -\n!&*'\"01e", max_size=20) | st.text(max_size=8))
def test_any_text_is_a_variant_or_an_error_that_names_it(text):
    for name in (text, f"memit@v_lr={text}", f"memit@{text}"):
        try:
            variant = Variant.parse(name)
        except HyperparameterError as error:
            message = str(error)
        else:
            assert Variant.parse(str(variant)) == variant
            continue
        assert repr(name) in message or message.startswith(f"no method {name.strip().lower()}; did you mean ")


@pytest.mark.parametrize("value", ["[1", "{", "'", "[1]]", "!!x", "&", "*a", "a: b: c", "%", "@1", "\t"])
def test_a_value_that_is_no_yaml_is_an_error_that_names_the_variant(value):
    name = f"memit@v_lr={value}"
    with pytest.raises(HyperparameterError) as caught:
        Variant.parse(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "nearest"),
    [("v_rl=1", "v_lr"), ("layer=[1]", "layers"), ("mom2_update_wieght=1", "mom2_update_weight"), ("l2=1", "L2")],
)
def test_an_unknown_key_is_an_error_that_names_the_variant_and_the_nearest_key(change, nearest):
    name = f"memit@{change}+P"
    with pytest.raises(HyperparameterError) as caught:
        Variant.parse(name)
    assert repr(name) in str(caught.value)
    assert repr(change.partition("=")[0]) in str(caught.value)
    assert nearest in str(caught.value).replace(name, "")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("v_lr", "KEY=VALUE"),
        ("", "KEY=VALUE"),
        ("v_lr=fast", "v_lr"),
        ("v_lr=", "v_lr"),
        ("v_lr=-1", "v_lr"),
        ("layers=4", "layers"),
        ("layers=[]", "layers"),
        ("null_space={energy: 3}", "null_space"),
        ("mom2_adjustment=perhaps", "mom2_adjustment"),
        ("fact_token=last", "fact_token"),
    ],
)
def test_a_change_that_makes_no_sense_is_an_error_that_names_the_variant_and_the_key(change, named):
    name = f"memit@{change}"
    with pytest.raises(HyperparameterError) as caught:
        Variant.parse(name)
    assert repr(name) in str(caught.value)
    assert named in str(caught.value).replace(name, "")


# ------------------------------------------------------------------------------------------------ what it stands for


@tries(100)
@given(variant=variants())
def test_methods_trajectories_and_needs(variant):
    rect, prune = "rect" in variant.modifiers, "prune" in variant.modifiers
    if find(variant.solver).folder != "MEMIT":
        assert variant.method == variant.solver
    else:
        assert variant.method == ("rect" if rect else "prune" if prune else variant.solver)
        assert find(variant.method).folder == ("RECT" if rect else "PRUNE" if prune else "MEMIT")
    assert variant.trajectory == variant.trajectory.trajectory
    assert variant.ends == prune
    assert not variant.trajectory.ends
    assert replace(variant.trajectory, modifiers=variant.modifiers) == variant
    assert variant.needs_covariances == (variant.solver not in ("alphaedit", "evoedit"))
    assert variant.needs_null_spaces == variant.projected


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("rome+rect", "rome"),
        ("alphaedit+prune", "alphaedit"),
        ("memit-seq+P", "memit-seq"),
        ("memit-seq+rect+prune", "rect"),
        ("prune+P", "prune"),
    ],
)
def test_the_method_says_whose_hyperparameter_file_is_read(name, method):
    variant = Variant.parse(name)
    assert variant.method == method
    expected = Hyperparameters.for_model(method, MODEL, "gpt2-xl")
    assert variant.hyperparameters(MODEL, "gpt2-xl") == expected


@tries(100)
@given(variant=variants())
def test_hyperparameters_are_those_given_with_the_changes_of_the_name(variant):
    base = Hyperparameters(layers=(7,), v_lr=0.123, target_optimiser="adam")  # as who changes v_lr gets
    found = variant.hyperparameters(MODEL, "", base)
    assert found == base.changed(dict(variant.changes), "x", variant.settings)
    written = json.loads(json.dumps(found.as_dict()))
    for key, value in variant.changes:
        assert (written["own"] if key == "keep" else {"target_optimiser": "adam", **written})[key] == (
            sorted(value) if key == "layers" else value
        )
    untouched = {field.name for field in fields(base)} - set(dict(variant.changes)) - {"own"}
    assert set(found.own) == {key for key, _ in variant.changes} & {"keep"}
    assert all(getattr(found, name) == getattr(base, name) for name in untouched)


@tries(20)
@given(rect=st.booleans(), prune=st.booleans(), projected=st.booleans(), solver=st.sampled_from(list(SOLVERS)))
def test_a_variants_editor_solves_sparsifies_and_projects_as_its_name_says(rect, prune, projected, solver, tokenizer):
    """AlphaEdit's Δ lies in the null space already: it is projected only after RECT."""
    model = model_of(dtype=torch.float32)
    marks = ("rect",) * rect + ("prune",) * prune
    variant = Variant(solver, marks, projected)
    spaces = random_spaces(model, LAYERS)
    covariances = {layer: random_covariance(24, layer) for layer in LAYERS}
    base = weights(model)
    editor = variant.editor(
        model, tokenizer, HYPERPARAMETERS, Preserved(covariances, spaces), base=base, contexts=CONTEXTS
    )
    kinds = {"rome": ROME, "memit": MEMIT, "memit-seq": MEMITSequential, "alphaedit": AlphaEdit, "evoedit": EvoEdit}
    kinds |= {"betaedit": BetaEdit, "encore": ENCORE}
    assert type(editor) is kinds[solver]
    assert [modifier.name for modifier in editor.write.modifiers] == ["rect"] * rect
    assert [modifier.name for modifier in variant.at_end(HYPERPARAMETERS)] == ["prune"] * prune
    assert editor.write.projects == (rect if kinds[solver].needs_null_spaces else projected)
    assert editor.write.base is base
    assert editor.contexts == CONTEXTS
