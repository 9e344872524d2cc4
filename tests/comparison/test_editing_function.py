"""Functions by the place where they are: found, checked against their signature, and told from a changed one."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
import torch

from alphaedit_plugin.comparison.contenders import contender, contenders
from alphaedit_plugin.comparison.editing_function import EditingFunction
from alphaedit_plugin.errors import AlphaEditError, EditError, HyperparameterError

EDITOR = """
from helper import rate

def edit(model, tokenizer, requests, *, steps=25, size=None):
    return steps, size, rate

def any_setting(model, tokenizer, requests, **settings):
    return settings

def too_few(model, tokenizer):
    pass

def needs_more(model, tokenizer, requests, *, rate):
    pass

async def later(model, tokenizer, requests):
    pass

NOT_A_FUNCTION = 3
"""


@pytest.fixture
def editor(tmp_path, monkeypatch) -> Path:
    """my_editor.py in the working directory, beside a module that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "helper.py").write_text("rate = 1\n")
    (tmp_path / "my_editor.py").write_text(EDITOR)
    return tmp_path / "my_editor.py"


def test_a_file_and_a_module_are_found_with_their_settings(editor):
    for where in ("my_editor.py", "my_editor", str(editor)):
        found, restraint = EditingFunction.parse(f"{where}:edit@steps=10@size=[1, 2]+P")
        assert str(restraint) == "+P"
        assert found.name == f"{Path(where).name}:edit@steps=10@size=[1, 2]"  # wherever it lies
        assert found(None, None, []) == (10, [1, 2], 1)
    assert str(editor.parent) not in sys.path


def test_a_function_in_a_package_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "our_package_of_editors" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "fine.py").write_text("from ..shared import edit\n")
    (package.parent / "shared.py").write_text("def edit(model, tokenizer, requests):\n    return 'shared'\n")
    found, restraint = EditingFunction.parse("our_package_of_editors.inner.fine:edit")
    assert (found(None, None, []), bool(restraint)) == ("shared", False)
    before = found.identity
    (package / "fine.py").write_text("from ..shared import edit  # another\n")
    assert found.identity == before  # of the code as it was loaded
    assert EditingFunction.parse("our_package_of_editors.inner.fine:edit")[0].identity != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_editor.py:edti", ["my_editor.py", "'edti'", "did you mean edit?"]),
        ("my_editor.py:NOT_A_FUNCTION", ["no function 'NOT_A_FUNCTION'"]),
        ("my_editor.py:edit@stpes=10", ["no setting 'stpes'", "did you mean 'steps'?"]),
        ("my_editor.py:edit@steps", ["KEY=VALUE"]),
        ("my_editor.py:too_few", ["(model, tokenizer, requests, **settings)", "(model, tokenizer)"]),
        ("my_editor.py:needs_more", ["rate"]),
        ("my_editor.py:later", ["coroutine"]),
        ("my_editr.py:edit", ["there is no file my_editr.py"]),
        ("no_such_module_anywhere:edit", ["there is no module no_such_module_anywhere"]),
        ("my_editor.py", ["names a file and no function", "FILE.py:FUNCTION"]),
        ("broken.py:edit", ["cannot import broken.py", "ZeroDivisionError"]),
        ("my_editor.py:edit@steps=10+rect+P", ["rect is no projection"]),
        ("memmit", ["memmit"]),
        ("easyedit:MEMIT+Q", ["easyedit:METHOD+P"]),
    ],
)
def test_what_cannot_be_an_editor_is_said_so(editor, name, words):
    (editor.parent / "broken.py").write_text("1 / 0\n")
    with pytest.raises(HyperparameterError) as failure:
        contender(name)
    for word in words:
        assert word in str(failure.value)


def test_a_function_that_takes_any_setting_gets_them_all(editor):
    found, _ = EditingFunction.parse("my_editor.py:any_setting@lr=1e-3@layers=[4, 5]")
    assert found(None, None, []) == {"lr": "1e-3", "layers": [4, 5]}  # YAML 1.1 reads 1e-3 as text


def test_names_are_canonical_and_each_contender_is_there_once(editor):
    found = contenders(["memit+prune+P", "prune+P", "my_editor.py:edit@steps=10+p", "my_editor.py:edit@steps=10+P"])
    assert [each.name for each in found] == ["prune+P", "my_editor.py:edit@steps=10+P"]
    assert contender("memit@null_space={nullity: 0.5}+P").name == "memit@null_space={nullity: 0.5}+P"


