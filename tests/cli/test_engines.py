"""The engines of `alphaedit compare`: whoever works and whatever dies, results are those of a plain run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.command_line import SMALL, assert_one_line

pytestmark = pytest.mark.slow

EDITOR = """\
import os
from pathlib import Path

HERE = Path(__file__).parent


def told(model, tokenizer, requests, push=0.01):
    with (HERE / "told.txt").open("a") as file:
        file.write(f"{push} {requests[0].subject}\\n")
    model.model.layers[1].mlp.down_proj.weight.data.add_(push)


def dying(model, tokenizer, requests):
    \"\"\"The first that gets to the second fact is killed, with all that it did not write down.\"\"\"
    if requests[0].subject == "The old village" and not (HERE / "dead").exists():
        (HERE / "dead").touch()
        os.kill(os.getpid(), 9)
    model.model.layers[2].mlp.down_proj.weight.data.add_(0.01)
"""


@pytest.fixture
def words(checkpoint, facts, text, tmp_path) -> list[str]:
    (tmp_path / "editor.py").write_text(EDITOR)
    given = ("compare", checkpoint, "--facts", facts, "--edits", 3, "--batch", 1, "--every", 1, "--held-out", text)
    return [str(word) for word in (*given, *SMALL, "--cache", tmp_path / "cache")]


def rows(out: Path) -> list[dict[str, Any]]:
    (written,) = json.loads((out / "summary.json").read_text())["comparisons"]
    return [{**row, "seconds": 0} for row in written["rows"]]


def measured(out: Path) -> dict[Path, bytes]:
    """All files that say what was measured: of the rest, seconds and dates are a part."""
    found = [path for path in out.glob("*/*/*/*") if path.suffix in (".json", ".jsonl") and path.stem != "weights"]
    return {path.relative_to(out): path.read_bytes() for path in found}


def test_a_run_of_jobs_of_which_one_is_killed_gives_what_a_plain_run_gives(run, words, tmp_path, caplog):
    methods = ["--methods", "memit+P", "editor.py:dying", "alphaedit"]
    (tmp_path / "dead").touch()
    assert run(*words, *methods, "--out", "plain")[0] == 0
    (tmp_path / "dead").unlink()
    code, output, errors = run(*words, "--engine", "submitit-local", "--jobs", 2, *methods, "--out", "jobs")
    assert code == 0, errors
    assert (tmp_path / "dead").exists()
    assert "died" in caplog.text
    assert rows(tmp_path / "plain") == rows(tmp_path / "jobs")
    assert len(rows(tmp_path / "jobs")) == 1 + 3 * 3
    assert measured(tmp_path / "plain") == measured(tmp_path / "jobs") != {}
    assert "alphaedit" in output
    assert (tmp_path / "jobs" / "report.html").exists()
    (written,) = json.loads((tmp_path / "jobs" / "summary.json").read_text())["comparisons"]
    assert "--worker" not in written["settings"]["command"]


def test_two_that_send_jobs_into_one_folder_edit_nothing_twice(words, tmp_path):
    methods = [f"editor.py:told@push={push}" for push in (0.01, 0.02, 0.03, 0.04)]
    command = [sys.executable, "-m", "alphaedit_plugin", *words, "--engine", "submitit-local", "--methods", *methods]
    both = [
        subprocess.Popen(
            [*command, "--out", "out"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert len(rows(tmp_path / "out")) == 1 + 4 * 3
    told = Counter((tmp_path / "told.txt").read_text().splitlines())
    assert len(told) == 4 * 3
    assert set(told.values()) == {1}


def test_what_a_job_cannot_do_is_one_line(run, words, tmp_path):
    result = run(*words, "--dtype", "float7", "--methods", "memit", "--engine", "submitit-local", "--out", "out")
    assert_one_line(result, "float7", str(tmp_path / "out" / "jobs"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--engine", "pbs"], ["--engine", "submitit"]),
        (["--engine", "submitit-local", "--slurm", "partition"], ["partition", "KEY=VALUE"]),
        (["--engine", "submitit-local", "--slurm", "partitoin=a100"], ["partitoin"]),
        (["--slurm", "partition=a100"], ["--slurm", "--engine"]),
        (["--tflops", "20"], ["--tflops", "--plan"]),
        (["--engine", "submitit-local", "--methods", "memmit"], ["memmit"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_is_one_line_and_leaves_no_folder(arguments, parts, run, words, tmp_path):
    assert_one_line(run(*words, *arguments, "--out", "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_a_plan_runs_nothing_and_says_what_a_run_takes(run, words, tmp_path):
    methods = ["--methods", "memit+P", "alphaedit", "editor.py:told"]
    code, output, _ = run(*words, *methods, "--plan", "--tflops", 2, 0.5, "--jobs", 3, "--out", "out")
    assert code == 0
    for part in ("3 trajectories", "9 batches", "10 measurements", "d_in 24", "with 3 workers", "weights", "cache: P"):
        assert part in output
    assert "not counted: the edits of editor.py:told" in output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
    _, without, _ = run(*words, *methods, "--plan", "--out", "out")
    assert "estimate" not in without


def test_a_rate_must_be_above_zero(run, words):
    assert_one_line(run(*words, "--plan", "--tflops", 0), "--tflops", "above 0")
