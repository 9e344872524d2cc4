"""What is printed cannot control the terminal, whoever prints it."""

from __future__ import annotations

import json
import logging
import re
import sys
from io import StringIO

import pytest
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from support.command_line import SMALL
from support.terminal import Terminal

from alphaedit_plugin.cli.console import log_to_terminal, print_error
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.progress import progress_bar
from alphaedit_plugin.shown import VisibleConsole

HOSTILE = "Paris\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202e\x00\x7f"
SHOWN = r"Paris\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202e\x00\x7f"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def table() -> Table:
    made = Table(title=escape(HOSTILE), caption=escape(HOSTILE))
    made.add_column(Text(HOSTILE))
    made.add_column("another")
    made.add_row(escape(HOSTILE), Text(HOSTILE))
    return made


@pytest.mark.parametrize("thing", [escape(HOSTILE), Text(HOSTILE), table(), Panel(escape(HOSTILE)), [HOSTILE]])
@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_are_shown_whatever_is_printed(thing, terminal):
    out = StringIO()
    VisibleConsole(file=out, width=300, force_terminal=terminal, color_system=None).print(thing)
    assert r"Paris\x1b[2J" in out.getvalue().replace("\\\\", "\\")  # of the rest, rich's own Text leaves some out
    assert not CONTROLS.search(out.getvalue())


def test_colours_are_still_sent_and_tables_stay_in_line():
    out = StringIO()
    console = VisibleConsole(file=out, width=100, force_terminal=True, color_system="standard")
    console.print(f"[red]{escape(HOSTILE)}[/red]")
    assert CONTROLS.sub("", re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())) == SHOWN + "\n"
    out = StringIO()
    made = Table()
    made.add_column("a")
    for cell in (HOSTILE, "plain"):
        made.add_row(escape(cell))
    VisibleConsole(file=out, width=100).print(made)
    assert len({len(line) for line in out.getvalue().splitlines()}) == 1


def test_errors_and_the_log_show_them_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    print_error(RequestError(f"no {HOSTILE} [bold]here[/bold]"))
    log_to_terminal(logging.WARNING)
    logging.getLogger("alphaedit_plugin.any").warning("no %s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("alphaedit_plugin.any").exception("failed")
    errors = capsys.readouterr().err
    assert errors.count(SHOWN) >= 2
    assert not CONTROLS.search(errors)


def test_the_log_is_written_above_the_bars_and_not_through_them(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_terminal(logging.WARNING)
    log = logging.getLogger("alphaedit_plugin.any")
    with progress_bar(total=2, shown=True, desc="outer"):
        log.warning("one line")
        for _ in progress_bar(range(2), shown=True, desc="inner", leave=False):
            log.warning("another")
    found = [re.split(r"[:|]", line)[0].split() for line in terminal.screen() if line]
    assert found == [["WARNING", "one", "line"], ["WARNING", "another"], ["WARNING", "another"], ["outer"]]


@pytest.mark.slow
def test_no_command_sends_what_a_fact_or_a_name_holds(run, checkpoint, text, tmp_path):
    """Written, refused, compared, reported and undone."""
    facts = tmp_path / "facts\x1b[31m.json"
    record = {"case_id": HOSTILE, "subject": f"The {HOSTILE} Tower", "target_new": f"Rome{HOSTILE}"}
    flat = [{**record, "prompt": "{} is located in the city of"}]
    facts.write_text(json.dumps(flat))
    options = ("--corpus", text, *SMALL)
    outputs = [run("edit", checkpoint, facts, "--out", tmp_path / "out\x1b[1m", *options)]
    outputs.append(run("edit", checkpoint, facts, "--out", tmp_path / "out\x1b[1m", "--method", "rome", *options))
    for words in (["ask", HOSTILE, f"The {HOSTILE} Tower is"], ["show"], ["show", "--no-model"]):
        outputs.append(run(words[0], tmp_path / "out\x1b[1m", *words[1:], "--quiet"))
    outputs.append(run("undo", tmp_path / "out\x1b[1m", "--quiet"))
    outputs.append(run("apply", checkpoint, tmp_path / "no\x1b[1m", "--out", tmp_path / "new"))
    facts.write_text(json.dumps([{**flat[0], "prompt": f"no such thing {HOSTILE}"}]))
    outputs.append(run("edit", checkpoint, facts, "--out", tmp_path / "other", *options))
    known = [{**flat[0], "rephrase_prompt": f"Everyone knows {HOSTILE}", "ground_truth": HOSTILE}]
    facts.write_text(json.dumps(known))
    out = tmp_path / "run\x1b[1m"
    options = ("--methods", "memit", "--held-out", text, *options)
    outputs.append(run("compare", checkpoint, "--data", facts, "--out", out, *options))
    outputs.append(run("report", out))
    codes = [code for code, _, _ in outputs]
    assert codes[1:] == [1, 0, 0, 0, 0, 1, 1, 0, 0]
    for _, printed, errors in outputs:
        assert not CONTROLS.search(printed)
        assert not CONTROLS.search(errors)
    assert SHOWN in outputs[0][1]
    assert not CONTROLS.search((out / "report.html").read_text(encoding="utf-8"))
