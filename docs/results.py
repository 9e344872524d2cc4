"""From runs to pages: no number in a table between marks is typed.

    python docs/results.py collect RUNS     # RUNS/NAME/summary.json → docs/results/NAME.json, pictures too
    python docs/results.py pages            # docs/results/*.json → the tables between the marks in docs/*.md
    python docs/results.py last 100 A.json B.json   # the last 100 records of a file, for facts that no table uses
    python docs/results.py text A.txt B.txt C.txt   # the first 85 %, for K0, and the next 60,000 characters

A mark is `<!-- results: NAME … -->`, and a table goes up to `<!-- end -->`. Behind the name stand the columns that are
shown (all, if there are none), and `every` for a row at each checkpoint instead of at the last one, or `at=500` for
another one. Rows without any of these columns are left out. `gains` is what lies between the frontiers of a study,
`relations` efficacy by relation.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from alphaedit_plugin.comparison.results import BEFORE, SEVERAL, Comparison, Row, shared_checkpoint
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.evaluation.measure import Estimate, Measured
from alphaedit_plugin.evaluation.metrics import METRICS
from alphaedit_plugin.report.columns import columns
from alphaedit_plugin.report.export import cell_title
from alphaedit_plugin.report.frontier_section import frontiers
from alphaedit_plugin.report.sections import by_relation
from alphaedit_plugin.report.words import answer, finding, held
from alphaedit_plugin.storage.files import write_text

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
_KEPT = (
    "command", "commands", "date", "study", "model", "data", "format", "seed", "edits", "facts", "batch_size",
    "checkpoints", "variants", "targets_found", "failed", "environment",
)  # fmt: skip
_GRIDS = ("gains", "relations")
_WEIGHTS = ("drift", "leakage", "seconds")
_PICTURE = re.compile(r"\(results/([^)]+\.png)\)")
_MARK = re.compile(r"<!-- results: (?P<what>[^>]+?) -->\n.*?<!-- end -->", re.DOTALL)


def collect(runs: Path, into: Path = RESULTS) -> list[str]:
    """Copy what the pages need of every finished or begun run: a few kB each, and pictures. Returns their names."""
    shown = {name for page in DOCS.glob("*.md") for name in _PICTURE.findall(page.read_text(encoding="utf-8"))}
    found = sorted(path.parent for path in runs.glob("*/summary.json"))
    for run in found:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        for comparison, whole in zip(summary["comparisons"], read_run(run), strict=True):
            comparison["told"], comparison["grids"] = _told(whole)
            settings = comparison["settings"]
            comparison["settings"] = {key: settings[key] for key in _KEPT if settings.get(key) is not None}
            comparison["settings"]["data"] = SEVERAL.join(Path(each).name for each in settings["data"].split(SEVERAL))
            for row in comparison["rows"]:
                for key in ("drift", "leakage", "capacity"):
                    row.pop(key, None)
        text = json.dumps(_rounded(summary), separators=(",", ":"), ensure_ascii=False).replace(
            '{"variant"', '\n{"variant"'
        )
        write_text(into / f"{run.name}.json", text + "\n", CompareError)
        for figure in sorted((run / "figures").glob("*.png")):
            if (name := f"{run.name}-{figure.name}") in shown:
                shutil.copyfile(figure, into / name)
    return [run.name for run in found]


def _told(comparison: Comparison) -> tuple[list[str], dict[str, list[list[str]]]]:
    """The verdict's sentences, and the tables that have no row per variant, by the word that asks for them."""
    frontier, relations = frontiers(comparison, {}), by_relation(comparison, {})
    grids = {"gains": frontier and frontier.grids[0], "relations": relations and relations.grids[0]}
    tables = {
        word: [[*grid.head], *([first.text, *(cell.text for cell in cells)] for first, cells in grid.rows)]
        for word, grid in grids.items()
        if grid
    }
    if frontier is not None:
        return [frontier.text], tables
    return [each for each in (answer(comparison), finding(comparison), held(comparison)) if each], tables


def _rounded(value: Any) -> Any:
    """Five digits are more than any table shows."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(_rounded, value)]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read(path: Path) -> list[Comparison]:
    """The comparisons of a file that `collect` wrote; their settings have `told` and `grids` too."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    return [
        Comparison(
            [_row(row) for row in each["rows"]], {**each["settings"], "told": each["told"], "grids": each["grids"]}
        )
        for each in summary["comparisons"]
    ]


def _row(values: Mapping[str, Any]) -> Row:
    estimates = {name: Estimate(**each) for name, each in values["estimates"].items() if each["value"] is not None}
    mean = {0: values["mean_drift"]} if values["mean_drift"] else {}
    leaked = {0: values["mean_leakage"]} if values["mean_leakage"] else {}
    return Row(values["variant"], values["edits"], {"": Measured(estimates)}, values["seconds"], mean, leaked)


