"""The package is built in floors: who may import whom, read from the source, with imports inside functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = "alphaedit_plugin"
FLOORS = (
    ("cli",),
    ("report",),
    ("comparison",),
    ("easyedit",),
    ("baselines", "tuning"),
    ("session", "evaluation"),
    ("editors",),
    ("nullspace",),
    ("model",),
    ("storage",),
    ("shown",),
    ("errors", "progress", "restoring", "visible"),
)
"""From top to bottom. Those on one floor know nothing of each other."""
HEIGHT = {name: len(FLOORS) - i for i, floor in enumerate(FLOORS) for name in floor}
RETIRED = {"runs", "results", "history", "scores", "scoring", "measured"}
"""Words that once meant several things each."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(root: Path) -> dict[str, Path]:
    """name → file of every module of the package below `root`."""
    return {module_name(path, root): path for path in sorted((root / PACKAGE).rglob("*.py"))}


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of ours) for each import, wherever it stands; `from package import module` is of the module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] == PACKAGE:
                yield node.lineno, target if target in modules else target.rpartition(".")[0]


def part_of(module: str) -> str:
    """The floor's part that a module belongs to; "" for the front door, the package itself."""
    return module.split(".")[1] if "." in module else ""


def broken_rules(root: Path) -> list[str]:
    """Every import that points up, sideways, at the flag, or past what a report may know."""
    modules = modules_of(root)
    found = []
    for module, path in modules.items():
        here = part_of(module)
        if here in ("", "__main__"):  # the front door and the command line's: they lead to everything
            continue
        for line, target in imports_of(module, path, modules):
            there = part_of(target)
            if there in ("", here):
                continue
            where = f"{path.relative_to(root)}:{line} imports {target}"
            if HEIGHT[there] >= HEIGHT[here]:
                found.append(f"{where}: {there} is not below {here}")
            if there == "easyedit" and here != "cli":
                found.append(f"{where}: whoever imports it installs the flag")
            if here == "report" and there == "comparison" and target != f"{PACKAGE}.comparison.results":
                found.append(f"{where}: a report reads results, and knows nothing of how they came about")
    return found


def test_every_part_has_its_floor() -> None:
    parts = {part_of(module) for module in modules_of(ROOT)} - {"", "__main__"}
    assert parts == set(HEIGHT)


def test_imports_point_down_only() -> None:
    assert broken_rules(ROOT) == []


def test_the_front_door_does_not_install_the_flag() -> None:
    modules = modules_of(ROOT)
    opened = {part_of(target) for _, target in imports_of(PACKAGE, modules[PACKAGE], modules)}
    assert not opened & {"easyedit", "cli"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = modules_of(ROOT)
    known = {
        # Of the front door the others take its version only: it leads down to them, not they up to it.
        module: {target for _, target in imports_of(module, path, modules)} - {PACKAGE, module}
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(known).prepare()
    except CycleError as failure:
        pytest.fail(" > ".join(failure.args[1]), pytrace=False)


def test_only_the_version_is_taken_from_the_front_door() -> None:
    for module, path in modules_of(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                depth = len(module.split(".")) - (path.name == "__init__.py")
                if node.module == PACKAGE or (node.module is None and node.level == depth):
                    names = {alias.name for alias in node.names}
                    assert names <= {"__version__", *HEIGHT}, f"{module} takes {names} from the front door"


def test_no_module_bears_a_word_that_once_meant_several_things() -> None:
    last = {module: module.rpartition(".")[2] for module in modules_of(ROOT)}
    assert [m for m, word in last.items() if word in RETIRED and m != f"{PACKAGE}.comparison.results"] == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("model/a.py", "def lazily():\n    from ..session import batch\n", "model/a.py:2 imports {}.session.batch"),
        ("session/a.py", "from ..evaluation.facts import Fact\n", "evaluation is not below session"),
        ("baselines/a.py", "from .. import easyedit\n", "installs the flag"),
        ("comparison/a.py", "import alphaedit_plugin.easyedit\n", "installs the flag"),
        ("comparison/a.py", "importlib.import_module('alphaedit_plugin.easyedit')\n", "installs the flag"),
        ("report/a.py", "from ..comparison.cell import compare\n", "knows nothing of how"),
    ],
)
def test_a_broken_rule_is_seen(tmp_path: Path, file: str, text: str, said: str) -> None:
    for name in ("session/batch.py", "evaluation/facts.py", "easyedit/__init__.py", "comparison/cell.py", file):
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == file else "")
    assert any(said.format(PACKAGE) in line for line in broken_rules(tmp_path)), broken_rules(tmp_path)


def test_the_architecture_page_names_files_that_exist_and_every_package() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.(?:py|css|html\.j2))`", page))
    assert len(named) > 40
    assert [name for name in sorted(named) if not any((base / name).is_file() for base in (ROOT / PACKAGE, ROOT))] == []
    assert {f"{part}/" for part in HEIGHT if (ROOT / PACKAGE / part).is_dir()} <= set(
        re.findall(r"^\| `(\w+/)`", page, re.MULTILINE)
    )
