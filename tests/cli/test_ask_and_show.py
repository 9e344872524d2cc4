"""`alphaedit ask` and `alphaedit show`: what they say is the session's, and they change nothing."""

from __future__ import annotations

import io
import json
import sys

import pytest
from support.command_line import FACTS, SMALL, assert_one_line

from alphaedit_plugin.cli import ask as ask_module
from alphaedit_plugin.cli.console import console
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

TOWER = "The Eiffel Tower is located in the city of"


@pytest.fixture
def out(run, checkpoint, tmp_path):
    """What `edit` leaves: three facts in batches of two, and one of them written again."""
    again = {**FACTS[0]["requested_rewrite"], "target_new": {"str": "Warsaw"}}
    for name, facts in (("facts", FACTS), ("again", [{"requested_rewrite": again}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
        command = ("edit", checkpoint, tmp_path / f"{name}.json", "--out", tmp_path / "out", "--batch", 2, "--lora")
        code, _, errors = run(*command, "--allow-failures", *SMALL)
        assert (code, errors) == (0, "")
    return tmp_path / "out"


@pytest.fixture
def session(out, checkpoint):
    """The same, in Python."""
    return Session.resume(out / "session", *load(checkpoint), read_only=True)


def drawn(renderable) -> str:
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def loaded(result: tuple[int, str, str]) -> tuple[int, str, str]:
    """The result without the line that says where the model is."""
    code, output, errors = result
    said, line, rest = output.partition(" in float32\n")
    assert line
    assert " is on " in said.replace("\n", " ")
    return code, rest, errors


def files(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ask_says_what_the_session_says_of_each_prompt(run, out, session):
    before = files(out)
    prompts = (TOWER, "The Louvre is in")
    for folder in (out, out / "session"):
        expected = (0, drawn(session.ask(prompts, tokens=5)), "")
        assert loaded(run("ask", folder, *prompts, "--tokens", 5, "--quiet")) == expected
    assert files(out) == before


@pytest.mark.parametrize("text", [f"{TOWER}\n\nThe Louvre is in\n", f"\n{TOWER}\nThe Louvre is in"])
def test_prompts_come_from_a_pipe_a_line_each_and_empty_lines_are_none(text, run, out, session, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    expected = "".join(drawn(session.ask(prompt, tokens=5)) for prompt in (TOWER, "The Louvre is in"))
    assert loaded(run("ask", out, "--tokens", 5)) == (0, expected, "")


@pytest.mark.parametrize("end", ["", EOFError])
def test_prompts_come_from_a_terminal_until_an_empty_line_or_its_end(end, run, out, session, monkeypatch):
    """One that cannot be asked is said, and the next one is asked."""
    typed = iter([TOWER, "The river " * 200, "The Louvre is in", end, "never read"])

    def line(*_: object) -> str:
        found = next(typed)
        if found is EOFError:
            raise EOFError
        return found

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(ask_module.console, "input", line)
    code, output, errors = loaded(run("ask", out, "--tokens", 5))
    expected = "".join(drawn(session.ask(prompt, tokens=5)) for prompt in (TOWER, "The Louvre is in"))
    assert (code, output.partition("\n")[2]) == (0, expected)
    assert "positions" in errors
    assert next(typed) == "never read"


def test_show_is_the_ledger_and_needs_no_model_to_list_it(run, out, session, monkeypatch):
    before = files(out)
    assert loaded(run("show", out)) == (0, drawn(session.ledger()), "")
    monkeypatch.setattr("alphaedit_plugin.model.loading.load", None)
    code, output, errors = run("show", out, "--no-model")
    assert (code, output, errors) == (0, drawn(session.ledger(asking=False)), "")
    assert "superseded by 4" in output
    assert files(out) == before


def test_a_session_that_somebody_else_goes_on_with_is_asked_and_shown(run, out, checkpoint):
    with Session.resume(out / "session", *load(checkpoint)):
        for words in (["ask", out, TOWER], ["show", out], ["show", out, "--no-model"]):
            assert run(*words)[0] == 0


@pytest.mark.parametrize(
    "words", [["ask", "nothing", "The Louvre"], ["show", "nothing"], ["show", "nothing", "--no-model"]]
)
def test_a_folder_without_a_session_is_one_line(words, run):
    assert_one_line(run(*words), "nothing", "no session")


def test_what_cannot_be_asked_is_one_line(run, out, monkeypatch):
    assert_one_line(run("ask", out, "The river " * 200), "positions")
    assert_one_line(run("ask", out, "The river", "--chat"), "chat template")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The river " * 200))
    assert_one_line(run("ask", out), "positions")
