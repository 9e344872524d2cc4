"""When a sequence has broken its model, read off its checkpoints."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.tries import tries

from alphaedit_plugin.comparison.results import BEFORE, Comparison, Row
from alphaedit_plugin.evaluation.measure import Estimate, Measured
from alphaedit_plugin.report.collapse import collapse_of


def run(points: list[tuple[float, float]], start: float = 10.0) -> Comparison:
    """A variant with (perplexity, efficacy) after each 100 edits."""

    def row(name: str, edits: int, **values: float) -> Row:
        return Row(name, edits, {"facts": Measured({key: Estimate(value) for key, value in values.items()})})

    rows = [row("memit", 100 * (n + 1), perplexity=p, efficacy=e) for n, (p, e) in enumerate(points)]
    return Comparison([row(BEFORE, 0, perplexity=start, efficacy=0.1), *rows], {})


def test_it_lasts_up_to_twice_the_perplexity_and_ten_points():
    assert collapse_of(run([(10, 1.0), (20, 0.9), (20, 0.95)]), "memit") is None


def test_what_passes_a_bound_is_named_with_the_checkpoint_before():
    found = collapse_of(run([(11, 1.0), (15, 0.95), (20.1, 0.95), (11, 1.0)]), "memit")
    assert (found.edits, found.last_good) == (300, 200)
    assert found.why == "perplexity 20.1, 10 before any edit"
    found = collapse_of(run([(11, 0.8), (11, 0.98), (12, 0.85)]), "memit")
    assert (found.edits, found.last_good, found.why) == (300, 200, "efficacy 85.0%, 98.0% before")


def test_a_model_without_numbers_has_collapsed_at_once():
    found = collapse_of(run([(float("nan"), 0.9)]), "memit")
    assert (found.edits, found.last_good) == (100, 0)
    assert collapse_of(run([(float("inf"), 0.9)]), "memit").edits == 100


def test_what_was_not_measured_is_not_judged():
    assert collapse_of(Comparison([Row("memit", 100, {})], {}), "memit") is None


@tries(200)
@given(points=st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), max_size=8))
def test_every_checkpoint_before_it_is_good_and_later_ones_change_nothing(points):
    found = collapse_of(run(points), "memit")
    good = points if found is None else points[: found.edits // 100 - 1]
    assert all(perplexity <= 20 for perplexity, _ in good)
    assert all(after >= before - 0.1 - 1e-12 for i, (_, before) in enumerate(good) for _, after in good[i:])
    if found is not None:
        assert found == collapse_of(run(points[: found.edits // 100]), "memit")
        assert found.last_good == found.edits - 100
