"""Between a prompt and what follows stands what one would write there in its language, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tries import tries

from alphaedit_plugin.editors.border import border, without_usual_space

SPACE = (
    ("The capital of France is", "Rome"), ("Who made it?", "Apple"), ("The label:", "Fantasy"),
    ("in 1999", "the king"), ("It was said.", "Whilst there"), ("He said \"no\"", "and left"),
    ("the players'", "home"), ("the “old”", "town"), ("„Alt“", "und neu"), ("(1863)", "fought"), ("C++", "is"),
    ("C#", "is"), ("Yahoo!", "is"), ("5€", "per day"), ("2 + 2 =", "4"), ("Paris ->", "France"),
    ("The answer -", "Rome"), ("was written in", ".NET"), ("was born in", "'s-Hertogenbosch"),
    ("the film is", '"Papa Kehte Hain"'), ("it cost", "$399.99"), ("lives in", "(fr)"), ("born in", "-0400-01-01"),
    ("citizenship is", "🇮🇹"), ("Столица Франции", "Рим"), ("عاصمة فرنسا هي", "روما"), ("프랑스의 수도는", "로마"),
    ("Πρωτεύουσα είναι η", "Ρώμη"), ("Which club?", "常陸院 光"), ("**Answer:**", "Rome"), ("Zoe\u0301", "left"),
)  # fmt: skip
NOTHING = (
    ("The capital is\n", "Rome"), ("The capital is ", "Rome"), ("The capital is", " Rome"),
    ("The capital is", "\nRome"), ("The capital is\u00a0", "Rome"), ('The capital is "', "Rome"), ('"', "Rome"),
    ("the “", "town"), ("le «", "Monde"), ("„", "Alt"), ("He sang '", "Heroes"), ("is (", "Rome"), ("is [", "Rome"),
    ('{"capital":"', "Rome"), ("cost $", "5"), ("is **", "Rome"), ("by @", "user"), ("A=", "4"), ("<answer>", "Rome"),
    ("Spider-", "Man"), ("AC/", "DC"), ("1990–", "1995"), ("The capital is", ", they say"),
    ("The capital is Rome", "."), ('said "Rome', '" and left'), ("(Rome", ")"), ("the players", "’ home"),
    ("e", "\u0301"), ("法国的首都是", "罗马"), ("法国的首都是：", "罗马"),
    ("首都是:", "Rome"), ("首都是", "Rome"), ("他说\"", "罗马"),
    ("首都は「", "ローマ"), ("フランスの首都は", "ローマ"), ("ﾌﾗﾝｽ", "ﾛｰﾏ"), ("The capital in Chinese is", "罗马"),
    ("เมืองหลวงคือ", "โรม"), ("ນະຄອນຫຼວງແມ່ນ", "ໂຣມ"), ("រាជធានី", "រ៉ូម"), ("မြို့တော်", "ရောမ"), ("རྒྱལ་ས་", "རོམ"),
    ("𠮷", "野"), ("", "Rome"), ("The capital is", ""),
)  # fmt: skip


@pytest.mark.parametrize(("prompt", "target"), SPACE)
def test_words_of_scripts_with_spaces_are_parted(prompt, target):
    assert border(prompt, target) == " "


@pytest.mark.parametrize(("prompt", "target"), NOTHING)
def test_nothing_is_added_where_no_space_belongs(prompt, target):
    assert border(prompt, target) == ""


@tries(200)
@given(st.text(max_size=6), st.text(max_size=6))
def test_beside_whitespace_nothing_is_added_and_the_text_stays_to_the_byte(prompt, target):
    between = border(prompt, target)
    beside = prompt[-1:].isspace() or target[:1].isspace()
    assert between in (("",) if beside else ("", " "))
    bare, word = without_usual_space(prompt, target)
    assert (bare, word) == (prompt, target) or bare + border(bare, word) + word == prompt + target
    assert without_usual_space(bare, word) == (bare, word)
