"""A user's own editor in a comparison: it gets what ours get, and harms nobody."""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.comparing import LONG, facts_of, fresh, statistics_of, timeless

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.results import BEFORE, Comparison
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.session.session import Session

HYPERPARAMETERS = replace(LONG, v_lr=0.5, clamp_norm_factor=4.0)


def compared(methods, tokenizer, *, model=None, facts=3, **options) -> Comparison:
    model = fresh() if model is None else model
    return compare(
        model,
        tokenizer,
        facts_of(facts),
        methods,
        batch_size=2,
        measures=[FactScores()],
        hyperparameters=HYPERPARAMETERS,
        statistics=statistics_of(model),
        **options,
    )


def rows(comparison: Comparison) -> list:
    """Whatever the contender was called and how long it took."""
    return [replace(timeless(row), variant="") for row in comparison.rows]


def in_place(model, tokenizer, requests, size=0.3):
    """A rank-one write of noise for each request, by its subject: no good edit, but always the same."""
    for request in requests:
        generator = torch.Generator().manual_seed(len(request.text))
        for projection in Decoder(model).out_projections(list(HYPERPARAMETERS.layers)).values():
            weight = projection.module.weight
            noise = [torch.randn(n, generator=generator) for n in weight.shape]
            with torch.no_grad():
                weight += size * torch.outer(*noise) / len(noise[0])


def on_a_copy(model, tokenizer, requests, size=0.3):
    edited = copy.deepcopy(model)
    in_place(edited, tokenizer, requests, size)
    return edited, {}


def test_it_sees_the_same_batches_and_is_measured_at_the_same_points_as_ours(tokenizer):
    """Our MEMIT, called as a user would call it, gives the row of our MEMIT at every checkpoint."""
    sessions = []
    contexts = context_templates(fresh(), tokenizer, HYPERPARAMETERS.context_template_length_params)

    def mine(model, tokenizer, requests):
        if not sessions:
            sessions.append(
                Session(
                    model,
                    tokenizer,
                    "memit",
                    hyperparameters=HYPERPARAMETERS,
                    covariances=statistics_of(model).covariances,
                    contexts=contexts,
                )
            )
        sessions[0].edit(requests)

    assert rows(compared({"mine": mine}, tokenizer, every=2)) == rows(compared(["memit"], tokenizer, every=2))


def test_projected_it_is_the_same_function_under_our_guard(tokenizer):
    model, spaces = fresh(), null_spaces_of(statistics_of(fresh()), HYPERPARAMETERS.null_space)
    found = compared({"mine": in_place, "mine+P": in_place}, tokenizer, model=model)
    by_hand, twin = fresh(), fresh()
    for batch in (facts_of(3)[:2], facts_of(3)[2:]):
        requests = [fact.request for fact in batch]
        in_place(twin, tokenizer, requests)
        with guard(by_hand, spaces, check_model=False):
            in_place(by_hand, tokenizer, requests)
    _, plain, projected = found.rows
    for row, edited in ((plain, twin), (projected, by_hand)):
        for layer, projection in Decoder(edited).out_projections(list(HYPERPARAMETERS.layers)).items():
            start = Decoder(fresh()).out_projection(layer).matrix.double()
            expected = (projection.matrix.double() - start).norm() / start.norm()
            assert row.drift[layer] == pytest.approx(float(expected), rel=1e-5)
    assert 0 < projected.mean_drift < plain.mean_drift
    assert projected.mean_leakage < plain.mean_leakage
    assert set(found.settings["null_spaces"]) == {"mine+P"}


def test_a_model_that_it_returns_is_the_one_that_is_measured_and_goes_on(tokenizer):
    for name in ("mine", "mine+P"):
        assert rows(compared({name: on_a_copy}, tokenizer, every=2)) == rows(
            compared({name: in_place}, tokenizer, every=2)
        )


def test_settings_reach_it(tokenizer, tmp_path):
    path = editor(tmp_path, "weight.mul_(1 + scale)", "scale=0.0")
    small, large = compared([f"{path}:edit@scale=0.1", f"{path}:edit@scale=0.2"], tokenizer, facts=1).rows[1:]
    assert small.drift[1] == pytest.approx(0.1, rel=1e-4)
    assert large.drift[1] == pytest.approx(0.2, rel=1e-4)


def editor(folder: Path, statement: str, settings: str = "size=1.0") -> Path:
    """A file with an editor that does `statement` to the weight of layer 1 for each batch, and logs its calls."""
    path = folder / "my_editor.py"
    path.write_text(
        "import torch\n"
        "from pathlib import Path\n"
        f"def edit(model, tokenizer, requests, *, {settings}):\n"
        "    with Path(__file__).with_name('calls').open('a') as calls:\n"
        "        calls.write(f'{len(requests)}\\n')\n"
        "    weight = model.model.layers[1].mlp.down_proj.weight\n"
        "    with torch.no_grad():\n"
        f"        {statement}\n"
    )
    return path


