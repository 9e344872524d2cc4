"""How a command line is read: options, lists, names, help, errors, and what may be imported until then."""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from support.command_line import assert_one_line
from support.paths import ROOT

from alphaedit_plugin import __version__
from alphaedit_plugin.cli import cache, compare, options
from alphaedit_plugin.cli.app import COMMANDS, app
from alphaedit_plugin.comparison.names import check_name, names_in
from alphaedit_plugin.editors.registry import listed
from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.storage.store import KINDS

GROUPS = (compare.Compared, compare.Edited, compare.Measured, options.Preparing, options.Loading, compare.Running)


def read(*words: str) -> dict[str, Any]:
    """What the function of a command would be given."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments


def alphaedit(*words: str, after: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`alphaedit …` in a process of its own; then `after` is run."""
    code = f"import sys\nfrom alphaedit_plugin.cli import main\ntry:\n    main()\nfinally:\n    {after or 'pass'}"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


# --------------------------------------------------------------------------------------------- before torch comes


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "compare"),
        (["--version"], 0, __version__),
        (["compare", "--help"], 0, "--keep-sessions"),
        (["comparre"], 1, "compare"),
        (["compare", "--methds", "memit"], 1, "--methods"),
        (["compare", "--methods", "memmit"], 1, "memit"),
        (["compare", "--study", "sequentiel"], 1, "sequential"),
        (["compare", "--edits", "0"], 1, "--edits"),
        (["prepare", "--layers", "4-"], 1, "--layers"),
        (["edit", "model", "facts.json", "--method", "memmit", "--out", "out"], 1, "memit"),
        (["cache", "--kind", "texts"], 1, "text"),
        (["compare", "absent.yaml"], 1, "absent.yaml"),
        (["easyedit", "--help"], 0, "SCRIPT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(words, code, said):
    heavy = "print([n for n in ('torch', 'transformers', 'numpy', 'matplotlib') if n in sys.modules], file=sys.stderr)"
    done = alphaedit(*words, after=heavy)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1 if not code else 0].startswith("error:" if code else "[]")
    assert "[]" in done.stderr.splitlines(), done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_do_not_spin_while_they_wait_unless_somebody_says_so(chosen, monkeypatch):
    """It must be said before torch makes its threads; torch's library of threads then shows what it understood."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "TRUE")
    done = alphaedit("--version", after="import torch")
    found = [line.partition("=")[2].strip() for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert found
    assert set(found) == {f"'{chosen or 'PASSIVE'}'"}


def test_what_is_repeated_here_to_do_without_torch_is_what_the_library_says():
    assert get_args(cache.Kind) == KINDS


# ------------------------------------------------------------------------------------------------------ the words


@pytest.mark.parametrize(
    "words",
    [
        ["m", "--methods", "memit", "memit+P", "alphaedit@L2=5"],
        ["m", "--methods", "memit,memit+P", "alphaedit@L2=5"],
        ["m", "--methods", "memit", "--methods", "memit+P", "--methods=alphaedit@L2=5"],
        ["--methods", "memit, memit+P alphaedit@L2=5", "--model", "m"],
        ["m", "--quiet", "--methods", "memit", "memit+P", "alphaedit@L2=5", "--batch", "3"],
    ],
)
def test_methods_are_all_words_up_to_the_next_option(words):
    read_ = read("compare", *words)
    assert read_["compared"].methods == ("memit", "memit+P", "alphaedit@L2=5")
    assert read_["model"] == "m"


def test_commas_inside_brackets_belong_to_a_setting():
    name = "memit@layers=[4, 5]+P"
    assert read("compare", "--methods", f"{name},rome")["compared"].methods == (name, "rome")


def test_every_list_takes_all_words_up_to_the_next_option():
    found = read("compare", "--data", "a", "b", "--facts", "c", "--seeds", "0", "-1", "--models", "x", "y",
                 "--harness", "hellaswag", "boolq", "-q")  # fmt: skip
    assert found["edited"].data == ("a", "b", "c")
    assert found["edited"].seeds == (0, -1)
    assert found["compared"].models == ("x", "y")
    assert found["measured"].harness == ("hellaswag", "boolq")
    assert found["running"].quiet


def test_an_option_given_twice_is_as_the_last_one_says():
    assert read("compare", "--out", "a", "--batch", "1", "--out", "b", "-q", "--quiet")["running"].out == Path("b")


@pytest.mark.parametrize(
    "name",
    ["memit", "MEMIT+P", "rect", "prune+P", "alphaedit@L2=1e+3", "memit-seq", "easyedit:FT", "easyedit:GRACE+P",
     "my_editor.py:edit@steps=10+P", "package.module:edit"],
)  # fmt: skip
def test_what_may_be_a_contender_passes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_editor.py").touch()
    check_name(name)


def test_an_editor_whose_file_is_missing_is_no_model_and_no_method(run):
    for words in (["--methods", "my_editr.py:edit"], ["my_editor.py:edit"]):
        assert_one_line(run("compare", *words), words[-1].partition(":")[0])


def test_the_path_of_an_editor_may_hold_spaces_and_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my ed").mkdir()
    for name in ("my ed/a, b.py", "ed.py"):
        (tmp_path / name).touch()
    assert names_in("my ed/a, b.py:edit@steps=3+P") == ["my ed/a, b.py:edit@steps=3+P"]
    assert names_in("ed.py:edit,ed.py:edit+P memit") == ["ed.py:edit", "ed.py:edit+P", "memit"]


def test_an_unknown_method_is_answered_by_the_nearest():
    with pytest.raises(HyperparameterError, match=r"^no method memmit; did you mean memit\?$"):
        check_name("memmit")


def test_a_model_behind_the_methods_is_told_where_it_belongs(run):
    assert_one_line(run("compare", "--methods", "memit", "gpt2-xl"), "no method 'gpt2-xl'", "model goes first")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["comparre"], ["comparre", "compare"]),
        (["compare", "--methds", "memit"], ["--methds", "--methods"]),
        (["compare", "--edits", "many"], ["--edits", "many", "int"]),
        (["compare", "--edits"], ["--edits"]),
        (["compare", "--methods"], ["--methods"]),
        (["compare", "--methods", ","], ["--methods"]),
        (["compare", "model", "another"], ["another"]),
        (["edit", "model"], ["--out"]),
        (["edit", "model", "facts.json"], ["--out"]),
        (["cache", "--kind", "texts"], ["texts", "covariance"]),
        (["easyedit"], ["SCRIPT"]),
        (["easyedit", "absent.py", "--help"], ["absent.py"]),
        (["--verbose", "comparre"], ["comparre"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_command_line_that_makes_no_sense_is_one_line(words, parts, run):
    assert_one_line(run(*words), *parts)


# --------------------------------------------------------------------------------------------------- help and such


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_help_of_compare_shows_every_option_in_its_group_with_examples(columns, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    code, output, _ = run("compare", "--help")
    assert code == 0
    assert max(map(len, output.splitlines())) <= int(columns)
    for group in ("Arguments", "What is compared", "Facts", "Measures", "Preparation", "Model", "Run"):
        assert f"─ {group} ─" in output
    for group in GROUPS:
        for field in fields(group):
            assert f"--{field.name.replace('_', '-')} " in output
    assert "--worker" not in output
    assert output.count("  alphaedit compare") >= 4
    Path("my_editor.py").touch()  # which an example speaks of
    shown = [words.split() for words in re.findall(r"^    alphaedit (.+)$", output, re.MULTILINE)]
    for words in shown[:3]:
        read(*words)


def test_no_word_of_the_help_is_lost_on_a_narrow_terminal(run, monkeypatch):
    def words() -> list[str]:
        return re.sub(r"[│╭╮╰╯─]", " ", run("compare", "--help")[1]).split()

    monkeypatch.setenv("COLUMNS", "300")
    wide = set(words())
    monkeypatch.setenv("COLUMNS", "80")
    assert set(words()) == wide


@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_every_option_of_every_command_is_explained(command):
    for argument in app[command].assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help or not argument.show, argument.name


def test_every_command_says_what_it_is_for(run):
    _, output, _ = run("--help")
    for command in (*COMMANDS, compare.compare):
        first = inspect.getdoc(command).splitlines()[0]
        assert first in " ".join(output.replace("│", " ").split()), command


def test_version_and_no_words_at_all(run):
    assert run("--version")[:2] == (0, f"{__version__}\n")
    assert run()[1] == run("--help")[1]


@pytest.mark.parametrize(("flags", "level"), [((), "WARNING"), (("-v",), "INFO"), (("--verbose",), "INFO")])
def test_verbose_says_what_is_being_done(flags, level, run, monkeypatch):
    levels = []
    monkeypatch.setattr("alphaedit_plugin.cli.app.log_to_terminal", levels.append)
    assert run(*flags, "cache")[0] == 0
    assert [logging.getLevelName(each) for each in levels] == [level]


def test_an_interrupt_ends_with_the_usual_code(run, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alphaedit_plugin.cli.app.run", interrupted)
    assert run("cache") == (130, "", "")


def test_a_bash_completion_comes_out(tmp_path):
    path = tmp_path / "alphaedit.bash"
    code = f"import os; os.environ['HOME'] = {str(tmp_path)!r}"
    done = alphaedit("--install-completion", "--shell", "bash", "--output", str(path), after=code)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["bash", "-n", path], check=True)
    script = path.read_text()
    for word in ("compare", "easyedit", "--methods", "--keep-sessions", "corpus-size"):
        assert word in script


def test_methods_lists_each_with_a_line(run):
    code, output, _ = run("methods")
    assert code == 0
    assert {each.kind for each in listed()} == {"method", "modifier"}
    for each in listed():
        (line,) = (line for line in output.splitlines() if line.split()[:1] == [each.name])
        assert all(value in line for value in (each.kind, each.summary, each.source)), output
    (line,) = (line for line in output.splitlines() if line.split()[:1] == ["in-context"])
    assert "contender" in line


def test_easyedit_passes_on_all_words_behind_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps(sys.argv))\nraise KeyError('of the script')\n")
    words = ["--help", "-v", "--quiet", "--version", "--", "-x", "--methods=a", "-h"]
    for before in ([], ["-v"]):
        done = alphaedit(*before, "easyedit", "script.py", *words, cwd=tmp_path)
        assert json.loads(done.stdout) == ["script.py", *words]
        assert "Traceback" in done.stderr
        assert "KeyError: 'of the script'" in done.stderr


FAILING = """\
def helper():
    {statement}

