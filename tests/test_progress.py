"""Progress is shown where somebody watches: on a terminal, and neither in a pipe nor in a file."""

from __future__ import annotations

import ast
import sys
from io import StringIO

import pytest
from support.paths import ROOT
from support.terminal import Terminal

from alphaedit_plugin.progress import progress_bar


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_if_it_is_to_be_shown(shown, terminal, monkeypatch):
    errors = Terminal() if terminal else StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert list(progress_bar(range(3), shown=shown, desc="work")) == [0, 1, 2]
    assert ("work: 100%" in errors.getvalue()) == (shown and terminal)
    assert bool(errors.getvalue()) == (shown and terminal)


def test_an_inner_bar_goes_when_it_ends_and_the_outer_one_stays(monkeypatch):
    errors = Terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    with progress_bar(total=2, shown=True, desc="outer") as outer:
        for _ in range(2):
            for _ in progress_bar(range(3), shown=True, desc="inner", leave=False):
                assert [line.split(":")[0] for line in errors.screen() if line] == ["outer", "inner"]
            outer.update()
    assert [line.split("|")[0] for line in errors.screen() if line] == ["outer: 100%"]


def test_every_bar_of_the_package_is_one_of_these():
    home = {"alphaedit_plugin/progress.py", "alphaedit_plugin/cli/console.py"}  # the latter writes above the bars
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "alphaedit_plugin").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            (name or "").split(".")[0] == "tqdm"
            for name in [getattr(node, "module", None), *(a.name for a in node.names)]
        )
    }
    assert found == home
