"""A whole run: what version 0.1 measured is still known, and what cannot be met is said before any model is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.paths import SAVED

from alphaedit_plugin.comparison.campaign import Campaign, cell_folder
from alphaedit_plugin.comparison.measuring import Measuring
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.comparison.studies import Plan
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import AlphaEditError
from alphaedit_plugin.model.fingerprint import fingerprints
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.store import Store

pytestmark = pytest.mark.slow

METHODS = ("memit", "prune+P", "rect", "alphaedit", "rome")


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """The working directory of a run of version 0.1: model, facts, text and run folder."""
    shutil.copytree(SAVED, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    derived = Hyperparameters.derived  # which gave every model a λ of 15,000, and Adam's targets
    then = {"mom2_update_weight": 15_000.0, "target_optimiser": "adam"}
    monkeypatch.setattr(Hyperparameters, "derived", lambda *args: replace(derived(*args), **then))
    expected = NullSpaces.load("null_spaces.safetensors").provenance["fingerprints"]
    model = load("model")[0]
    if fingerprints(model, [2])[2] != expected["2"]:
        pytest.skip("this version of transformers reads the saved model's configuration otherwise: another fingerprint")
    return tmp_path / "old"


def campaign(**changes) -> Campaign:
    return Campaign(
        **{
            "models": ("model",),
            "folder": Path("run"),
            "data": ("facts.json",),
            "plan": Plan(METHODS, every=2),
            "batch": 2,
            "measuring": Measuring(held_out=Path("text.txt")),
            "preparation": Preparation("text.txt", tokens=300, criterion=Criterion(nullity=12), store=Store("cache")),
            "layers": (1, 2),
            **changes,
        }
    )


def test_nothing_that_version_0_1_measured_is_edited_or_measured_again(saved, monkeypatch):
    before = [comparison.rows for comparison in read_run(saved / "run")]
    assert [len(rows) for rows in before] == [1 + 2 * len(METHODS)]
    monkeypatch.setattr(Session, "edit", lambda *_, **__: pytest.fail("edited again"))
    monkeypatch.setattr(
        "alphaedit_plugin.evaluation.fact_scores.FactScores.__call__", lambda *_, **__: pytest.fail("measured again")
    )
    campaign(keep_sessions=True).run(load)
    assert [comparison.rows for comparison in read_run(saved / "run")] == before


def test_a_session_that_version_0_1_kept_is_taken_up_again_for_another_checkpoint(saved, monkeypatch):
    edited = []
    edit = Session.edit
    monkeypatch.setattr(
        Session, "edit", lambda self, *args, **options: edited.append(str(self.variant)) or edit(self, *args, **options)
    )
    campaign(plan=Plan(("memit",)), measuring=Measuring(held_out=saved / "facts.json")).run(load)
    assert edited == []  # another text is measured, on the edits that were kept
    (comparison,) = read_run(saved / "run")
    assert [(row.variant, row.edits) for row in comparison.final][:2] == [("before", 0), ("memit", 3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": Plan(("memmit",))}, "memmit"),
        ({"plan": Plan(("no_such_editor.py:edit",))}, "there is no file no_such_editor.py"),
        ({"plan": Plan(METHODS, edits=4)}, "--edits must be from 1 to 3"),
        ({"study": "models"}, "needs several"),
        ({"study": "modles"}, "no study 'modles'"),
        ({"measuring": Measuring(snippets=Path("text.txt"))}, "--texts"),
        ({"measuring": Measuring(held_out=Path("absent.txt"))}, "absent.txt"),
        ({"measuring": Measuring(shift=Path("facts.json"), shift_limit=1)}, "--shift-limit"),
        ({"baseline_hparams": Path("absent")}, "--baseline-hparams absent"),
        ({"data": ("absent.json",)}, "absent.json"),
        ({"data": ("contradicts.json",), "batch": 4}, "fact 0 (case_id 0) and fact 3 (case_id 0) contradict"),
        ({"plan": Plan(("memit", "easyedit:MEMIT")), "chat": True}, "easyedit:MEMIT cannot take part in a chat"),
    ],
)
def test_what_cannot_be_met_is_said_before_any_model_is_loaded(changes, words, tmp_path, monkeypatch):
    for name in ("facts.json", "text.txt"):
        shutil.copy(SAVED / name, tmp_path)
    records = json.loads((SAVED / "facts.json").read_text(encoding="utf-8"))
    other = {**records[0]["requested_rewrite"], "target_new": {"str": "elsewhere"}}
    contradicting = [*records, {**records[0], "requested_rewrite": other}]
    (tmp_path / "contradicts.json").write_text(json.dumps(contradicting), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlphaEditError) as failure:
        campaign(**changes).run(lambda name: pytest.fail(f"{name} was loaded"))
    assert words in str(failure.value)


def test_folders_of_cells_are_readable_and_differ():
    assert cell_folder("org/My Model", "data/facts.json", 3) == "My_Model-facts-seed3"
    one = campaign(models=("a/m", "b/m"))
    assert len(set(one._cells.values())) == 2


def test_a_stream_is_one_comparison_of_all_files_in_their_order(tmp_path):
    def record(subject: str, **more: object) -> dict:
        return {"subject": subject, "prompt": f"{subject} is in", "target_new": "Rome", "rephrase_prompt": "", **more}

    for name, subjects in (("a", ("Ann", "Bob", "Cem")), ("b", ("Dan", "Eve"))):
        more = {} if name == "a" else {"locality": {}, "portability": {}}  # KnowEdit's, the other is EasyEdit's
        (tmp_path / f"{name}.json").write_text(json.dumps([record(each, **more) for each in subjects]))
    data = (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    asked = campaign(data=data, stream=True, plan=Plan(METHODS), measuring=Measuring())
    read = asked.read()
    (course,) = read.courses.values()
    assert [fact.request.subject for fact in course.facts] == ["Ann", "Bob", "Cem", "Dan", "Eve"]
    assert [dataset.format for dataset in read.datasets.values()] == ["EasyEdit + KnowEdit"]
    assert list(asked._cells.values()) == ["model-a+b"]
    few = campaign(data=data, stream=True, plan=Plan(METHODS, edits=1), measuring=Measuring()).read()
    assert [fact.request.subject for fact in next(iter(few.courses.values())).facts] == ["Ann", "Dan"]
    apart = campaign(data=data, plan=Plan(METHODS))
    assert list(apart._cells.values()) == ["model-a", "model-b"]
