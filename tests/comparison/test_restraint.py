"""A user's editor in a comparison, held to more than the null space: `+revive`, `+revive+P`, `+crisp`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.comparing import LONG, facts_of, fresh, statistics_of

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.contender import Ground
from alphaedit_plugin.comparison.contenders import contender, contenders, prepared
from alphaedit_plugin.comparison.results import BEFORE
from alphaedit_plugin.editors.revive import protected
from alphaedit_plugin.errors import HyperparameterError, WrongModelError
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.kronecker import LowCurvature
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.storage.store import Store

LAYERS = list(LONG.layers)
EDITOR = f"""
import torch

def edit(model, tokenizer, requests, *, size=0.3):
    generator = torch.Generator().manual_seed(len(requests[0].text))
    with torch.no_grad():
        for layer in {LAYERS}:
            weight = model.model.layers[layer].mlp.down_proj.weight
            weight += size * torch.randn(weight.shape, generator=generator)

def elsewhere(model, tokenizer, requests):
    edit(model, tokenizer, requests)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(1.1)

def with_tau(model, tokenizer, requests, *, tau=1.0): ...

def with_energy(model, tokenizer, requests, *, energy=1.0): ...

def on_another(model, tokenizer, requests):
    rebuilt = type(model)(model.config)
    rebuilt.load_state_dict(model.state_dict())
    edit(rebuilt, tokenizer, requests)
    return rebuilt
