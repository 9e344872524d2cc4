"""What can be imported from `alphaedit_plugin` itself, and what importing it does not do."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest
from support.paths import ROOT, TESTS
from support.public_api import described

import alphaedit_plugin


def python(code: str, cwd=ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_api_is_the_one_that_was_agreed_on():
    expected = (TESTS / "data" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    assert list(described()) == expected, (
        "if that is meant: python tests/support/public_api.py > tests/data/public_api.txt"
    )


def test_every_name_comes_from_its_home_and_is_documented():
    assert set(alphaedit_plugin.__all__) == set(alphaedit_plugin._HOME) <= set(dir(alphaedit_plugin))
    for name in alphaedit_plugin.__all__:
        found = getattr(alphaedit_plugin, name)
        assert found.__module__ == f"alphaedit_plugin.{alphaedit_plugin._HOME[name]}"
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'gaurd'"):
        _ = alphaedit_plugin.gaurd


def test_the_type_checker_sees_the_same_names_as_the_interpreter():
    tree = ast.parse((ROOT / "alphaedit_plugin/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == alphaedit_plugin._HOME


@pytest.mark.parametrize(
    "module", ["alphaedit_plugin", "alphaedit_plugin.easyedit", "alphaedit_plugin.editors.registry"]
)
def test_importing_is_light(module):
    loaded = json.loads(python(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "transformers", "numpy", "easyeditor"} & set(loaded)


def test_readme_and_examples_use_only_the_front_door():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sources |= {f"README, block {i}": code for i, code in enumerate(re.findall(r"```python\n(.*?)```", readme, re.S))}
    assert len(sources) > 3
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alphaedit_plugin"):
                assert node.module == "alphaedit_plugin", f"{name} imports from {node.module}"
                assert {alias.name for alias in node.names} <= set(alphaedit_plugin.__all__), name
            if isinstance(node, ast.Import):
                ours = [alias.name for alias in node.names if alias.name.startswith("alphaedit_plugin")]
                assert set(ours) <= {"alphaedit_plugin", "alphaedit_plugin.easyedit"}, name
