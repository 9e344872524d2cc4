"""`alphaedit tune` and `alphaedit trace` from the command line to the file that `alphaedit edit` reads."""

from __future__ import annotations

import json

import pytest
from support.command_line import FACTS, assert_one_line

from alphaedit_plugin.editors.hyperparameters import Hyperparameters

QUICK = ("--tokens", "300", "--nullity", "12", "--quiet")


@pytest.fixture
def tuned(run, checkpoint, facts, tmp_path):
    """(what `tune` said, the file that it wrote)."""
    path = tmp_path / "tuned.yaml"
    arguments = ("--method", "alphaedit@v_num_grad_steps=3", "--facts", facts, "--minutes", "5", "--out", path)
    return run("tune", checkpoint, *arguments, *QUICK), path


def test_a_tuned_file_is_what_edit_takes(run, checkpoint, facts, tuned, tmp_path):
    (code, said, errors), path = tuned
    assert code == 0, errors
    assert "at most 5 minutes" in " ".join(said.split())
    assert f"--hparams {path}" in " ".join(said.split())
    assert any(line.startswith("*") for line in said.splitlines())
    assert not list(tmp_path.glob(".tuned*"))
    settings = Hyperparameters.from_yaml(path)
    code, said, errors = run(
        "edit",
        checkpoint,
        facts,
        "--hparams",
        path,
        "--tokens",
        "300",
        "--quiet",
        "--allow-failures",
        "--out",
        tmp_path / "edited",
    )
    assert code == 0, errors
    manifest = json.loads((tmp_path / "edited" / "session" / "session.json").read_text("utf-8"))
    assert Hyperparameters.from_mapping(manifest["hyperparameters"], "session") == settings


def test_the_same_command_goes_on_where_it_was(run, checkpoint, facts, tuned, monkeypatch):
    (_, said, _), path = tuned
    text = path.read_text("utf-8")
    monkeypatch.setattr("alphaedit_plugin.session.session.Session.edit", lambda *_: pytest.fail("tried before"))
    arguments = ("--method", "alphaedit@v_num_grad_steps=3", "--facts", facts, "--minutes", "5", "--out", path)
    code, again, errors = run("tune", checkpoint, *arguments, *QUICK)
    assert code == 0, errors
    assert "going on with earlier trials" in again
    rows = [line for line in said.splitlines() if line.strip("* ")[:1].isdigit()]
    assert [line for line in again.splitlines() if line.strip("* ")[:1].isdigit()] == rows
    values = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")] == values


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_trace_prints_a_row_per_layer_and_draws(suffix, run, checkpoint, facts, tmp_path):
    plot = tmp_path / f"trace.{suffix}"
    code, said, errors = run("trace", checkpoint, "--facts", facts, "--samples", "2", "--plot", plot, "--quiet")
    assert code == 0, errors
    rows = [line.split("│")[1].strip() for line in said.splitlines() if line.count("│") > 5]
    assert rows == ["0", "1", "2", "3"]
    head = plot.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in plot.read_bytes()[:2000]


def test_mistakes_are_one_line_before_a_model_is_loaded(run, facts, tmp_path):
    assert_one_line(run("trace", "absent", "--facts", facts, "--plot", tmp_path / "trace.docx"), ".docx")
    assert_one_line(run("tune", "absent", "--facts", tmp_path / "absent.json"), "absent.json")
    assert_one_line(run("tune", "absent", "--method", "memmit"), "memit")
    assert_one_line(run("tune", "absent", "--minutes", "0"), "--minutes")
    assert not list(tmp_path.glob("*.yaml"))


def test_facts_of_a_file_that_the_pilot_does_not_need_are_left(run, checkpoint, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({**FACTS[0], "case_id": number}) for number in range(30)))
    code, said, errors = run("tune", checkpoint, "--facts", path, "--minutes", "0.0001", "--method", "rome", *QUICK)
    assert code == 1
    assert "20 facts" in said
    assert "--minutes" in errors