"""
VALUES = replace(LONG, tokens=400)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EDITOR)
    (tmp_path / "text.txt").write_text("the king came home from the war and saw the old town by the river\n\n" * 60)
    return tmp_path


@pytest.fixture
def preparation(path):
    return Preparation(corpus=path / "text.txt", tokens=400, store=Store(path / "cache"))


def compared(methods, tokenizer, model, **options):
    return compare(
        model,
        tokenizer,
        facts_of(2),
        methods,
        batch_size=2,
        measures=[FactScores()],
        hyperparameters=VALUES,
        **options,
    )


def deltas(name, tokenizer, model, **options):
    """layer → ΔW, d_out × d_in in float64, that the contender leaves after its first batch."""
    ground = Ground(model, tokenizer, hyperparameters=VALUES, **options)
    (entry,) = prepared([contender(name)], ground)
    edited = entry._edit(entry.called, fresh(), tokenizer, [fact.request for fact in facts_of(2)], 0)
    before, after = (Decoder(each).out_projections(LAYERS) for each in (model, edited))
    return {layer: (after[layer].matrix - before[layer].matrix).double() for layer in LAYERS}


@pytest.mark.parametrize("marks", ["+revive", "+revive+P", "@tau=0.3+revive", "+P"])
def test_what_it_writes_is_where_its_name_says(marks, path, tokenizer):
    model = fresh()
    free = deltas("mine.py:edit", tokenizer, model, statistics=statistics_of(model))
    held = deltas(f"mine.py:edit{marks}", tokenizer, model, statistics=statistics_of(model))
    spaces = null_spaces_of(statistics_of(model), VALUES.null_space)
    for layer, delta in held.items():
        u, v = protected(Decoder(model).out_projection(layer).matrix, 0.3 if "tau" in marks else 0.1)
        small, of_free = 1e-5 * float(delta.norm()), float(free[layer].norm())
        assert small > 0
        outside = {"revive": (u.T @ delta, delta @ v), "P": (delta - spaces[layer].project(delta),)}
        free_outside = {
            "revive": (u.T @ free[layer],),
            "P": (free[layer] - spaces[layer].project(free[layer]),),
        }
        for mark, rests in outside.items():
            if mark in marks:
                assert all(float(rest.norm()) <= small for rest in rests)
                assert all(float(rest.norm()) > 0.05 * of_free for rest in free_outside[mark])
            else:
                assert any(float(rest.norm()) > 0.05 * float(delta.norm()) for rest in rests)


@pytest.mark.parametrize("marks", ["+crisp", "@energy=0.3+crisp"])
def test_crisp_is_the_guard_that_a_user_would_prepare(marks, path, preparation, tokenizer):
    model = fresh()
    spaces = LowCurvature.prepare(
        model,
        tokenizer,
        LAYERS,
        energy=0.3 if "0.3" in marks else 0.1,
        corpus=path / "text.txt",
        tokens=400,
        store=Store(path / "another"),
    )
    free = deltas("mine.py:edit", tokenizer, model, preparation=preparation)
    held = deltas(f"mine.py:edit{marks}", tokenizer, model, preparation=preparation)
    for layer, delta in held.items():
        assert torch.allclose(delta, spaces[layer].project(free[layer]), atol=1e-5)
        assert float((free[layer] - delta).norm()) > 0.05 * float(free[layer].norm())


def test_each_has_its_row_and_the_report_knows_which_null_spaces_are_ps(path, preparation, tokenizer):
    names = ["mine.py:edit", *(f"mine.py:edit{marks}" for marks in ("+P", "+revive", "+revive+P", "+crisp"))]
    found = compared(names, tokenizer, fresh(), preparation=preparation)
    assert found.variants == names
    assert set(found.settings["null_spaces"]) == {"mine.py:edit+P", "mine.py:edit+revive+P"}
    drift = {row.variant: row.mean_drift for row in found.rows if row.variant != BEFORE}
    assert len(set(drift.values())) == len(names)
    assert all(0 < drift[name] < drift["mine.py:edit"] for name in names[1:])
    under_keys = compared({"m": _noise, "m+revive+P": _noise}, tokenizer, fresh(), preparation=preparation)
    assert under_keys.variants == ["m", "m+revive+P"]
    assert under_keys.rows[2].mean_drift < under_keys.rows[1].mean_drift


def test_settings_in_a_functions_key_are_those_of_what_it_is_held_to(path):
    found = contenders({"m@tau=0.3+revive": _noise, "m+revive": _noise, "m@energy=0.3+crisp": _noise, "a@b+P": _noise})
    assert [each.name for each in found] == ["m@tau=0.3+revive", "m+revive", "m@energy=0.3+crisp", "a@b+P"]
    assert [dict(each.restraint.modifiers).get("revive") for each in found[:2]] == [(("tau", 0.3),), (("tau", 0.1),)]
    assert found[2].restraint.flat == 0.3
    with pytest.raises(HyperparameterError, match="no setting"):
        contenders({"m@share=0.3+revive": _noise})


@pytest.mark.parametrize("marks", ["+P", "+revive+P", "+crisp"])
def test_statistics_of_another_model_are_refused(marks, path, preparation, tokenizer):
    other = fresh()
    Decoder(other).out_projection(0).stored.add_(0.1)
    with pytest.raises(WrongModelError):
        deltas(f"mine.py:edit{marks}", tokenizer, fresh(), statistics=statistics_of(other), preparation=preparation)


def test_where_the_covariances_are_of_other_text_it_is_said(path, preparation, tokenizer, caplog):
    model = fresh()
    without = replace(preparation, corpus=None)
    deltas("mine.py:edit+crisp", tokenizer, model, statistics=statistics_of(model), preparation=without)
    assert "give a corpus" in caplog.text
    caplog.clear()
    deltas("mine.py:edit+crisp", tokenizer, model, statistics=statistics_of(model), preparation=preparation)
    assert "give a corpus" not in caplog.text


def _noise(model, tokenizer, requests):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.add_(torch.randn(16, 24, generator=torch.Generator().manual_seed(0)))


def test_what_is_not_held_is_refused_or_said(path, preparation, tokenizer, caplog):
    found = compared(
        ["mine.py:on_another+revive", "mine.py:on_another+crisp", "mine.py:elsewhere+crisp"],
        tokenizer,
        fresh(),
        preparation=preparation,
    )
    assert found.variants == ["mine.py:elsewhere+crisp"]
    assert "outside what +revive leaves open" in caplog.text
    assert "outside what +crisp leaves open" in caplog.text
    assert "no out-projections, which +crisp does not reach" in caplog.text


def test_another_text_is_another_entry(path, preparation, tokenizer):
    def identity(name, **changes):
        ground = Ground(fresh(), tokenizer, hyperparameters=VALUES, preparation=replace(preparation, **changes))
        (entry,) = prepared([contender(name)], ground)
        return entry.identity

    assert identity("mine.py:edit+crisp") == identity("mine.py:edit+crisp")
    (path / "other.txt").write_text("a house by the sea, and nobody in it\n\n" * 60)
    different = [
        identity("mine.py:edit+crisp"),
        identity("mine.py:edit+crisp", corpus=path / "other.txt"),
        identity("mine.py:edit@energy=0.3+crisp"),
        identity("mine.py:edit"),
        identity("mine.py:edit+P"),
        identity("mine.py:edit+revive"),
        identity("mine.py:edit@tau=0.3+revive"),
        identity("mine.py:edit+revive+P"),
    ]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("mine.py:edit+p", "mine.py:edit+P"),
        ("mine.py:edit+P+REVIVE", "mine.py:edit+revive+P"),
        ("mine.py:edit@tau=0.2@size=2+revive", "mine.py:edit@size=2@tau=0.2+revive"),
        ("mine.py:edit@energy=0.1+crisp", "mine.py:edit+crisp"),
        ("mine.py:edit@tau=0.1+revive", "mine.py:edit+revive"),
        ("mine.py:edit@energy=0.2+crisp", "mine.py:edit@energy=0.2+crisp"),
    ],
)
def test_names_are_canonical(name, canonical, path):
    assert contender(name).name == canonical
    assert contender(canonical).name == canonical
    assert [each.name for each in contenders([name, canonical])] == [canonical]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:edit+crisp+P", r"\+crisp chooses directions on both sides of the weight at once, which \+P"),
        ("mine.py:edit+revive+crisp", r"which \+revive would narrow"),
        ("mine.py:edit+sphere", "sphere is no projection"),
        ("mine.py:edit+memit", r"may be held to \+P, \+crisp, or a modifier that is a projection"),
        ("mine.py:edit+foo", r"in 'mine.py:edit\+foo'.*may be held to"),
        ("mine.py:edit@size='a+b'", r"\+b stands in a setting"),
        ("mine.py:edit@size=a+P@size=3", r"\+P stands in a setting"),
        ("mine.py:with_tau@tau=0.3+revive", "tau is a setting of the function and of what it is held to"),
        ("mine.py:with_energy@energy=0.3+crisp", "energy is a setting of the function and of what"),
        ("mine.py:edit+reviv", "did you mean revive"),
        ("mine.py:edit+P+p", "comes twice"),
        ("mine.py:edit@energy=1.5+crisp", "energy is a share"),
        ("mine.py:edit@energy=0.5+P", "no setting 'energy'"),
        ("mine.py:edit@tau=much+revive", "revive has no setting tau: 'much'"),
    ],
)
def test_what_cannot_hold_an_editor_is_said_so(name, message, path):
    with pytest.raises(HyperparameterError, match=message):
        contender(name)