try:
    import alphaedit_plugin.errors
    helper()
except ZeroDivisionError as failure:
    raise ValueError("of the script") from failure
"""


@pytest.mark.parametrize("statement", ["1 / 0", "raise KeyError"])
def test_what_a_script_raises_is_shown_as_python_shows_it(statement, tmp_path):
    (tmp_path / "script.py").write_text(FAILING.format(statement=statement))
    plain = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    ours = alphaedit("easyedit", "script.py", cwd=tmp_path)
    assert "Traceback" in plain.stderr
    assert (ours.returncode, ours.stderr.replace("script.py", str(tmp_path / "script.py"))) == (1, plain.stderr)


def test_a_script_with_bad_syntax_is_shown_without_our_frames(tmp_path):
    (tmp_path / "script.py").write_text("def f(:\n")
    done = alphaedit("easyedit", "script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert "alphaedit_plugin" not in done.stderr


def test_an_error_of_ours_in_a_script_is_one_line_that_names_the_scripts(tmp_path):
    (tmp_path / "script.py").write_text(
        FAILING.format(statement="raise alphaedit_plugin.errors.EditError('it failed')")
    )
    done = alphaedit("easyedit", "script.py", cwd=tmp_path)
    assert_one_line((done.returncode, done.stdout, done.stderr), "it failed (script.py, line 6)")
