"""A run written as one YAML file, and the one that each run leaves in its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from support.command_line import SMALL, assert_one_line

from alphaedit_plugin.cli.app import app
from alphaedit_plugin.cli.compare import Compared, Edited, Measured, Running
from alphaedit_plugin.cli.options import Contender, Loading, Place, Preparing
from alphaedit_plugin.cli.run_file import write_run_file
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

GIVEN = (
    Compared((Contender("memit"), Contender("rome@v_lr=0.1+P")), "L2", (Place("a/b"), Place("c")), Path("/hparams")),
    Edited((Place("zsre"), Place("#1: é")), 30, 5, 10, (0, -3), True, "once", True, True),
    Measured(
        11,
        True,
        Path("/held.txt"),
        3,
        Path("/s.json"),
        Path("/t"),
        7,
        ("boolq", "null"),
        Path("/p.json"),
        9,
        answers=5,
        judge="http://127.0.0.1:8000/v1",
        judge_model="m",
    ),
    Preparing((1, 2, 5), Place("wikitext"), Path("/npz"), 1000, 2e-5, 0.1, 12.0, Path("/h.yaml")),
    Loading("cuda:1", True, Path("/cache"), "bfloat16"),
    Running(Path("/out"), 2, "submitit", ("partition=a100", "timeout_min=9"), True, True),
)
NAMES = ("compared", "edited", "measured", "preparing", "loading", "running")


def read(*words: object) -> dict:
    _, bound, _ = app.parse_args(["compare", *map(str, words)], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments


def test_every_option_that_is_not_its_default_comes_back_from_the_file(tmp_path):
    for group in GIVEN:
        for field in fields(group):
            assert getattr(group, field.name) != field.default, "or nothing is shown of it"
    write_run_file(tmp_path / "run.yaml", Place("gpt2-xl"), *GIVEN)
    found = read(tmp_path / "run.yaml")
    assert found["model"] == "gpt2-xl"
    assert tuple(found[name] for name in NAMES) == GIVEN
    assert type(found["compared"].methods[0]) is Contender
    assert type(found["edited"].data[0]) is Place


def test_what_is_a_default_is_left_out(tmp_path):
    write_run_file(tmp_path / "run.yaml", Place("m"), *(type(group)() for group in GIVEN), replace(Edited(), batch=3))
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {"model": "m", "batch": 3}


def test_paths_are_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("facts.json", "editor.py", "smollm2-135m", "memit"):
        Path(name).touch()
    names = ("memit", "easyedit:FT", "editor.py:edit@steps=3+P", "package.module:edit")
    write_run_file(
        tmp_path / "run.yaml",
        Place("smollm2-135m"),
        Compared(methods=tuple(map(Contender, names)), models=(Place("gpt2-xl"),)),
        Edited(data=(Place("facts.json"), Place("facts.json:extracted"), Place("zsre"))),
        Running(out=Path("results")),
    )
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {
        "model": "smollm2-135m",
        "methods": ["memit", "easyedit:FT", f"{tmp_path}/editor.py:edit@steps=3+P", "package.module:edit"],
        "models": ["gpt2-xl"],
        "data": [f"{tmp_path}/facts.json", f"{tmp_path}/facts.json:extracted", "zsre"],
        "out": f"{tmp_path}/results",
    }


def test_names_may_have_hyphens_or_underscores_and_the_alias(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("model: m\nskip-bad: true\ntask_limit: 3\nfacts: one.json\nlayers: 4-6\nthreshold: 2e-2\nout:\n")
    found = read(path)
    assert found["edited"] == Edited(data=("one.json",), skip_bad=True)
    assert found["measured"].task_limit == 3
    assert found["preparing"] == Preparing(layers=(4, 5, 6), threshold=0.02)
    assert found["running"] == Running()


def test_the_command_line_goes_before_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nmethods: [memit, rome]\nedits: 3\nquiet: true\nlayers: [1, 2]\n")
    found = read(path, "--methods", "alphaedit", "--edits", 4, "--quiet=false", "--layers", "7")
    assert found["model"] == "m"
    assert found["compared"].methods == ("alphaedit",)
    assert found["edited"].edits == 4
    assert not found["running"].quiet
    assert found["preparing"].layers == (7,)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("edits: 0", ["edits", "0"]),
        ("edits: many", ["edits", "many", "int"]),
        ("edits: [1, 2]", ["edits", "one"]),
        ("edits: {a: 1}", ["edits"]),
        ("edts: 3", ["'edts'", "did you mean 'edits'?"]),
        ("worker: true", ["'worker'"]),
        ("1: 2", ["'1'"]),
        ("methods: [memit, memmit]", ["methods", "no method memmit; did you mean memit?"]),
        ("methods: []", ["methods"]),
        ("layers: 8-4", ["layers", "8-4"]),
        ("layers: [4, 4]", ["layers", "twice"]),
        ("skip_bad: perhaps", ["skip_bad", "perhaps", "bool"]),
        ("study: L3", ["study", "L3", "L2"]),
        ("edits: [1", []),
        ("- edits", ["methods: [memit]"]),
        ("", []),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_the_file_and_the_key(content, parts, run):
    Path("mine.yaml").write_text(content)
    assert_one_line(run("compare", "mine.yaml"), "mine.yaml", *parts)


def test_a_file_that_is_not_there_is_one_line(run):
    assert_one_line(run("compare", "absent.yml", "--edits", 3), "absent.yml")


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_file_of_a_run_repeats_it_from_anywhere_and_finds_nothing_to_edit(
    jobs, run, checkpoint, facts, text, tmp_path, monkeypatch
):
    shutil.copytree(checkpoint, "own-model")
    code, _, errors = run(
        "compare", "own-model", "--facts", Path(facts).name, "--edits", 2, "--batch", 1, "--held-out", Path(text).name,
        "--methods", "memit+P", "memit", "--seeds", 3, *SMALL, "--jobs", jobs, "--cache", "kept", "--out", "out",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    written = json.loads(Path("out/summary.json").read_text())
    before = {path: path.read_bytes() for path in tmp_path.glob("out/*/*/*/*.json")}
    assert before

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was edited before")

    monkeypatch.setattr(Session, "edit", never)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, output, errors = run("compare", tmp_path / "out" / "run.yaml", "--jobs", 1)
    assert (code, errors) == (0, "")
    assert "memit+P" in output
    assert not list(Path().iterdir())
    again = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows, rows_again = ([each["rows"] for each in summary["comparisons"]] for summary in (written, again))
    assert rows == rows_again
    assert {path: path.read_bytes() for path in tmp_path.glob("out/*/*/*/*.json")} == before


def test_a_run_that_was_refused_leaves_no_folder(run, checkpoint, text):
    assert_one_line(run("compare", checkpoint, "--facts", "absent.json", "--out", "out"), "absent.json")
    assert not Path("out").exists()