def written(text: str, results: Path = RESULTS) -> str:
    """A page with the tables between its marks made anew; a mark whose run is not there says so."""
    return _MARK.sub(
        lambda mark: f"<!-- results: {mark['what']} -->\n{_table(mark['what'].split(), results)}<!-- end -->", text
    )


def _table(words: Sequence[str], results: Path) -> str:
    name, *chosen = words
    path = results / f"{name}.json"
    if not path.is_file():
        return "\nNot run yet.\n\n"
    every = "every" in chosen
    at = next((int(word.removeprefix("at=")) for word in chosen if word.startswith("at=")), None)
    names = [word for word in chosen if word != "every" and not word.startswith("at=")]
    if unknown := set(names) - {*METRICS, *_WEIGHTS, *_GRIDS}:
        raise CompareError(
            f"<!-- results: {' '.join(words)} --> asks for {', '.join(sorted(unknown))}: no run has that"
        )
    return "".join(_one(comparison, names, every, at) for comparison in read(path))


def _one(comparison: Comparison, names: Sequence[str], every: bool, at: int | None) -> str:
    settings = comparison.settings
    edits = shared_checkpoint([comparison]) if at is None else at
    rows = [row for row in comparison.rows if every or row.variant == BEFORE or row.edits == edits]
    found = [column for column in columns(rows) if not names or column.name in names]
    rows = [row for row in rows if any(column.of(row) for column in found)]
    grid = settings["grids"].get(names[0]) if len(names) == 1 else None
    if not rows and grid is None:
        return "\nNot run yet.\n\n"
    body = []
    for row in rows:
        cells = [column.text(row) + (f" ± {column.half(row)}" if column.half(row) else "") for column in found]
        body.append([f"`{row.variant}`", *([row.edits] if every else []), *cells])
    head = ["variant", *(["edits"] if every else []), *(column.label for column in found)]
    told = [f"{cell_title(comparison)}, {edits:,} edits in batches of {settings['batch_size']}"]
    told += [f"alphaedit-plugin {settings['environment']['alphaedit_plugin']}, {settings['date']}"]
    missing = {**comparison.unfinished, **dict.fromkeys(comparison.failed, 0)} if at is None else {}
    told += [f"not finished: {', '.join(missing)}"] if missing else []
    if grid is not None:
        head, *body = grid
    table = tabulate(body, head, "github", disable_numparse=True, colalign=["left", *("right" for _ in head[1:])])
    partial = every or at is not None or names == ["relations"]
    verdict = "" if partial else "".join(f"{each}\n\n" for each in settings["told"])
    asked = settings.get("commands") or [settings["command"]]
    shown = _with_all(asked, comparison.variants)
    commands = "".join(f"`{_command(each)}`\n\n" for each in shown)
    return f"\n{'; '.join(told)}:\n\n{table}\n\n{verdict}{commands}"


def _command(words: Sequence[str]) -> str:
    """The command without the folders of the machine that it ran on, and without what changes no number."""
    named = [Path(word).name if word.startswith("/") else word for word in words if word not in ("--quiet", "--worker")]
    return shlex.join(named)


def _with_all(commands: Sequence[Sequence[str]], variants: Sequence[str]) -> list[list[str]]:
    """The commands, the first of them with the methods that a folder has and no command names: of its first commands a
    folder from before it kept them all remembers only the last. A study makes its own methods of those it is given.
    """
    first, *others = [[*words] for words in commands]
    if "--methods" not in first or "--study" in first:
        return [first, *others]
    start = first.index("--methods") + 1
    end = next((at for at in range(start, len(first)) if first[at].startswith("--")), len(first))
    named = {word for words in others for word in words[2:]} - {*first[start:end]}
    first[start:end] = [variant for variant in variants if variant not in named]
    return [first, *others]


def last(count: int, source: Path, target: Path) -> None:
    """Write the last records of a JSON file to another."""
    records = json.loads(source.read_text(encoding="utf-8"))
    write_text(target, json.dumps(records[-count:], ensure_ascii=False, indent=1), CompareError)


def split_text(source: Path, corpus: Path, held_out: Path) -> None:
    """Write the first 85 % of a text to one file and the next 60,000 characters to another."""
    whole = source.read_text(encoding="utf-8")
    end = int(0.85 * len(whole))
    write_text(corpus, whole[:end], CompareError)
    write_text(held_out, whole[end : end + 60_000], CompareError)


def main(words: Sequence[str]) -> None:
    match words:
        case ["collect", runs]:
            print("\n".join(collect(Path(runs))))
        case ["pages"]:
            before = {page: page.read_text("utf-8") for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))}
            for page, text in {page: written(text) for page, text in before.items()}.items():
                if text != before[page]:
                    write_text(page, text, CompareError)
        case ["last", count, source, target]:
            last(int(count), Path(source), Path(target))
        case ["text", source, corpus, held_out]:
            split_text(Path(source), Path(corpus), Path(held_out))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CompareError as failure:
        sys.exit(f"error: {failure}")
