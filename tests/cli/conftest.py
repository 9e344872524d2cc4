"""A tiny model in a folder, facts and text in files, and the command `alphaedit` in this process."""

from __future__ import annotations

import json
import sys

import pytest
from support.command_line import FACTS
from support.tiny import tiny
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from alphaedit_plugin import cli
from alphaedit_plugin.cli.console import console


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory, tokenizer) -> str:
    """A tiny Llama that saves with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama", vocab_size=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def stranger(tmp_path_factory, tokenizer) -> str:
    """Of the same shape, with other weights."""
    folder = tmp_path_factory.mktemp("models") / "stranger"
    tiny("llama", vocab_size=512, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def facts(tmp_path) -> str:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS), encoding="utf-8")
    return str(path)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The river flows through the old town to the sea, where many ships lie at anchor. " * 20)
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `alphaedit …` in this process, in an empty directory; returns (exit code, standard output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no cell is cut
    monkeypatch.setattr(console, "_width", None)  # xdist's processes have another COLUMNS when it is made
    disable_progress_bar()  # of transformers, which loads the checkpoint; see the test of --quiet

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alphaedit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield call
    enable_progress_bar()