def calls(folder: Path) -> list[int]:
    return list(map(int, (folder / "calls").read_text().split()))


def test_an_exception_costs_its_row_names_file_and_line_and_leaves_the_others_theirs(tokenizer, tmp_path, caplog):
    path = editor(tmp_path, "raise ValueError('no such fact')")
    with caplog.at_level(logging.WARNING):
        found = compared([f"{path}:edit", "memit", f"{path}:edit+P"], tokenizer)
    assert [row.variant for row in found.rows] == [BEFORE, "memit"]
    assert rows(found) == rows(compared(["memit"], tokenizer))
    for name in ("my_editor.py:edit", "my_editor.py:edit+P"):
        (said,) = (record.message for record in caplog.records if record.message.startswith(f"{name}: "))
        assert f"in {path}, line 8, in edit: ValueError: no such fact" in said


@pytest.mark.parametrize("statement", ["weight.fill_(float('nan'))", "model.lm_head.weight.mul_(float('inf'))"])
def test_weights_that_are_not_finite_cost_its_row(statement, tokenizer, tmp_path, caplog):
    path = editor(tmp_path, statement)
    for mark in ("", "+P"):
        found = compared([f"{path}:edit{mark}"], tokenizer)
        assert [row.variant for row in found.rows] == [BEFORE]
    assert "not finite" in caplog.text


def test_it_may_write_any_weight_and_the_model_ends_as_it_began(tokenizer, tmp_path, caplog):
    model = fresh()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    path = editor(tmp_path, "model.lm_head.weight.mul_(1.5); torch.rand(3); model.eval(); weight.add_(torch.rand(()))")
    found = compared([f"{path}:edit", f"{path}:edit+P"], tokenizer, model=model)
    assert len(found.rows) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert "lm_head.weight" in caplog.text  # which P does not reach


def test_under_p_a_layer_without_p_is_warned_of_and_its_drift_is_shown(tokenizer, tmp_path, caplog):
    path = editor(tmp_path, "model.model.layers[3].mlp.down_proj.weight.mul_(2)")
    found = compared([f"{path}:edit+P"], tokenizer, facts=1)
    assert found.rows[1].drift == {**dict.fromkeys(HYPERPARAMETERS.layers, 0.0), 3: pytest.approx(1.0)}
    assert "layer 3" in caplog.text
    assert "--layers" in caplog.text


def test_a_returned_model_that_is_not_inside_the_null_space_is_refused(tokenizer, caplog):
    def replaced(model, tokenizer, requests):
        other = fresh()
        in_place(other, tokenizer, requests)
        return other

    assert [row.variant for row in compared({"mine+P": replaced}, tokenizer).rows] == [BEFORE]
    assert "outside the null space" in caplog.text
    assert len(compared({"mine": replaced}, tokenizer).rows) == 2


def test_editors_that_do_the_same_have_a_row_each(tokenizer):
    found = compared({"one": in_place, "other": in_place}, tokenizer, every=2)
    assert [(row.variant, row.edits) for row in found.rows[1:]] == [("one", 2), ("one", 3), ("other", 2), ("other", 3)]
    assert rows(found)[1:3] == rows(found)[3:]


def test_an_edit_that_did_not_happen_is_said_so(tokenizer, caplog):
    def nothing(model, tokenizer, requests):
        return {"loss": 0.1}

    compared({"nothing": nothing, "in place": in_place}, tokenizer)
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("nothing left every weight as it was")


def test_a_model_in_any_place_of_a_tuple_is_the_edited_one(tokenizer):
    def last(model, tokenizer, requests):
        return {"loss": 0.1}, on_a_copy(model, tokenizer, requests)[0]

    assert rows(compared({"mine": last}, tokenizer)) == rows(compared({"mine": in_place}, tokenizer))


@pytest.mark.parametrize(
    "statement",
    [
        "sys.exit(3)",
        "return torch.nn.Linear(2, 2)",
        "model.model.layers[1].mlp.down_proj = torch.nn.Sequential(model.model.layers[1].mlp.down_proj)",
        "model.model.layers.append(model.model.layers[0])",
        "model.lm_head.weight.data = torch.zeros(3, 4)",
        "return model, model",
    ],
)
def test_whatever_an_editor_does_costs_its_own_row_only(statement, tokenizer, tmp_path):
    path = editor(tmp_path, f"import sys; {statement}")
    found = compared([f"{path}:edit+P", "memit"], tokenizer)
    assert [row.variant for row in found.rows if row.variant != f"{path.name}:edit+P"] == [BEFORE, "memit"]
    assert rows(found)[-1] == rows(compared(["memit"], tokenizer))[-1]


