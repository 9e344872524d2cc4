"""Where results go: a place that cannot be written is known before any work, and a disk that fills up is one error."""

from __future__ import annotations

import json
import shutil

import pytest
from support.command_line import FACTS, SMALL, assert_one_line
from support.mishaps import no_file_above
from support.paths import SAVED

from alphaedit_plugin.model import loading

pytestmark = pytest.mark.slow

COMMANDS = {
    "compare": ("compare", "MODEL", "--out", "PLACE"),
    "edit": ("edit", "MODEL", "FACTS", "--out", "PLACE"),
    "apply": ("apply", "MODEL", "PATCH", "--out", "PLACE"),
    "undo": ("undo", "PLACE"),
    "tune": ("tune", "MODEL", "--out", "PLACE/a.yaml"),
    "trace": ("trace", "MODEL", "--plot", "PLACE/a.png"),
    "inspect": ("inspect", "MODEL", "--plot", "PLACE/a.png"),
    "prepare": ("prepare", "MODEL", "--out", "PLACE/a.safetensors"),
    "prepare npz": ("prepare", "MODEL", "--npz", "PLACE"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_place_below_a_file_is_named_before_anything_is_loaded(words, run, facts, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("loaded a model"))
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "below"
    named = {"MODEL": "any", "FACTS": facts, "PATCH": str(tmp_path / "patch")}
    assert_one_line(run(*(named.get(word, word.replace("PLACE", str(place))) for word in words)), str(place))
    assert (tmp_path / "file").read_text() == "in the way"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "file"]


@pytest.mark.parametrize("size", [0, 300, 3_000, 10_000, 40_000, 120_000])
def test_a_model_that_does_not_fit_on_the_disk_is_one_error_and_the_old_one_stays(size, run, tmp_path):
    patch, old = SAVED / "edited" / "patch.safetensors", tmp_path / "old"
    shutil.copytree(SAVED / "model", old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    with no_file_above(size):
        result = run("apply", SAVED / "model", patch, "--out", old)
    if result[0]:
        assert_one_line(result, str(old))
        assert {path.name: path.read_bytes() for path in old.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
    else:
        assert size > 10_000
        assert {path.name for path in old.iterdir()} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("size", [0, 300, 3_000, 30_000])
def test_a_report_that_does_not_fit_on_the_disk_is_one_error(size, run, tmp_path):
    shutil.copytree(SAVED / "run", tmp_path / "run")
    with no_file_above(size):
        result = run("report", tmp_path / "run")
    assert_one_line(result, str(tmp_path / "run"))
    assert run("report", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("exception", [Exception("No space left on device (os error 28)"), OSError(28, "No space")])
def test_what_tokenizers_makes_of_a_full_disk_is_one_error(exception, run, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(exception))
    patch = SAVED / "edited" / "patch.safetensors"
    result = run("apply", SAVED / "model", patch, "--out", tmp_path / "new")
    assert_one_line(result, "No space", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subject", ["\ud800", "x\udfff", "\x1b[2J"], ids=ascii)
@pytest.mark.parametrize("command", ["edit", "compare"])
def test_half_a_character_in_a_fact_is_one_error_that_names_the_record(
    subject, command, run, checkpoint, text, tmp_path
):
    record = json.loads(json.dumps(FACTS[0]))
    record["requested_rewrite"]["subject"] = subject
    (tmp_path / "f.json").write_text(json.dumps([FACTS[1], record]))
    options = ("--out", tmp_path / "out", "--corpus", text, *SMALL)
    if command == "edit":
        result = run("edit", checkpoint, tmp_path / "f.json", "--allow-failures", *options)
    else:
        result = run("compare", checkpoint, "--data", tmp_path / "f.json", "--methods", "memit", *options)
    if subject.isascii():
        assert result[0] == 0
    else:
        assert_one_line(result, "f.json, record 1", "half a character")
        assert not (tmp_path / "out").exists()
