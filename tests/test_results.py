"""The tables of the pages are those of the committed results: no number is typed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from support.comparisons import comparison
from support.paths import ROOT

from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.report.export import export
from alphaedit_plugin.report.words import answer


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_what_its_results_say(results, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert results.written(text) == text


def test_every_result_stands_in_a_page():
    pages = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"<!-- results: (\S+)", pages))
    kept = ROOT / "docs" / "results"
    assert {path.stem for path in kept.glob("*.json")} <= named
    assert {path.name for path in kept.glob("*.png")} == set(re.findall(r"\(results/([^)]+\.png)\)", pages))


def test_a_run_becomes_a_table(results, tmp_path: Path, monkeypatch):
    made = comparison(("memit", "memit+P"), (100, 200), facts=24, date="2026-01-01")
    monkeypatch.setattr(results, "read_run", lambda run: [made])
    runs, into = tmp_path / "runs", tmp_path / "results"
    export([made], runs / "one")
    into.mkdir()
    assert results.collect(runs, into) == ["one"]
    (back,) = results.read(into / "one.json")
    for row, of in zip(back.rows, made.rows, strict=True):
        assert (row.variant, row.edits) == (of.variant, of.edits)
        assert row.metrics == pytest.approx(
            {name: value for name, value in of.metrics.items() if name in row.metrics}, rel=1e-4
        )
        assert row.mean_drift == pytest.approx(of.mean_drift, rel=1e-4)
    page = "before\n<!-- results: one efficacy -->\nstale\n<!-- end -->\n<!-- results: none -->\n<!-- end -->\nafter\n"
    text = results.written(page, into)
    assert results.written(text, into) == text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert f"{100 * made.of('memit+P')[-1].metrics['efficacy']:.1f}" in text
    assert "Not run yet" in text
    assert text.count("`memit") == 2
    earlier = results.written("<!-- results: one at=100 efficacy -->\n<!-- end -->", into)
    assert f"{100 * made.of('memit')[0].metrics['efficacy']:.1f}" in earlier
    assert answer(made) in text
    every = results.written("<!-- results: one every efficacy -->\n<!-- end -->", into)
    assert every.count("`memit") == 4


def test_efficacy_by_relation_is_a_table_of_its_own(results, tmp_path: Path, monkeypatch):
    made = comparison(("memit", "alphaedit"), (100,), facts=24, date="2026-01-01")
    relations = [record["relation"] for record in made.of("memit")[0].measured["facts"].records]
    monkeypatch.setattr(results, "read_run", lambda run: [made])
    export([made], tmp_path / "runs" / "one")
    results.collect(tmp_path / "runs", tmp_path)
    text = results.written("<!-- results: one relations -->\n<!-- end -->", tmp_path)
    for relation in set(relations):
        assert re.search(rf"\| {relation} +\| +{relations.count(relation)} \|", text)


def test_a_column_that_no_run_has_is_named_and_one_that_is_still_to_be_measured_is_not(results, tmp_path, monkeypatch):
    made = comparison(("memit",), (100,), ("facts",), facts=24, date="2026-01-01")
    monkeypatch.setattr(results, "read_run", lambda run: [made])
    export([made], tmp_path / "runs" / "one")
    results.collect(tmp_path / "runs", tmp_path)
    with pytest.raises(CompareError, match="eficacy"):
        results.written("<!-- results: one eficacy exact -->\n<!-- end -->", tmp_path)
    for later in ("multihop hops", "gains", "state_norm"):
        assert "Not run yet" in results.written(f"<!-- results: one {later} -->\n<!-- end -->", tmp_path)


def test_what_lies_between_frontiers_is_a_table_of_its_own(results, tmp_path: Path, monkeypatch):
    names = [f"memit@mom2_update_weight={each}{end}" for each in (0, 10) for end in ("", "+P")]
    made = comparison(names, (60,), facts=60, study="frontier", date="2026-01-01")
    monkeypatch.setattr(results, "read_run", lambda run: [made])
    export([made], tmp_path / "runs" / "one")
    (tmp_path / "results").mkdir()
    results.collect(tmp_path / "runs", tmp_path / "results")
    text = results.written("<!-- results: one gains -->\n<!-- end -->", tmp_path / "results")
    assert "| memit+P against memit |" in text
    assert "The frontier of memit+P lies above that of memit" in text


@pytest.mark.parametrize(
    "first", ["alphaedit compare m --methods memit --quiet", "alphaedit compare m --methods memit"]
)
def test_every_method_stands_in_one_of_the_commands(results, first):
    others = [["alphaedit", "compare", "m", "--methods", "rome+P", "--answers", "50"]]
    shown = results._with_all([first.split(), *others], ["alphaedit", "memit", "rome+P"])
    assert shown == [first.replace("memit", "alphaedit memit").split(), *others]
    assert results._with_all([first.split(), first.split()], ["memit"]) == [first.split()] * 2
    study = ["alphaedit", "compare", "m", "--study", "frontier", "--methods", "memit"]
    assert results._with_all([study], ["memit", "memit@L2=1"]) == [study]


def test_the_last_records_of_a_file(results, tmp_path: Path):
    source, target = tmp_path / "all.json", tmp_path / "facts" / "last.json"
    source.write_text(json.dumps([{"number": number} for number in range(5)]))
    results.last(2, source, target)
    assert json.loads(target.read_text()) == [{"number": 3}, {"number": 4}]


def test_a_text_is_split_into_what_is_preserved_and_what_is_held_out(results, tmp_path: Path):
    source, corpus, held_out = tmp_path / "all.txt", tmp_path / "facts" / "corpus.txt", tmp_path / "held.txt"
    source.write_text("é" * 85_000 + "o" * 15_000)
    results.split_text(source, corpus, held_out)
    assert (corpus.read_text(), held_out.read_text()) == ("é" * 85_000, "o" * 15_000)