def test_functions_themselves_go_by_their_names_or_by_their_keys():
    def edit(model, tokenizer, requests, *, steps=25): ...

    assert [each.name for each in contenders([edit, functools.partial(edit, steps=3), edit])] == [
        "edit",
        "edit@steps=3",
    ]
    found = contenders({"mine": edit, "mine+P": edit, "memit": "memit"})
    assert [each.name for each in found] == ["mine", "mine+P", "memit"]
    with pytest.raises(AlphaEditError, match="no setting 'pace'; it has steps"):
        contender(functools.partial(edit, pace=3))
    one, other = lambda model, tokenizer, requests: 1, lambda model, tokenizer, requests, rate=2: rate
    with pytest.raises(AlphaEditError, match="two editors cannot be called <lambda>"):
        contenders([one, other])


def test_a_changed_source_is_another_editor_and_an_unchanged_one_is_not(editor):
    def source() -> dict:
        return EditingFunction.parse("my_editor.py:edit")[0].identity

    first = source()
    assert source() == first
    unrelated = editor.parent / "unrelated.py"
    unrelated.write_text("x = 1\n")
    assert source() == first
    (editor.parent / "helper.py").write_text("rate = 2\n")
    second = source()
    assert second != first  # what it imports from beside it counts
    editor.write_text(EDITOR.replace("steps=25", "steps=26"))
    assert source() not in (first, second)


class Editor:
    """One that is called as an object, or by a method."""

    def __init__(self, rate):
        self.rate = rate

    def edit(self, model, tokenizer, requests): ...

    def __call__(self, model, tokenizer, requests): ...


def with_default(rate):
    def edit(model, tokenizer, requests, *, rate=rate): ...

    return edit


def holding(value):
    def edit(model, tokenizer, requests):
        return value

    return edit


@pytest.mark.parametrize(
    "make",
    [
        lambda value: Editor(value).edit,
        Editor,
        with_default,
        holding,
        lambda value: holding(holding(value)),
        lambda value: holding({"rates": [value, (value,)], (1, 2): None}),
        lambda value: holding(torch.full((3,), value)),
        lambda value: functools.partial(edit_with, value),
        lambda value: functools.wraps(with_default(0))(holding(value)),
    ],
    ids=["method", "object", "default", "closure", "function", "containers", "tensor", "partial", "wrapper"],
)
def test_two_editors_are_one_only_if_they_hold_the_same(make):
    one, same, other = (EditingFunction.of(make(value)).identity for value in (1e-3, 1e-3, 1e-2))
    assert one == same != other
    json.dumps(one)


def edit_with(rate, model, tokenizer, requests): ...


def test_what_cannot_be_told_is_never_taken_for_another():
    one, other = (EditingFunction.of(holding(iter("ab"))).identity for _ in range(2))
    assert one != other
    circle: list = []
    circle.append(circle)
    assert EditingFunction.of(holding(circle)).identity == EditingFunction.of(holding(circle)).identity


def test_files_of_one_name_are_told_apart_by_their_folders_and_have_helpers_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ed.py").write_text("from helper_of_ed import name\ndef edit(m, t, r):\n    return name\n")
        (tmp_path / folder / "helper_of_ed.py").write_text(f"name = {folder!r}\n")
    found = contenders([f"{tmp_path}/a/ed.py:edit", f"{tmp_path}/b/ed.py:edit+P", f"{tmp_path}/b/ed.py:edit"])
    assert [each.name for each in found] == ["a/ed.py:edit", "ed.py:edit+P", "b/ed.py:edit"]
    assert [each.called(None, None, []) for each in found] == ["a", "b", "b"]
    assert "helper_of_ed" not in sys.modules
    (tmp_path / "a" / "helper_of_ed.py").write_text("name = 'another'\n")
    with pytest.raises(EditError, match="was changed while the run was under way"):
        found[0].called.fresh()
    assert contender(f"{tmp_path}/a/ed.py:edit").called(None, None, []) == "another"


def test_a_key_names_a_function_and_no_name_has_another():
    def edit(model, tokenizer, requests): ...

    for wrong in ({"mine": "memit"}, {"mine+P": "memit"}, {"before": edit}, {"memit": edit, "x": "memit"}):
        with pytest.raises(HyperparameterError):
            contenders(wrong)


def test_what_a_function_closes_over_is_part_of_what_it_is():
    def make(rate):
        def edit(model, tokenizer, requests):
            return rate

        return edit

    one, same, other = (EditingFunction.of(make(rate)).identity for rate in (1e-3, 1e-3, 1e-2))
    assert one == same != other


def test_a_function_in_no_file_has_a_source_too():
    space: dict = {}
    exec("def edit(model, tokenizer, requests):\n    return 1\n", space)
    other: dict = {}
    exec("def edit(model, tokenizer, requests):\n    return 2\n", other)
    assert EditingFunction.of(space["edit"]).identity != EditingFunction.of(other["edit"]).identity
