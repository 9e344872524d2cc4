"""What people install is all there: the wheel, built from the sdist of a clean copy, works outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

import alphaedit_plugin

PACKAGE = "alphaedit_plugin"
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "site", "runs")


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def shipped_files() -> set[str]:
    """What a wheel has to hold, as the tree has it."""
    return {
        *(f"{PACKAGE}/{name}" for name in files_below(ROOT / PACKAGE)),
        *(f"{PACKAGE}/{folder}/{name}" for folder in ("examples", "hparams") for name in files_below(ROOT / folder)),
    }


def build(what: str, source: Path, to: Path) -> Path:
    """Build an "sdist" or a "wheel" by the hook that pip calls, with the setuptools that is installed."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, to], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(ROOT, tmp_path_factory.mktemp("clean") / "copy", ignore=NOT_OURS)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_outside(unpacked: Path, *arguments: str) -> str:
    """What Python prints with the unpacked wheel first on its path, far from the checkout."""
    elsewhere = unpacked.parent
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == shipped_files()
    assert f"{PACKAGE}/py.typed" in held
    assert {name.rpartition(".")[2] for name in held} >= {"py", "j2", "css", "js", "yaml", "json", "txt"}


@pytest.mark.slow
def test_sdist_holds_the_tests_and_the_documentation_too(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "examples", "hparams", PACKAGE):
        assert held >= {f"{folder}/{name}" for name in files_below(ROOT / folder)}
    assert held >= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile", "mkdocs.yml"}


@pytest.mark.slow
def test_wheel_describes_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(archive.read(name).decode())
    assert described["Name"] == "alphaedit-plugin"
    assert described["Version"] == alphaedit_plugin.__version__
    assert described["License-Expression"] == "MIT"
    assert described["Author"] == "alphaedit-plugin contributors"
    assert described["Requires-Python"] == ">=3.11"
    extras = set(described.get_all("Provides-Extra"))
    (of_all,) = (each for each in described.get_all("Requires-Dist") if 'extra == "all"' in each)
    assert set(re.findall(r"\w+", of_all.partition("[")[2].partition("]")[0])) == extras - {"all", "tests"}
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(table) >= extras - {"tests"}, "README says what each extra is for"


@pytest.mark.slow
def test_unpacked_wheel_works_far_from_the_checkout(unpacked: Path) -> None:
    assert run_outside(unpacked, "-m", PACKAGE, "--version") == alphaedit_plugin.__version__
    printed = run_outside(
        unpacked,
        "-c",
        "import json, alphaedit_plugin, yaml\n"
        "from alphaedit_plugin.storage.shipped import shipped\n"
        "print(alphaedit_plugin.__file__)\n"
        "hparams, facts = shipped('hparams/AlphaEdit/gpt2-xl.yaml'), shipped('examples/facts.json')\n"
        "print(hparams, *yaml.safe_load(hparams.read_text(encoding='utf-8'))['layers'])\n"
        "print(facts, len(json.loads(facts.read_text(encoding='utf-8'))))\n",
    ).splitlines()
    assert printed == [
        str(unpacked / PACKAGE / "__init__.py"),
        f"{unpacked / PACKAGE / 'hparams/AlphaEdit/gpt2-xl.yaml'} 13 14 15 16 17",
        f"{unpacked / PACKAGE / 'examples/facts.json'} 200",
    ]


def test_citation_is_valid_and_leaves_the_version_to_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(cited) >= {"cff-version", "message", "title", "authors", "license", "type", "references"}
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert "version" not in cited
    (paper,) = cited["references"]
    assert paper["authors"][0]["family-names"] == "Fang"
    assert paper["year"] == 2025
    assert {"type": "other", "value": "arXiv:2410.02355"} in paper["identifiers"]
    for work in (cited, paper):
        assert work["title"]
        assert all(set(author) & {"family-names", "name"} for author in work["authors"])


def test_changelog_begins_with_the_version_of_the_package() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == alphaedit_plugin.__version__
