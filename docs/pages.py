"""What the site has beside the pages in this folder: files of the repository's top level, and the API reference.

mkdocs calls the functions named `on_…` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = "alphaedit_plugin"
BORROWED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the top level → the pages that show them."""


def on_config(config: Any) -> Any:
    """Put a page for every package under "Reference", and what is written here and named nowhere under "Guides"."""
    named = str(config.nav)
    for entry in config.nav:
        if "Guides" in entry:
            entry["Guides"] += [path.name for path in sorted(ROOT.glob("docs/*.md")) if path.name not in named]
        if "Reference" in entry:
            entry["Reference"] = [
                {"All modules": "reference/index.md"},
                *({name: f"reference/{name}.md"} for name in packages()),
            ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not written by hand."""
    for name, page in BORROWED.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_links_of_the_site(text)))
    files.append(File.generated(config, "reference/index.md", content=overview()))
    for name, modules in packages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=reference(name, modules)))
    return files


def with_links_of_the_site(text: str) -> str:
    """The same text with links to files of the repository turned into links to pages of the site."""
    text = re.sub(r"\]\(docs/", "](", text)
    for name, page in BORROWED.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text


def packages() -> dict[str, list[str]]:
    """Package or single module → its public modules, by their full names."""
    top = ROOT / PACKAGE
    found = {PACKAGE: [PACKAGE]}
    for path in sorted(top.iterdir()):
        if path.is_dir() and (path / "__init__.py").is_file():
            inside = [each.stem for each in sorted(path.glob("*.py")) if not each.stem.startswith("_")]
            found[path.name] = [f"{PACKAGE}.{path.name}", *(f"{PACKAGE}.{path.name}.{each}" for each in inside)]
        elif path.suffix == ".py" and not path.stem.startswith("_"):
            found[path.stem] = [f"{PACKAGE}.{path.stem}"]
    return found


def overview() -> str:
    """A page: every module with the first line of its docstring, package by package."""
    lines = ["# All modules", ""]
    for name, (first, *others) in packages().items():
        lines += [f"## {name}", "", f"{first_line(first)} [Reference]({name}.md)", ""]
        if others:
            rows = (f"| [`{each.rpartition('.')[2]}`]({name}.md#{each}) | {first_line(each)} |" for each in others)
            lines += ["| module | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def first_line(module: str) -> str:
    """What a module says of itself, without importing it."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0].replace("|", "\\|")


def reference(name: str, modules: list[str]) -> str:
    """A page: what the package is, under its name, then a section for each of its modules."""
    first, *others = modules
    introduced = f"::: {first}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false"
    return "\n\n".join([f"# {name}", introduced, *(f"::: {module}" for module in others)]) + "\n"
