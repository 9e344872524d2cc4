"""`alphaedit edit MODEL.gguf --gguf OUT.gguf`, and what becomes of OUT.gguf later."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.command_line import SMALL, assert_one_line
from support.gguf_files import contents_of, write_model

from alphaedit_plugin.model import loading

pytest.importorskip("gguf", reason="the package gguf makes the files, and is the oracle")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path, tokenizer) -> Path:
    write_model(tmp_path / "model.gguf", tokenizer, down="F16")
    return tmp_path / "model.gguf"


def changed(source: Path, out: Path) -> dict[str, str]:
    """name → type of the tensors that differ."""
    (metadata, before), (metadata_now, after) = contents_of(source), contents_of(out)
    assert metadata_now == metadata
    assert list(after) == list(before)
    return {name: found[0] for name, found in after.items() if found != before[name]}


EDITED = [f"blk.{layer}.ffn_down.weight" for layer in (1, 2)]


def test_it_is_written_by_edit_and_written_again_by_undo_and_by_later_edits(run, source, facts, tmp_path):
    out = tmp_path / "deep" / "out.gguf"
    edit = ("edit", source, facts, "--out", "edits", "--batch", 2, "--allow-failures", *SMALL)
    code, output, _ = run(*edit, "--gguf", out)
    assert code == 0
    assert changed(source, out) == dict.fromkeys(EDITED, "F16")
    assert "2 tensors replaced (F16" in output.replace("\n", " ")
    assert not (tmp_path / "edits" / "model").exists()
    edited = out.read_bytes()

    assert run("undo", "edits", "--quiet")[0] == 0
    undone = out.read_bytes()
    assert undone != edited
    assert run("undo", "edits", "--quiet")[0] == 0
    assert out.read_bytes() == source.read_bytes()
    assert run(*edit)[0] == 0
    assert out.read_bytes() == edited

    out.unlink()
    assert run("undo", "edits", "--quiet")[0] == 0
    assert not out.exists()


def test_the_type_is_the_one_asked_for_also_when_it_is_written_again(run, source, facts, tmp_path):
    edit = ("edit", source, facts, "--out", "edits", "--batch", 2, "--allow-failures", *SMALL)
    assert run(*edit, "--gguf", "out.gguf", "--gguf-type", "q8_0")[0] == 0
    assert changed(source, tmp_path / "out.gguf") == dict.fromkeys(EDITED, "Q8_0")
    assert run("undo", "edits", "--quiet")[0] == 0
    assert changed(source, tmp_path / "out.gguf") == dict.fromkeys(EDITED, "Q8_0")


REFUSED = {
    "no gguf": (("CHECKPOINT", "--gguf", "out.gguf"), "does not come from a GGUF file"),
    "unknown type": (("SOURCE", "--gguf", "out.gguf", "--gguf-type", "Q4_K"), "choose one of F32"),
    "type alone": (("SOURCE", "--gguf-type", "F16"), "give --gguf FILE too"),
    "no place": (("SOURCE", "--gguf", "model.gguf/out.gguf"), "model.gguf"),
    "a folder": (("SOURCE", "--gguf", "folder"), "folder"),
    "itself": (("SOURCE", "--gguf", "model.gguf"), "write to another place"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(
    words, said, run, source, checkpoint, facts, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded a model"))
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    named = {"CHECKPOINT": checkpoint, "SOURCE": source}
    model, *options = (named.get(word, word) for word in words)
    assert_one_line(run("edit", model, facts, "--out", "edits", *options, *SMALL), said)
    assert source.read_bytes() == before
    assert not (tmp_path / "edits").exists()


def test_a_model_that_has_been_moved_is_named(run, source, facts, tmp_path):
    words = ("edit", source, facts, "--out", "edits", "--allow-failures", *SMALL, "--gguf", "out.gguf")
    assert run(*words)[0] == 0
    before = (tmp_path / "out.gguf").read_bytes()
    shutil.move(source, tmp_path / "elsewhere.gguf")
    assert_one_line(run("undo", "edits"), "model.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == before
