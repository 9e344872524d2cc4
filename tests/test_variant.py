"""Methods by name: what is written is what is meant; and methods run side by side."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spaces import random_covariance, random_spaces
from test_memit import CONTEXTS, HYPERPARAMETERS, LAYERS, RECORDS, model_of
from tiny import tiny

from alphaedit_plugin.compare import Comparison, Row, compare
from alphaedit_plugin.editors import MEMIT, ROME, AlphaEdit, MEMITSequential
from alphaedit_plugin.editors.rect import PAPER_KEEP
from alphaedit_plugin.errors import AlphaEditError, CompareError, HyperparameterError, WrongModelError
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.fingerprint import fingerprints
from alphaedit_plugin.hparams import METHODS, Hyperparameters
from alphaedit_plugin.nullspace import Criterion
from alphaedit_plugin.prepare import Statistics
from alphaedit_plugin.requests import Request
from alphaedit_plugin.session import Session
from alphaedit_plugin.variant import GRAMMAR, SOLVERS, Variant

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
    rect, prune, projected = (draw(st.booleans()) for _ in range(3))
    changes = tuple((key, draw(_CHANGES[key])) for key in keys)
    return Variant(solver, rect, prune, projected or solver == "alphaedit", changes)


def test_every_setting_can_be_changed_in_the_tests():
    assert set(_CHANGES) == {field.name for field in fields(Hyperparameters)}


@settings(max_examples=300, deadline=None)
@given(variant=variants())
def test_a_variant_is_what_its_name_says(variant):
    name = str(variant)
    again = Variant.parse(name)
    assert again == variant
    assert str(again) == name
    assert [type(value) for _, value in again.changes] == [type(value) for _, value in variant.changes]


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=100, deadline=None)
@given(variant=variants(), data=st.data())
def test_the_order_of_suffixes_spaces_and_capitals_mean_nothing(variant, data):
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
        ("rect", Variant("memit", rect=True)),
        ("prune+P", Variant("memit", prune=True, projected=True)),
        ("alphaedit", Variant("alphaedit", projected=True)),
        ("rome@v_lr=0.1+rect+prune", Variant("rome", rect=True, prune=True, changes=(("v_lr", 0.1),))),
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
    assert repr(text) in str(caught.value)
    assert GRAMMAR in str(caught.value)
    assert all(solver in str(caught.value) for solver in SOLVERS)


@settings(max_examples=300, deadline=None)
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
        assert repr(name) in message


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


@settings(max_examples=100, deadline=None)
@given(variant=variants())
def test_methods_trajectories_and_needs(variant):
    assert variant.method in METHODS
    if variant.solver in ("rome", "alphaedit"):
        assert variant.method == variant.solver
    else:
        assert variant.method == ("rect" if variant.rect else "prune" if variant.prune else "memit")
    assert variant.trajectory == variant.trajectory.trajectory
    assert not variant.trajectory.prune
    assert replace(variant.trajectory, prune=variant.prune) == variant
    assert variant.needs_covariances == (variant.solver != "alphaedit")
    assert variant.needs_null_spaces == variant.projected


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("rome+rect", "rome"),
        ("alphaedit+prune", "alphaedit"),
        ("memit-seq+P", "memit"),
        ("memit-seq+rect+prune", "rect"),
        ("prune+P", "prune"),
    ],
)
def test_the_method_says_whose_hyperparameter_file_is_read(name, method):
    variant = Variant.parse(name)
    assert variant.method == method
    expected = Hyperparameters.for_model(method, MODEL, "gpt2-xl")
    assert variant.hyperparameters(MODEL, "gpt2-xl") == expected


@settings(max_examples=100, deadline=None)
@given(variant=variants())
def test_hyperparameters_are_those_given_with_the_changes_of_the_name(variant):
    base = Hyperparameters(layers=(7,), v_lr=0.123)
    found = variant.hyperparameters(MODEL, "", base)
    assert found == base.changed(dict(variant.changes), "x")
    written = json.loads(json.dumps(found.as_dict()))
    for key, value in variant.changes:
        assert written[key] == (sorted(value) if key == "layers" else value)
    untouched = {field.name for field in fields(base)} - set(dict(variant.changes))
    assert all(getattr(found, name) == getattr(base, name) for name in untouched)


@settings(max_examples=20, deadline=None)
@given(rect=st.booleans(), prune=st.booleans(), projected=st.booleans(), solver=st.sampled_from(list(SOLVERS)))
def test_a_variants_editor_solves_sparsifies_and_projects_as_its_name_says(rect, prune, projected, solver, tokenizer):
    """AlphaEdit's Δ lies in the null space already: it is projected only after RECT."""
    model = model_of(dtype=torch.float32)
    variant = Variant(solver, rect, prune, projected or solver == "alphaedit")
    spaces = random_spaces(model, LAYERS)
    covariances = {layer: random_covariance(24, layer) for layer in LAYERS}
    editor = variant.editor(model, tokenizer, HYPERPARAMETERS, covariances, spaces, contexts=CONTEXTS)
    kinds = {"rome": ROME, "memit": MEMIT, "memit-seq": MEMITSequential, "alphaedit": AlphaEdit}
    assert type(editor) is kinds[solver]
    assert editor.write.keep == (PAPER_KEEP if rect else None)
    assert (editor.write.null_spaces is not None) == (rect if solver == "alphaedit" else projected)
    assert editor.contexts == CONTEXTS


