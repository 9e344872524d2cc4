"""The tables in the terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.comparisons import COMPARISON, PLAIN, ROWS, UNDER_WAY, comparison, row

from alphaedit_plugin.comparison.results import Comparison
from alphaedit_plugin.evaluation.metrics import METRICS
from alphaedit_plugin.report.tables import table


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
    numbers = re.findall(r"-?\d+\.\d+", text)
    for each in of.final:
        for name, estimate in each.estimates.items():
            assert METRICS[name].form.format(METRICS[name].shown(estimate.value)) in numbers
        if each.drift:
            assert {f"{100 * each.mean_drift:.2f}", f"{100 * each.mean_leakage:.2f}"} <= set(numbers)
    assert text.count("alphaedit") >= 5  # a table each for facts, answers, texts, tasks, shift
    for heading in ("eff. forced", "eff. written", "gen. gap"):
        assert heading in text


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


def test_the_best_of_the_edited_ones_is_bold_where_it_is_apart_from_all():
    bold = {text for text, _, is_bold in rendered(COMPARISON) if is_bold}
    assert {"95.0", "0.20"} <= bold
    assert not {"90.0", "60.00", "55.50", "10.0"} & bold


def test_a_run_under_way_is_shown_at_the_last_checkpoint_of_all_and_names_the_unfinished():
    text = shown(UNDER_WAY, 120)
    assert "2 of 4 sequential edits" in text
    assert "Not finished: memit+P (2 of 4 edits), alphaedit (no edits yet)." in text
    assert "95.0" not in text
    assert not {text for text, _, bold in rendered(UNDER_WAY) if bold} & {"50.0", "60.0", "95.0"}  # of two facts


def test_a_variant_that_failed_is_not_waited_for_and_says_why():
    failed = {"rome": {"trajectory": "t", "why": "a weight is not finite"}}
    settings = {**PLAIN, "edits": 4, "trajectories": {"rome": "t"}, "failed": failed}
    rows = [row("rome", 0.2, edits=2), *(row("memit", 0.9, edits=edits) for edits in (2, 4))]
    of = Comparison([ROWS[0], *rows], settings)
    assert [(each.variant, each.edits) for each in of.final] == [("before", 0), ("memit", 4)]
    assert "Failed: rome (2 of 4 edits: a weight is not finite)." in shown(of, 120)
    again = Comparison(of.rows, {**settings, "trajectories": {"rome": "another"}})  # other settings, not tried yet
    assert again.failed == {}


@given(
    reached=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5), min_size=1),
    checkpoints=st.lists(st.integers(1, 99), min_size=5, max_size=5, unique=True).map(sorted),
)
def test_a_table_is_the_last_checkpoint_that_all_who_began_have_reached(reached, checkpoints):
    rows = [row(name, 0.5, edits=edits) for name, count in reached.items() for edits in checkpoints[:count]]
    of = Comparison([ROWS[0], *rows], {**PLAIN, "edits": checkpoints[-1], "variants": list(reached)})
    assert of.checkpoint == checkpoints[min(reached.values()) - 1]
    assert [each.variant for each in of.final] == ["before", *reached]
    assert {each.edits for each in of.final[1:]} == {of.checkpoint}
    assert of.unfinished == {name: checkpoints[count - 1] for name, count in reached.items() if count < 5}


def test_a_comparison_and_its_tables_show_themselves():
    made = comparison(("memit", "alphaedit"), (10, 20), ("facts", "perplexity"))
    for shown_by_itself in (repr(made), repr(table(made))):
        for each in made.final:
            (line,) = (line for line in shown_by_itself.splitlines() if line.split()[:1] == [each.variant])
            assert f"{100 * each.metrics['efficacy']:.1f}" in line
            assert f"{each.metrics['perplexity']:.2f}" in line
    assert "after 20 of 20 edits" in repr(made)
    assert "<pre" in made._repr_html_()
    assert "variant" in repr(Comparison([], {}))