def test_under_p_a_model_whose_matrices_are_gone_is_refused(tokenizer, tmp_path, caplog):
    path = editor(tmp_path, "layer = model.model.layers[1].mlp; layer.down_proj = torch.nn.Sequential(layer.down_proj)")
    assert [row.variant for row in compared([f"{path}:edit+P"], tokenizer, facts=1).rows] == [BEFORE]
    assert "failed" in caplog.text or "not found in the model any more" in caplog.text


def test_in_16_bits_too_an_edit_that_is_called_projected_is(tokenizer, caplog):
    def replaced(model, tokenizer, requests):
        other = fresh().to(torch.bfloat16)
        in_place(other, tokenizer, requests, 3.0)
        return other

    model = fresh().to(torch.bfloat16)
    found = compared({"in place+P": in_place, "replaced+P": replaced}, tokenizer, model=model)
    assert [row.variant for row in found.rows] == [BEFORE, "in place+P"]
    assert "outside the null space" in caplog.text


def test_folder_and_torchs_defaults_are_as_they_were(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = editor(tmp_path, "import os; os.chdir('/'); torch.set_default_dtype(torch.float64); weight.mul_(1.1)")
    compared([f"{path}:edit"], tokenizer, folder="run")
    assert (Path.cwd(), torch.get_default_dtype()) == (tmp_path, torch.float32)
    assert (tmp_path / "run" / "settings.json").is_file()


def test_what_is_drawn_at_random_can_be_repeated(tokenizer, tmp_path):
    path = editor(tmp_path, "weight.add_(torch.rand_like(weight))")
    first, second = (compared([f"{path}:edit"], tokenizer, every=2) for _ in range(2))
    assert rows(first) == rows(second)
    assert first.rows[1].drift != first.rows[2].drift


def test_a_folder_knows_an_editor_by_its_source(tokenizer, tmp_path):
    path = editor(tmp_path, "weight.mul_(1.1)")
    name, folder = f"{path}:edit", tmp_path / "run"
    first = compared([name], tokenizer, folder=folder, every=2)
    assert calls(tmp_path) == [2, 1]
    assert compared([name], tokenizer, folder=folder, every=2).rows == first.rows
    assert calls(tmp_path) == [2, 1]
    editor(tmp_path, "weight.mul_(1.2)")
    changed = compared([name], tokenizer, folder=folder, every=2)
    assert calls(tmp_path) == [2, 1, 2, 1]
    assert changed.rows[2].drift[1] > first.rows[2].drift[1]


def test_a_killed_run_begins_it_anew_and_measures_nothing_twice(tokenizer, tmp_path, monkeypatch):
    path = editor(tmp_path, "weight.mul_(1.1)")
    name, folder = f"{path}:edit", tmp_path / "run"
    whole = compared([name], tokenizer, every=2)
    measured = FactScores.__call__
    points = []

    def interrupted(self, *args, **kwargs):
        points.append(len(args[2]))
        if len(points) == 3:
            raise KeyboardInterrupt
        return measured(self, *args, **kwargs)

    monkeypatch.setattr(FactScores, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compared([name], tokenizer, every=2, folder=folder)
    assert rows(compared([name], tokenizer, every=2, folder=folder)) == rows(whole)
    assert points == [3, 2, 3, 3]  # before, after two facts, after three: killed, and once more


@pytest.mark.parametrize("where", ["my_editor.py", "my_editor"])
def test_what_an_editor_remembers_of_one_run_is_not_there_in_the_next(where, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_editor", raising=False)
    editor(tmp_path, "seen.append(1); weight.mul_(1 + len(seen))").open("a").write("seen = []\n")
    found = compared([f"{where}:edit", f"{where}:edit@size=1.0"], tokenizer, facts=1)
    assert [row.drift[1] for row in found.rows[1:]] == [pytest.approx(1.0)] * 2
    assert rows(compared([f"{where}:edit"], tokenizer, facts=1)) == rows(found)[:2]


def test_null_spaces_are_those_of_the_criterion_that_was_asked_for(tokenizer):
    model = fresh()
    values = replace(HYPERPARAMETERS, null_space=Criterion(nullity=3))
    options = {"batch_size": 2, "measures": [FactScores()], "statistics": statistics_of(model)}
    found = compare(model, tokenizer, facts_of(1), {"m+P": in_place}, hyperparameters=values, **options)
    assert set(found.settings["null_spaces"]["m+P"]["nullity"].values()) == {3}
