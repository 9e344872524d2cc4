"""`docs/add_a_method.md` as a newcomer would follow it: a package of its own, made known by entry points."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from support.editing import CONTEXTS, HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.paths import ROOT
from support.spaces import outside, random_spaces
from support.tiny import model_of

from alphaedit_plugin.editors import registry
from alphaedit_plugin.editors.keys import Sweep, half_bare
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.session.session import Session

PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
VALUES = replace(HYPERPARAMETERS, L2=0.3)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's package as pip would have installed it."""
    for name, text in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    information = tmp_path / "newcomer-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
    (toml,) = re.findall(r"```toml\n\[project.entry-points.alphaedit_plugin\]\n(.*?)```", PAGE, re.DOTALL)
    (information / "entry_points.txt").write_text("[alphaedit_plugin]\n" + toml.replace('"', ""))
    registry.listed()  # ours are imported before, or they would be forgotten with the page's
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in BLOCKS:
        sys.modules.pop(name, None)


def test_each_takes_thirty_lines_at_most():
    assert set(BLOCKS) == {"mysolver", "mymodifier"}
    assert all(len(text.splitlines()) <= 30 for text in BLOCKS.values())


def test_they_are_known_before_they_are_imported_and_listed_with_the_others(installed):
    assert {"mysolver", "mymodifier"} <= set(registry.names())
    registry.check_names("mysolver@strength=2+mymodifier+P")
    assert "mysolver" not in sys.modules
    listed = {each.name: each for each in registry.listed()}
    assert (listed["mysolver"].kind, listed["mysolver"].settings) == ("method", {"strength": 1.0})
    assert (listed["mymodifier"].kind, listed["mymodifier"].settings) == ("modifier", {"share": 0.01})


def test_the_update_is_what_the_formula_says(installed, tokenizer):
    model = model_of()
    start = weights(model)
    running = session(model, tokenizer, "mysolver@strength=0.5@layers=[1]", hyperparameters=VALUES)
    requests = [Request.parse(record, "request") for record in RECORDS]
    targets = running.editor.targets(requests)
    sweep = Sweep(model, tokenizer, requests, CONTEXTS)
    keys = half_bare(sweep.keys(running.projections[1])).T
    running.edit(requests, targets)
    ridge = keys @ keys.T + VALUES.L2 * torch.eye(len(keys), dtype=keys.dtype)
    expected = 0.5 * targets.delta.double().T @ keys.T @ torch.linalg.inv(ridge)
    found = weights(model)[1] - start[1]
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


def test_both_together_projected_edit_undo_save_and_resume(installed, tokenizer, tmp_path):
    model = model_of()
    start, spaces = weights(model), random_spaces(model, LAYERS)
    name = "mysolver@strength=0.5@share=0.02+mymodifier+P"
    assert str(Variant.parse(name)) == name
    running = session(model, tokenizer, name, spaces, VALUES)
    running.edit(RECORDS[:2])
    once = weights(model)
    for layer, weight in once.items():
        out, size = outside(spaces[layer], start[layer], weight, False)
        assert 0 < size <= 0.02 * float(start[layer].norm()) * (1 + 1e-9)
        assert out <= 1e-5 * size
    running.edit(RECORDS[2:])
    running.save(tmp_path / "session")
    resumed = Session.resume(tmp_path / "session", model_of(), tokenizer)
    assert resumed.hyperparameters == running.hyperparameters
    assert resumed.hyperparameters.own == {"strength": 0.5, "share": 0.02}
    assert all(torch.equal(weight, weights(model)[layer]) for layer, weight in weights(resumed.model).items())
    resumed.undo()
    assert all(torch.equal(weight, once[layer]) for layer, weight in weights(resumed.model).items())
    running.undo(2)
    assert all(torch.equal(weight, start[layer]) for layer, weight in weights(model).items())
