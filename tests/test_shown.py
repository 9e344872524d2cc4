"""What shows itself: one table, whoever draws it, and nothing hidden in it."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from support.tries import tries

from alphaedit_plugin.shown import WIDTH, Shown, VisibleConsole, one_line, percent
from alphaedit_plugin.visible import visible

ANYTHING = st.lists(
    st.text(max_size=30) | st.sampled_from(["<script>", "&amp;", "[red]", "\x1b[2J", "\u202e"]), max_size=4
)


@dataclass(frozen=True, repr=False)
class Thing(Shown):
    words: tuple[str, ...]

    def __rich__(self) -> RenderableType:
        table = Table("words")
        for word in self.words:
            table.add_row(escape(one_line(word)), style="red")
        return table


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@given(ANYTHING)
@tries(60)
def test_repr_notebook_and_terminal_show_the_same_and_nothing_is_hidden_in_it(words):
    thing, out = Thing(tuple(words)), StringIO()
    VisibleConsole(file=out, width=WIDTH).print(thing)
    page = thing._repr_html_()
    tags = set(re.findall(r"<(/?\w+)", page))
    assert tags <= {"pre", "/pre", "span", "/span"}
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert lines_of(repr(thing)) == lines_of(shown) == lines_of(out.getvalue())
    assert visible(repr(thing)) == repr(thing)
    assert visible(page) == page


def test_a_notebook_gets_colours_and_repr_does_not():
    thing = Thing(("a",))
    assert "color: #800000" in thing._repr_html_()
    assert "\x1b" not in repr(thing)


@given(st.text())
def test_a_line_is_one_line(words):
    assert len(one_line(words).splitlines()) == 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_percent_says_what_is_there_and_never_that_nothing_is(one, other):
    assert (percent(one) == "0.00 %") == (one == 0)
    low, high = (
        0.005 if "<" in said else float(said.removesuffix(" %")) for said in map(percent, sorted((one, other)))
    )
    assert low <= high or {low, high} == {0.005, 0.0}
    assert ("<" in percent(one)) == (0 < one < 1e-4)


@pytest.mark.parametrize(
    ("value", "said"), [(0.9712, "97.1 %"), (0.00123, "0.12 %"), (1e-9, "< 0.01 %"), (1.0, "100.0 %")]
)
def test_percent_has_few_digits(value, said):
    assert percent(value) == said
