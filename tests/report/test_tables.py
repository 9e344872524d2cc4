"""The tables that people paste."""

from __future__ import annotations

import csv
import json
import re

import pytest
from rich.console import Console
from support.comparisons import comparison

from alphaedit_plugin.comparison.results import Comparison, Row
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.evaluation.measure import Estimate, Measured
from alphaedit_plugin.evaluation.metrics import METRICS, metric
from alphaedit_plugin.report.export import export
from alphaedit_plugin.report.tables import session_table, table
from alphaedit_plugin.session.session import Report

PLAIN = {"edits": 20, "batch_size": 10}


def row(variant: str, efficacy: float, *, edits: int = 20, drift: float = 0.05, **metrics: float) -> Row:
    estimates = {"efficacy": Estimate(efficacy, efficacy - 0.02, efficacy + 0.01), "specificity": Estimate(0.8)}
    estimates |= {name: Estimate(value) for name, value in metrics.items()}
    by_measure: dict[str, dict[str, Estimate]] = {}
    for name, estimate in estimates.items():
        by_measure.setdefault(metric(name).group, {})[name] = estimate
    return Row(
        variant,
        edits,
        {name: Measured(found) for name, found in by_measure.items()},
        100.0,
        {4: drift, 5: drift} if drift else {},
        {4: 0.001, 5: 0.003} if drift else {},
    )


ROWS = [
    row("before", 0.1, edits=0, drift=0.0, perplexity=55.5),
    row("memit@mom2_update_weight=0+P", 0.5, edits=10, perplexity=57.0),
    row("memit@mom2_update_weight=0+P", 0.9, perplexity=60.0),
    row("alphaedit", 0.95, perplexity=55.5),
]
COMPARISON = Comparison(ROWS, PLAIN)


@pytest.fixture
def exported(tmp_path):
    export([COMPARISON], tmp_path / "run")
    return {path.suffix: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_markdown_has_the_last_rows_with_the_best_of_each_column_in_bold_and_half_intervals(exported):
    header, _, before, memit, alphaedit = cells(exported[".md"])
    assert header == ["variant", "efficacy %", "specificity %", "perplexity", "drift %", "leakage %", "seconds"]
    assert before == ["`before`", "10.0 ± 1.5", "80.0", "55.50", "–", "–", "–"]
    assert memit[:4] == ["`memit@mom2_update_weight=0+P`", "90.0 ± 1.5", "**80.0**", "60.00"]
    assert alphaedit[:4] == ["`alphaedit`", "**95.0** ± 1.5", "**80.0**", "**55.50**"]
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


def shown(of: Comparison, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(of))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_shows_every_number_whole_in_every_group(width):
    names = ("memit@mom2_update_weight=0+P", "rect", "rect+P", "alphaedit")
    of = comparison(names, (100, 500), facts=60)
    text = shown(of, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    numbers = re.findall(r"\d+\.\d+", text)
    for each in of.final:
        for name, estimate in each.estimates.items():
            assert METRICS[name].form.format(METRICS[name].shown(estimate.value)) in numbers
        if each.drift:
            assert {f"{100 * each.mean_drift:.2f}", f"{100 * each.mean_leakage:.2f}"} <= set(numbers)
    assert text.count("alphaedit") >= 4  # a table each for facts, texts, tasks, shift


def test_the_terminals_table_has_before_first_and_signs_that_need_no_colour():
    text = shown(COMPARISON, 100)
    lines = [line.split() for line in text.splitlines()]
    before, *_, alphaedit = [line for line in lines if line and line[0] in ("before", "alphaedit")]
    assert before[1:] == ["10.0", "80.0", "55.50", "–", "–", "–"]
    assert alphaedit[1:] == ["95.0▲", "80.0", "55.50", "5.00", "0.20", "100"]
    assert "60.00▲" in text


def rendered(of: Comparison) -> list[tuple[str, str, bool]]:
    """(text, colour, bold) of each piece."""
    console = Console(width=100, force_terminal=True, color_system="standard", file=open("/dev/null", "w"))  # noqa: SIM115
    pieces = [(piece.text.strip(), piece.style) for piece in console.render(table(of))]
    return [(text, style.color.name if style.color else "", bool(style.bold)) for text, style in pieces if style]


@pytest.mark.parametrize(
    ("name", "then", "now", "sign", "colour"),
    [
        ("generalization", 0.4, 0.5, "▲", "green"),
        ("generalization", 0.5, 0.4, "▼", "red"),
        ("perplexity", 50.0, 60.0, "▲", "red"),
        ("perplexity", 60.0, 50.0, "▼", "green"),
    ],
)
def test_a_change_is_green_when_it_is_for_the_better(name, then, now, sign, colour):
    of = Comparison([row("before", 0.1, edits=0, drift=0, **{name: then}), row("rome", 0.1, **{name: now})], PLAIN)
    assert [(text, found) for text, found, _ in rendered(of) if text in ("▲", "▼")] == [(sign, colour)]


def test_the_best_of_the_edited_ones_is_bold():
    bold = {text for text, _, is_bold in rendered(COMPARISON) if is_bold}
    assert {"95.0", "55.50"} <= bold
    assert not {"90.0", "60.00", "10.0"} & bold


def test_a_variant_that_is_not_as_far_says_how_far():
    text = shown(Comparison([*ROWS[:2], ROWS[3]], PLAIN), 120)
    assert "(10)" in text
    assert "alphaedit (" not in text


def test_a_session_table_has_a_row_a_layer_and_no_column_without_numbers():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(session_table(Report("memit", 20, 2, {4: 0.05, 5: 0.1}, {4: 0.001, 5: 0.002}, {})))
    text = console.export_text()
    assert re.search(r"4\s+5\s+0\.1\s*\n", text)
    assert "outside" not in text
