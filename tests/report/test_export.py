"""The tables that people paste."""

from __future__ import annotations

import csv
import json
import re

import pytest
from support.comparisons import COMPARISON, PLAIN, ROWS, UNDER_WAY, comparison, row

from alphaedit_plugin.comparison.results import Comparison
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.report.export import export


@pytest.fixture
def exported(tmp_path):
    export([COMPARISON], tmp_path / "run")
    return {path.suffix: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_markdown_has_the_last_rows_with_the_best_of_each_column_in_bold_and_half_intervals(exported):
    header, _, before, memit, alphaedit, *_ = cells(exported[".md"])
    assert header == [
        "variant (20 edits)",
        "efficacy %",
        "specificity %",
        "perplexity",
        "drift %",
        "leakage %",
        "seconds",
    ]
    assert before == ["`before`", "10.0 ± 1.5", "80.0", "55.50", "–", "–", "–"]
    assert memit[:4] == ["`memit@mom2_update_weight=0+P`", "90.0 ± 1.5", "80.0", "60.00"]
    assert alphaedit[:4] == [
        "`alphaedit`",
        "**95.0** ± 1.5",
        "80.0",
        "55.50",
    ]  # of these nothing says how sure they are
    assert alphaedit[4:] == ["**5.00**", "**0.20**", "100"]


def test_a_run_under_way_is_shown_at_one_checkpoint_with_its_edits_and_names_the_unfinished(tmp_path):
    export([UNDER_WAY], tmp_path)
    markdown, latex = ((tmp_path / f"summary.{end}").read_text(encoding="utf-8") for end in ("md", "tex"))
    header, _, *rows = [line for line in cells(markdown) if len(line) > 1]
    assert header[0] == "variant (2 edits)"
    assert [name for name, *_ in rows] == ["`before`", "`memit`", "`memit+P`"]
    assert [each[1] for each in rows] == ["10.0 ± 1.5", "50.0 ± 1.5", "60.0 ± 1.5"]  # not memit's 95 after 4
    told = "Not finished: memit+P (2 of 4 edits), alphaedit (no edits yet)."
    assert told in markdown
    assert "variant (2 edits)" in latex
    assert f"% {told}" in latex.splitlines()
    assert "95.0" not in markdown + latex
    assert "no winner is named with fewer than 20 facts" in markdown


def test_a_variant_that_was_measured_elsewhere_only_is_named(tmp_path):
    """Two variants after 2 edits, and one that was asked for later, after 4 at once."""
    rows = [ROWS[0], row("memit", 0.5, edits=2), row("rect", 0.4, edits=2), row("rome", 0.9, edits=4)]
    export([Comparison(rows, {"edits": 4, "batch_size": 2, "variants": ["memit", "rect", "rome"]})], tmp_path)
    assert "Not measured after 2 edits: rome." in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_finished_run_names_nothing_unfinished(exported):
    assert "Not finished" not in exported[".md"] + exported[".tex"]


def test_latex_escapes_what_latex_would_read(exported):
    text = exported[".tex"]
    assert r"\texttt{memit@mom2\_update\_weight=0+P}" in text
    assert r"\textbf{95.0} $\pm$ 1.5" in text
    assert r"efficacy \%" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert len({line.count(" & ") for line in rows}) == 1
    assert "–" not in text


def test_csv_has_every_checkpoint_with_plain_numbers_and_the_ends_of_intervals(exported):
    before, first, _, alphaedit = csv.DictReader(exported[".csv"].splitlines())
    assert [(each["variant"], each["edits"]) for each in (before, first, alphaedit)] == [
        ("before", "0"),
        ("memit@mom2_update_weight=0+P", "10"),
        ("alphaedit", "20"),
    ]
    assert float(alphaedit["efficacy %"]) == pytest.approx(95)
    assert (float(alphaedit["efficacy % from"]), float(alphaedit["efficacy % to"])) == pytest.approx((93, 96))
    assert before["drift %"] == before["seconds"] == ""
    assert "specificity % from" not in alphaedit


def test_json_says_what_the_rows_say(exported):
    (written,) = json.loads(exported[".json"])["comparisons"]
    assert written["settings"] == PLAIN
    for each, found in zip(ROWS, written["rows"], strict=True):
        assert found["estimates"] == {name: vars(estimate) for name, estimate in each.estimates.items()}
        assert (found["variant"], found["edits"], found["mean_leakage"]) == (
            each.variant,
            each.edits,
            each.mean_leakage,
        )


def test_what_is_not_finite_is_null_in_json_and_named_elsewhere(tmp_path):
    export([Comparison([row("memit", 0.5, perplexity=float("inf"))], PLAIN)], tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["comparisons"][0]["rows"][0]["estimates"]["perplexity"]["value"] is None
    assert cells((tmp_path / "summary.md").read_text(encoding="utf-8"))[2][3] == "inf"


def test_several_comparisons_have_a_table_each_and_one_csv(tmp_path):
    cells_of = [comparison(("memit", "memit+P"), (100,), ("facts",), facts=9, seed=seed) for seed in (1, 2)]
    export(cells_of, tmp_path)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text.count("| variant") == 2
    assert text.index("seed 1") < text.index("seed 2")
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert [each["seed"] for each in rows] == ["1"] * 3 + ["2"] * 3
    assert (tmp_path / "summary.tex").read_text(encoding="utf-8").count(r"\begin{tabular}") == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompareError, match=re.escape(str(tmp_path / "file"))):
        export([COMPARISON], tmp_path / "file")