# --------------------------------------------------------------------------------------------------- side by side

HELD_OUT = "When the king came home from the war, the people of the village had already forgotten his name."
# Steps so long that singular values outgrow the weights', or PRUNE would have nothing to damp.
LONG = replace(HYPERPARAMETERS, v_lr=50.0, clamp_norm_factor=300.0, null_space=Criterion(nullity=15), L2=0.1)
OTHERS = {
    "rome": replace(LONG, layers=(1,), v_lr=0.2, clamp_norm_factor=4.0),
    "rect+prune": replace(LONG, v_num_grad_steps=3),  # not the edits of rect
}


def facts_of(count: int) -> list[Fact]:
    return [
        Fact(
            (Request.parse({**record, "case_id": number}, "fact"),),
            "Paris",
            (f"They said that {record['subject']} is in",),
            ("The Louvre is in", "Leonardo da Vinci was born in"),
        )
        for number, record in enumerate(RECORDS[:count])
    ]


def statistics_of(model) -> Statistics:
    prints = fingerprints(model, LAYERS)
    provenance = {"model": "tiny", "fingerprints": {str(layer): prints[layer] for layer in LAYERS}, "template": None}
    return Statistics({layer: random_covariance(24, layer) for layer in LAYERS}, provenance)


def compared(model, tokenizer, names: list[str], **options) -> Comparison:
    canonical = [str(Variant.parse(name)) for name in names]
    options = {
        "hyperparameters": {name: OTHERS.get(name, LONG) for name in canonical},
        "statistics": statistics_of(model),
        "batch_size": 2,
        "held_out": HELD_OUT,
        **options,
    }
    return compare(model, tokenizer, facts_of(3), names, **options)


def timeless(row: Row) -> Row:
    return replace(row, seconds=0.0)


VARIANTS = ["prune", "memit", "prune+P", "rome", "memit+P", "alphaedit", "alphaedit+prune", "rect", "rect+prune"]
VARIANTS += ["memit-seq+rect+P", "memit@layers=[0, 1]", "alphaedit@v_lr=5.0"]


