"""Control characters are shown, and nothing else is touched."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from alphaedit_plugin.visible import visible

ANY = st.text(st.characters())  # surrogates too


@given(ANY)
def test_nothing_that_controls_a_terminal_is_left_and_all_of_it_is_shown(text: str) -> None:
    shown = visible(text)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") and each not in "\n\t"]
    assert not [each for each in shown if unicodedata.bidirectional(each) in {"LRE", "RLE", "PDF", "LRO", "RLO"}]
    assert not [each for each in shown if unicodedata.bidirectional(each) in {"LRI", "RLI", "FSI", "PDI"}]
    assert visible(shown) == shown
    shown.encode("utf-8")


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \n\t👩‍🚀é日")))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_it_is_shown_as_python_writes_it() -> None:
    assert visible("a\x1b[31m\x9b\r\u202eb\x7f\udcff") == r"a\x1b[31m\x9b\r\u202eb\x7f\udcff"
