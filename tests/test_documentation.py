"""The documentation site: what `make docs` builds. Skipped where mkdocs is not installed (`make docs` installs it)."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.paths import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed: run `make docs` once")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: run `make docs` once")

PACKAGE = ROOT / "alphaedit_plugin"


class Page(HTMLParser):
    """What a page loads, where it has anchors, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found["href"])
        self.anchors.add(found.get("id", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """Address → page, of the site built as strictly as CI builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")
    }


def documented(path: Path) -> set[str]:
    """The public classes and functions of a module that have a docstring."""
    found = [
        node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    return {node.name for node in found if not node.name.startswith("_") and ast.get_docstring(node)}


@pytest.mark.slow
def test_every_public_class_and_function_with_a_docstring_is_in_the_reference(site: dict[str, Page]) -> None:
    described = {at for address, page in site.items() if address.startswith("reference/") for at in page.anchors}
    for path in PACKAGE.rglob("*.py"):
        if not path.name.startswith("_"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert {f"{module}.{name}" for name in documented(path)} <= described, module


@pytest.mark.slow
def test_what_stands_elsewhere_is_a_page_too(site: dict[str, Page]) -> None:
    guides = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert set(site) >= {"index.html", "contributing.html", "changelog.html", "architecture.html", *guides}
    assert "command-line" in site["index.html"].anchors


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: dict[str, Page]) -> None:
    for address, page in site.items():
        assert [at for at in page.loaded if re.match(r"(\w+:)?//", at)] == [], address
