"""The tables that people paste."""

from __future__ import annotations

import csv
import math

import pytest
from rich.console import Console

from alphaedit_plugin.compare import Comparison, Row
from alphaedit_plugin.report import export, table


def row(variant: str, efficacy: float, *, drift: float = 0.05, **metrics: float) -> Row:
    return Row(
        variant,
        {"efficacy": efficacy, "specificity": 0.8, **metrics},
        {"efficacy": (efficacy - 0.02, efficacy + 0.01)},
        {name: [efficacy] for name in ("efficacy", "specificity", *metrics)},
        55.5,
        100.0,
        {4: drift, 5: drift} if drift else {},
        {4: 0.001, 5: 0.003} if drift else {},
    )


ROWS = [row("before", 0.1, drift=0.0), row("memit@mom2_update_weight=0+P", 0.9), row("alphaedit", 0.95)]
COMPARISON = Comparison(ROWS, {"edits": 20, "batch_size": 10})


@pytest.fixture
def exported(tmp_path):
    export(COMPARISON, tmp_path / "run")
    return {path.suffix: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()}


def test_markdown_has_the_best_of_each_column_in_bold_and_half_intervals(exported):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in exported[".md"].splitlines()]
    header, _, before, memit, alphaedit = lines
    assert header == ["variant", "efficacy %", "specificity %", "perplexity", "drift %", "leakage %", "seconds"]
    assert before == ["`before`", "10.0 ± 1.5", "80.0", "55.50", "–", "–", "–"]
    assert memit[:3] == ["`memit@mom2_update_weight=0+P`", "90.0 ± 1.5", "**80.0**"]
    assert alphaedit[:2] == ["`alphaedit`", "**95.0** ± 1.5"]
    assert alphaedit[4:] == ["**5.00**", "**0.20**", "100"]


def test_latex_escapes_what_latex_would_read(exported):
    text = exported[".tex"]
    assert r"\texttt{memit@mom2\_update\_weight=0+P}" in text
    assert r"\textbf{95.0} $\pm$ 1.5" in text
    assert r"efficacy \%" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert len({line.count(" & ") for line in rows}) == 1
    assert "–" not in text


def test_csv_has_plain_numbers_and_the_ends_of_intervals(exported):
    before, memit, alphaedit = csv.DictReader(exported[".csv"].splitlines())
    assert [each["variant"] for each in (before, memit, alphaedit)] == [each.variant for each in ROWS]
    assert float(alphaedit["efficacy %"]) == pytest.approx(95)
    assert (float(alphaedit["efficacy % from"]), float(alphaedit["efficacy % to"])) == pytest.approx((93, 96))
    assert before["drift %"] == alphaedit["specificity % from"] == ""


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_shows_every_number_whole(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = [row("before", 0.1, drift=0.0, generalization=0.1, exact=0.0)]
    rows.append(row("memit@mom2_update_weight=0+P", 1.0, generalization=1.0, exact=1.0, portability=0.25))
    console.print(table(Comparison(rows, COMPARISON.settings)))
    text = console.export_text()
    assert "…" not in text
    assert text.count("100.0") == 3
    assert "25.0" in text


def test_a_row_reads_back_as_it_was_written():
    for each, written in zip(ROWS, COMPARISON.as_dict()["rows"], strict=True):
        assert Row.read(written) == each
        assert math.isclose(written["mean_leakage"], each.mean_leakage)
