"""What holds for the tests themselves: helpers have one home, files have names of their own, skips say why."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from support.paths import TESTS

FILES = sorted(TESTS.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Helpers at the top of a file: neither tests nor fixtures."""
    for node in tree.body:
        if (
            isinstance(node, ast.FunctionDef)
            and not node.name.startswith(("test_", "pytest_"))
            and not is_fixture(node)
        ):
            yield node


def is_fixture(function: ast.FunctionDef) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)


def body_of(function: ast.FunctionDef) -> str:
    """What it does, whatever it is called and however it is described."""
    described = ast.get_docstring(function) is not None
    return "\n".join(ast.dump(statement) for statement in function.body[described:])


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def calls_of(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_file_imports_from_a_test():
    found = {
        str(path.relative_to(TESTS)): name
        for path, tree in TREES.items()
        for name in imports_of(tree)
        if name.rpartition(".")[2].startswith(("test_", "conftest"))
    }
    assert found == {}, "what several files need belongs in tests/support/ or in a conftest.py"


def test_no_helper_is_written_twice():
    homes = defaultdict(list)
    for path, tree in TREES.items():
        for function in functions_of(tree):
            if (function.end_lineno or 0) - function.body[0].lineno + 1 > 3:
                homes[body_of(function)].append(f"{path.relative_to(TESTS)}: {function.name}")
    assert [places for places in homes.values() if len(places) > 1] == [], "give it one home in tests/support/"


def test_every_test_file_has_a_name_of_its_own():
    """pytest imports them by their base names, and so do the processes that a test starts."""
    places = defaultdict(list)
    for path in FILES:
        if path.name.startswith("test_"):
            places[path.name].append(str(path.parent.relative_to(TESTS)))
    assert {name: folders for name, folders in places.items() if len(folders) > 1} == {}


def test_every_skip_says_why():
    """`importorskip` does so by itself."""
    silent = []
    for path, tree in TREES.items():
        for name, call in calls_of(tree):
            said = bool(call.args) and name in ("pytest.skip", "pytest.xfail")
            said |= any(keyword.arg in ("reason", "msg") for keyword in call.keywords)
            if name.endswith(("pytest.skip", "pytest.xfail", "mark.skip", "mark.skipif", "mark.xfail")) and not said:
                silent.append(f"{path.relative_to(TESTS)}:{call.lineno}")
    assert silent == []


def test_the_folders_mirror_the_packages():
    packages = {path.parent.name for path in (TESTS.parent / "alphaedit_plugin").glob("*/__init__.py")}
    folders = {path.parent.name for path in FILES if path.name.startswith("test_") and path.parent != TESTS}
    assert folders == packages


def test_the_suite_is_read_as_it_lies_here():
    """Were the folder moved, the tests above would pass on nothing."""
    assert Path(__file__) in FILES
    assert len(FILES) > 50