@pytest.fixture(scope="module")
def together(tokenizer) -> Comparison:
    return compared(model_of(dtype=torch.float32), tokenizer, VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_together_give_the_rows_that_they_give_alone(name, together, tokenizer):
    """Whatever they share: the targets of the first batch, or all edits."""
    alone = compared(model_of(dtype=torch.float32), tokenizer, [name])
    assert [row.variant for row in alone.rows] == ["before", name]
    by_name = {row.variant: row for row in together.rows}
    for row in alone.rows:
        assert timeless(row) == timeless(by_name[row.variant])
    assert alone.settings["hyperparameters"][name] == together.settings["hyperparameters"][name]


def test_rows_come_in_the_order_asked_for_and_differ(together):
    assert [row.variant for row in together.rows] == ["before", *VARIANTS]
    assert len({row.perplexity for row in together.rows}) == len(together.rows)
    assert all(math.isfinite(row.perplexity) and row.drift for row in together.rows[1:])
    assert all(row.seconds > 0 for row in together.rows[1:])
    by_name = {row.variant: row for row in together.rows}
    for name in ("prune", "prune+P", "alphaedit+prune"):
        undamped = by_name[str(Variant.parse(name).trajectory)]
        assert by_name[name].mean_drift < undamped.mean_drift
        assert by_name[name].seconds >= undamped.seconds
    assert set(by_name["rome"].drift) == {1}


def test_the_settings_say_all_that_is_needed_to_repeat_a_run(together, tokenizer):
    """They survive JSON, and the hyperparameters in them give the same rows again."""
    settings_ = json.loads(json.dumps(together.settings))
    assert settings_["variants"] == VARIANTS
    assert (settings_["edits"], settings_["batch_size"]) == (3, 2)
    assert set(settings_["null_spaces"]) == {name for name in VARIANTS if Variant.parse(name).projected}
    values = {
        name: Hyperparameters.from_mapping({k: v for k, v in written.items() if v is not None}, "x")
        for name, written in settings_["hyperparameters"].items()
    }
    again = compared(model_of(dtype=torch.float32), tokenizer, ["prune", "memit"], hyperparameters=values)
    for row in again.rows:
        (other,) = (row_ for row_ in together.rows if row_.variant == row.variant)
        assert timeless(row) == timeless(other)


@pytest.mark.parametrize("names", [["memit", "prune"], ["prune", "memit", "rome", "alphaedit"]], ids=str)
def test_the_model_ends_as_it_began_and_every_row_is_told_of(names, tokenizer):
    model = model_of(dtype=torch.float32).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    told: list[Comparison] = []
    result = compared(model, tokenizer, names, on_row=told.append)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert [len(comparison.rows) for comparison in told] == list(range(1, len(names) + 2))
    for comparison, longer in zip(told, [*told[1:], result], strict=True):
        assert comparison.rows[0].variant == "before"
        assert [row for row in longer.rows if row in comparison.rows] == comparison.rows
        assert comparison.settings["variants"] == names
    assert told[-1].rows == result.rows


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_comparison_leaves_the_model_as_it_was(after, tokenizer):
    """Between two variants that share their edits, too."""
    model = model_of(dtype=torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def interrupt(comparison: Comparison) -> None:
        if len(comparison.rows) == 1 + after:
            raise _Interrupted

    with pytest.raises(_Interrupted):
        compared(model, tokenizer, ["memit", "prune", "alphaedit"], on_row=interrupt)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


RESUMED = ["memit", "prune", "rome+P", "alphaedit", "rect+P"]


@pytest.fixture(scope="module")
def uninterrupted(tokenizer) -> Comparison:
    return compared(model_of(dtype=torch.float32), tokenizer, RESUMED)


@pytest.mark.parametrize("killed_at", [(1,), (2, 3), (3, 4, 5), (5, 7), (8,)], ids=str)
def test_a_run_that_was_killed_goes_on_and_repeats_nothing(killed_at, uninterrupted, tokenizer, tmp_path, monkeypatch):
    """Killed in the middle of an edit, once or several times."""
    calls, edit = [], Session.edit

    def counted(self, *args):
        calls.append(self)
        if len(calls) in killed_at:
            raise _Interrupted
        return edit(self, *args)

    monkeypatch.setattr(Session, "edit", counted)
    for _ in killed_at:
        with pytest.raises(_Interrupted):
            compared(model_of(dtype=torch.float32), tokenizer, RESUMED, folder=tmp_path / "run")
    result = compared(model_of(dtype=torch.float32), tokenizer, RESUMED, folder=tmp_path / "run")
    assert list(map(timeless, result.rows)) == list(map(timeless, uninterrupted.rows))
    assert len(calls) == 2 * 4 + len(killed_at)  # two batches for each of four trajectories
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["comparison.json"]


def test_a_folder_of_results_is_added_to_and_never_confused_with_other_settings(tokenizer, tmp_path, monkeypatch):
    model = model_of(dtype=torch.float32)
    first = compared(model, tokenizer, ["memit"], folder=tmp_path / "run")
    edits = []
    monkeypatch.setattr(Session, "edit", lambda self, *_: edits.append(self.variant.solver))
    again = compared(model, tokenizer, ["memit"], folder=tmp_path / "run")
    assert again.rows == first.rows
    assert edits == []
    compared(model, tokenizer, ["memit", "alphaedit"], folder=tmp_path / "run")
    assert set(edits) == {"alphaedit"}
    other = replace(LONG, mom2_update_weight=7.0)
    compared(model, tokenizer, ["memit"], folder=tmp_path / "run", hyperparameters=other)
    assert edits[-1] == "memit"


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"variant": "memit"}]}'])
def test_results_that_cannot_be_read_are_an_error_that_names_the_file(content, tokenizer, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "comparison.json").write_text(content)
    with pytest.raises(CompareError, match=r"comparison\.json.*another folder"):
        compared(model_of(dtype=torch.float32), tokenizer, ["memit"], folder=tmp_path / "run")


