"""Every example, run as a user would run it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.paths import IMPORTS, ROOT


def run(tmp_path, *command: str) -> str:
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTS}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(output: str) -> dict[str, list[float]]:
    """The table's rows by their name, numbers only; signs of change are taken off."""
    found = {}
    for line in output.splitlines():
        words = re.split(r"[│\s]+", line.strip("│ "))
        cells = [word.strip("▲▼") for word in itertools.takewhile(_is_cell, reversed(words))][::-1]
        name, numbers = " ".join(words[: len(words) - len(cells)]), [float(cell) for cell in cells if cell != "–"]
        if name and len(numbers) > 1:
            found.setdefault(name, numbers)
    return found


def _is_cell(word: str) -> bool:
    return re.fullmatch(r"–|[\d.]+[▲▼]?", word) is not None


@pytest.mark.user_cache
def test_an_editor_of_your_own(tmp_path):
    """Plain and projected, beside MEMIT and AlphaEdit, with a report."""
    found = rows(run(tmp_path, str(ROOT / "examples/custom_editor.py"), "--facts", "1"))
    assert list(found) == ["before", "memit", "alphaedit", "my_editor", "my_editor+P"]
    assert found.pop("before")[0] < 100
    assert {row[0] for row in found.values()} == {100}
    assert (tmp_path / "custom-editor" / "report.html").is_file()


@pytest.mark.user_cache
def test_fine_tuning_inside_a_guard(tmp_path):
    """A training loop as an editor: held to whatever, it learns the facts."""
    editor = str(ROOT / "examples/fine_tuning.py:edit")
    names = [f"{editor}{marks}" for marks in ("", "+revive+P", "+crisp")]
    corpus = ("--corpus", str(ROOT / "examples/heldout.txt"), "--tokens", "2000")
    found = rows(run(tmp_path, "-m", "alphaedit_plugin", "compare", "--methods", *names, "--edits", "2", *corpus))
    assert found.pop("before")[0] < 100
    assert len(found) == len(names)
    assert {row[0] for row in found.values()} == {100}


@pytest.mark.user_cache
def test_comparing_variants(tmp_path):
    output = run(tmp_path, str(ROOT / "examples/compare_variants.py"), "--facts", "1", "--methods", "memit+P")
    found = rows(output)
    assert list(found) == ["before", "memit+P"]
    assert found["memit+P"][0] > found["before"][0]


@pytest.mark.user_cache
def test_the_tour_runs_from_top_to_bottom(monkeypatch, tmp_path):
    """The notebook's cells in a kernel of their own; what they show is no part of the file."""
    nbformat = pytest.importorskip("nbformat", reason="a notebook is read by nbformat, of the extra `tests`")
    nbclient = pytest.importorskip("nbclient", reason="a notebook is run by nbclient, of the extra `tests`")
    pytest.importorskip("ipykernel", reason="a notebook's kernel is ipykernel, of the extra `tests`")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([IMPORTS, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tour = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    cells = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in cells for output in cell.outputs if output.output_type == "execute_result"]
    edited, asked, _, report, ledger, taken_back, end = (data["text/plain"] for data in shown)
    assert "5 of 5 facts written" in edited
    assert re.search(r"The capital of France is\s+Paris.*Lyon", asked)
    assert len(re.findall(r"^\s+[4-8]\s+\d", report, re.MULTILINE)) == 5
    assert "superseded by 6" in ledger
    assert re.search(r"The capital of France is\s+Paris.*Lyon", taken_back)
    assert end == "True"
    assert all("<pre" in data["text/html"] for data in shown[:-1])


@pytest.mark.easyedit
@pytest.mark.user_cache
def test_the_flag_in_easyedit(tmp_path):
    missing = [name for name in ("datasets", "higher") if find_spec(name) is None]
    if missing or (find_spec("easyeditor") is None and "EASYEDIT_HOME" not in os.environ):
        pytest.skip(f"needs EasyEdit and {', '.join(missing) or 'nothing else'}: see `make install`")
    script = (str(ROOT / "tests/support/run_example.py"), str(ROOT / "examples/easyedit_flag.py"))
    corpus = ("--corpus", str(ROOT / "examples/heldout.txt"))
    found = rows(run(tmp_path, *script, "--facts", "1", "--layers", "7", "8", *corpus))
    before, without, flagged = found.values()
    assert before[0] == 0
    assert without[0] == flagged[0] == 100
