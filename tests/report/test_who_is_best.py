"""What a comparison may say: who is best, what P changes, and how many facts would tell."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.comparisons import comparison
from support.tries import tries

from alphaedit_plugin.comparison.results import BEFORE, Comparison, Row
from alphaedit_plugin.evaluation.fact_scores import FactScores, evenly, harmonic
from alphaedit_plugin.evaluation.measure import Estimate, Measured, mean_of
from alphaedit_plugin.report.columns import columns
from alphaedit_plugin.report.contrast import FEWEST, paired
from alphaedit_plugin.report.verdict import effects, outcome, ranking
from alphaedit_plugin.report.words import answer, caveats, finding, listed, projection, question, rounded

PARTS = ("efficacy", "generalization", "specificity")


def asked(variant: str, shares: Sequence[bool | float], *, losses: Sequence[float] = (), edits: int = 0) -> Row:
    """A variant that says each fact as `shares` has it, its paraphrases too; all else stays as it was."""
    values = [float(share) for share in shares]
    estimate = mean_of(values)
    records = [
        {"number": number, "efficacy": value, "generalization": value, "specificity": 0.5}
        for number, value in enumerate(values)
    ]
    score = Estimate(float(harmonic(np.asarray([estimate.value, estimate.value, 0.5]))))
    estimates = dict(zip(PARTS, (estimate, estimate, Estimate(0.5, 0.5, 0.5)), strict=True))
    measured = {"facts": Measured({**estimates, "score": score}, records)}
    if losses:
        mean = sum(losses) / len(losses)
        measured["perplexity"] = Measured(
            {"perplexity": Estimate(exp(mean))}, [{"loss": loss, "tokens": 255} for loss in losses]
        )
    return Row(variant, edits or len(values), measured)


def run(*rows: Row, **settings: object) -> Comparison:
    return Comparison(list(rows), {"edits": max(row.edits for row in rows), "batch_size": 1, **settings})


def column(of: Comparison, name: str):
    return next(each for each in columns(of.final) if each.name == name)


def share(count: int, right: int) -> list[bool]:
    return [number < right for number in range(count)]


def test_the_best_is_named_only_where_it_is_apart_from_every_other():
    clear = run(asked("rome", share(100, 40)), asked("memit", share(100, 60)), asked("alphaedit", share(100, 90)))
    assert ranking(clear, column(clear, "efficacy")).best == {"alphaedit"}
    assert "alphaedit has the best score, 71.1 %, apart from every other variant: memit is next" in finding(clear)
    close = run(asked("rome", share(100, 40)), asked("memit", share(100, 88)), asked("alphaedit", share(100, 90)))
    found = ranking(close, column(close, "efficacy"))
    assert (found.best, found.shared) == (set(), {"memit", "alphaedit"})
    said = finding(close)
    assert "no variant alone has the best score: memit (70.2 %) is level with alphaedit, 71.1 %" in said
    assert "With 100 facts they are not told apart; about" in said
    assert "would tell alphaedit from memit" in said


def test_pairing_tells_apart_what_intervals_do_not():
    """One says what the other says, and nine facts more: each alone is as unsure as a share of 100 facts."""
    of = run(asked("memit", share(100, 50)), asked("alphaedit", share(100, 59)))
    low, high = of.rows[1].estimates["efficacy"].low, of.rows[0].estimates["efficacy"].high
    assert low < high
    assert ranking(of, column(of, "efficacy")).best == {"alphaedit"}


@tries(20)
@given(count=st.integers(2, FEWEST - 1))
def test_few_facts_name_no_winner_and_no_help(count):
    of = run(asked("memit", share(count, 0)), asked("memit+P", share(count, count)))
    assert ranking(of, column(of, "efficacy")).best == set()
    assert "no winner is named with fewer than 20 facts" in finding(of)
    assert outcome(effects(of)["memit"]) == "cannot be told"


def test_many_variants_are_corrected_for():
    """Five facts more are enough against one variant, and not against twelve."""
    rows = [asked("alphaedit", share(100, 56)), asked("memit", share(100, 50))]
    assert ranking(run(*rows), column(run(*rows), "efficacy")).best == {"alphaedit"}
    many = run(*rows, *(asked(f"memit@v_lr={i}", share(100, 50)) for i in range(11)))
    assert ranking(many, column(many, "efficacy")).best == set()


def test_p_helps_or_hurts_or_it_cannot_be_told():
    plain, better, same = share(60, 20), share(60, 55), share(60, 21)
    losses = [3.0 + 0.01 * (number % 7) for number in range(30)]
    worse = [loss + 0.2 + 0.01 * (number % 3) for number, loss in enumerate(losses)]
    of = run(
        asked("memit", plain, losses=losses), asked("memit+P", better, losses=losses),
        asked("rect", plain, losses=losses), asked("rect+P", better, losses=worse),
        asked("rome", better, losses=losses), asked("rome+P", plain, losses=worse),
        asked("prune", plain, losses=losses), asked("prune+P", same, losses=losses),
    )  # fmt: skip
    assert {base: outcome(each) for base, each in effects(of).items()} == {
        "memit": "P helps",
        "rect": "P helps and hurts",
        "rome": "P hurts",
        "prune": "cannot be told",
    }
    assert answer(of) == "P helps memit. P helps and hurts rect. P hurts rome. Whether P helps prune cannot be told."
    memit, rect, _, prune = projection(of)
    assert memit.startswith("memit: P helps efficacy (33.3 → 91.7 %) and generalization (33.3 → 91.7 %); it cannot")
    assert "P hurts perplexity (20.66 → 25.49)" in rect
    assert "efficacy (33.3 → 35.0 % with 60 facts; about" in prune
    assert "specificity (50.0 → 50.0 % with 60 facts)" in prune  # no number of facts would tell what is the same
    assert "perplexity (20.66 → 20.66 with 30 windows of text)" in prune
    assert question([of]) == "Does the projection help memit, rect, rome and prune?"


def test_a_sample_is_compared_as_a_sample_without_the_earliest():
    """Before the end some facts are asked only for retention: they count for that, and for nothing else."""
    asks = sorted({*evenly(150, 30), *range(100)})

    def row(variant: str, value: float) -> Row:
        records = [{"number": n, "efficacy": value if n < 100 and n not in evenly(150, 30) else 0.0} for n in asks]
        return Row(variant, 150, {"facts": Measured({"efficacy": Estimate(0.0), "retention": Estimate(0.0)}, records)})

    one, other = row("memit", 0.0), row("alphaedit", 1.0)
    of = run(one, other, measures={"facts": {"sample": 30}})
    of.settings["edits"] = 300
    assert paired(of, other, one, "efficacy").value == 0
    assert paired(of, other, one, "efficacy").items == 30
    assert paired(of, other, one, "retention").value == pytest.approx(0.8)
    assert paired(of, other, one, "retention").items == 100


def test_the_differences_are_those_of_the_numbers_shown():
    of = comparison(("memit", "memit+P"), (100,), ("facts",))
    for contrast in effects(of)["memit"]:
        if contrast.column.name != "specificity":  # some facts have none
            numbers = [contrast.column.of(row).value for row in (contrast.row, contrast.other)]
            assert contrast.value == pytest.approx(numbers[0] - numbers[1])
        assert contrast.interval[0] <= contrast.value <= contrast.interval[1]


def test_a_model_without_numbers_is_worse_than_any():
    of = run(asked("memit", share(40, 20), losses=[3.0] * 30), asked("rome", share(40, 20), losses=[inf] * 30))
    found = ranking(of, column(of, "perplexity"))
    assert [row.variant for row in found.rows] == ["memit", "rome"]
    assert found.best == {"memit"}


def test_with_few_facts_not_even_a_model_without_numbers_is_called_worse():
    of = run(asked("memit", share(2, 2), losses=[3.0] * 2), asked("rome", share(2, 2), losses=[inf] * 2))
    assert ranking(of, column(of, "perplexity")).best == set()


def test_a_sample_of_facts_that_are_several_requests_each_is_compared_as_it_was_asked():
    """As in MQuAKE: a row counts 400 requests, and of its 200 facts the 20 of the sample are compared."""
    sample, earliest = FactScores(20).chosen(200, whole=False)

    def row(variant: str, value: float) -> Row:
        records = [{"number": n, "efficacy": value if n in sample else 0.5} for n in sorted({*sample, *earliest})]
        return Row(variant, 400, {"facts": Measured({"efficacy": Estimate(value)}, records)})

    one, other = row("memit", 0.0), row("alphaedit", 1.0)
    of = run(one, other, measures={"facts": {"sample": 20}})
    of.settings["edits"] = 600
    found = paired(of, other, one, "efficacy")
    assert (found.value, found.items) == (1.0, 20)


@pytest.mark.parametrize(("formats", "said"), [("CounterFact", False), ("CounterFact + ZsRE", True)])
def test_a_stream_of_several_formats_says_that_two_definitions_are_averaged(formats, said):
    of = comparison(("memit",), (10,), ("facts",), format=formats)
    assert any("two definitions" in each and formats in each for each in caveats(of)) is said


def test_what_nothing_is_known_of_is_neither_best_nor_level():
    bare = run(*(Row(n, 50, {"x": Measured({"perplexity": Estimate(v)})}) for n, v in (("memit", 9.0), ("rome", 8.0))))
    found = ranking(bare, column(bare, "perplexity"))
    assert (found.best, found.shared) == (set(), set())


@pytest.mark.parametrize(("share_held", "said"), [(0.09, False), (0.11, True)])
def test_a_null_space_that_is_not_null_is_said_to_be_so(share_held, said):
    of = comparison(("alphaedit",), (10,), ("facts",))
    of.settings["null_spaces"] = {"alphaedit": {"leakage": {"4": share_held, "5": 0.01}}}
    assert any("holds only so far" in each for each in caveats(of)) is said


def test_the_question_is_of_what_was_run():
    def asks(*names: str) -> str:
        return question([run(Row(BEFORE, 0, {}), *(Row(name, 1, {}) for name in names))])

    assert asks("memit", "memit+P", "alphaedit") == "Does the projection help memit?"
    assert asks("memit", "alphaedit") == "Which of memit and alphaedit edits best?"
    assert asks("alphaedit") == "What does alphaedit do to its model?"
    assert asks() == "What will the edits do to the model?"
    assert listed(list("abcdef")) == "a, b, c and 3 more"
    assert [rounded(n) for n in (7, 123, 98_765)] == ["7", "120", "99,000"]