def test_a_variant_named_twice_is_run_once(tokenizer):
    result = compared(model_of(dtype=torch.float32), tokenizer, ["memit+rect", "rect", "RECT"])
    assert [row.variant for row in result.rows] == ["before", "rect"]


def test_hyperparameters_may_be_one_for_all(tokenizer):
    model = model_of(dtype=torch.float32)
    one = compared(model, tokenizer, ["memit", "alphaedit"], hyperparameters=LONG)
    each = compared(model, tokenizer, ["memit", "alphaedit"])
    assert list(map(timeless, one.rows)) == list(map(timeless, each.rows))


def test_changes_in_a_variants_name_reach_its_run(tokenizer):
    names = ["memit", "memit@mom2_update_weight=1000", "memit@layers=[1, 2]"]
    result = compared(model_of(dtype=torch.float32), tokenizer, names, hyperparameters=LONG)
    _, plain, careful, two = result.rows
    assert careful.mean_drift < plain.mean_drift
    assert set(plain.drift) == {0, 1, 2}
    assert set(two.drift) == {1, 2}


def test_statistics_of_another_model_are_refused_before_anything_is_edited(tokenizer):
    model = model_of(dtype=torch.float32)
    told: list[Comparison] = []
    with pytest.raises(WrongModelError):
        compared(
            model,
            tokenizer,
            ["memit", "memit+P"],
            statistics=statistics_of(model_of(dtype=torch.float32, seed=1)),
            on_row=told.append,
        )
    assert told == []
    with pytest.raises(AlphaEditError):
        compared(model, tokenizer, ["memit"], held_out="")


def test_a_comparison_is_saved_as_json(together, tmp_path):
    read = json.loads(json.dumps(together.as_dict()))
    assert [row["variant"] for row in read["rows"]] == ["before", *VARIANTS]
    for row, written in zip(together.rows, read["rows"], strict=True):
        assert written["mean_drift"] == pytest.approx(row.mean_drift)
        assert written["perplexity"] == pytest.approx(row.perplexity)
    assert read["settings"] == json.loads(json.dumps(together.settings))
