"""One self-contained HTML page of one or more comparisons, and its figures as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup

from ..comparison.results import Comparison
from ..errors import CompareError
from ..storage.files import write_text
from ..visible import visible
from . import figures
from .export import cell_title
from .figures import Picture
from .frontier import FRONTIER
from .paired_section import changes
from .section import Section
from .sections import over_seeds, sections
from .style import THEME, styles
from .words import answer, caveats, finding, question

PAGE = "report.html"

_MARKERS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "s": "M-3.5-3.5h7v7h-7Z",
    "^": "M0-4.2L4.2 3.4H-4.2Z",
    "v": "M0 4.2L4.2-3.4H-4.2Z",
    "D": "M0-4.5L4.5 0L0 4.5L-4.5 0Z",
    "P": "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7Z",
    "X": "M-2.2-4.2L0-2L2.2-4.2L4.2-2.2L2 0L4.2 2.2L2.2 4.2L0 2L-2.2 4.2L-4.2 2.2L-2 0L-4.2-2.2Z",
}
"""matplotlib's markers as SVG paths around 0, for the page's legends."""


def write_report(comparisons: Sequence[Comparison], folder: str | Path) -> Path:
    """Write `folder`/report.html, and every figure as PNG and SVG to `folder`/figures; returns the page's path.

    The page needs no network and no other file. It has sections only for what was measured. All of its text is escaped.
    Raises CompareError if it cannot be written, or if there is nothing to report.
    """
    folder = Path(folder)
    if not comparisons:
        raise CompareError("there is nothing to report: the run has no comparison yet")
    looks = styles(comparisons)
    cells = []
    for index, comparison in enumerate(comparisons, 1):
        prefix = f"c{index}" if len(comparisons) > 1 else "c"
        found = sections(comparison, looks)
        told = next((section.text for section in found if section.id == FRONTIER), "")  # which is its verdict
        found = [replace(section, text="") if section.id == FRONTIER else section for section in found]
        cells.append(
            {
                "id": prefix,
                "name": cell_title(comparison),
                "settings": comparison.settings,
                "answer": told or answer(comparison),
                "finding": "" if told else finding(comparison),
                "changes": None if told else changes(comparison),
                "caveats": caveats(comparison),
                "sections": [_drawn(section, prefix, folder) for section in found],
                "topics": list(dict.fromkeys(section.topic for section in found if section.topic)),
            }
        )
    here = files("alphaedit_plugin.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    text = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8")).render(
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
        title=question(comparisons),
        cells=cells,
        seeds=[*_seeds(comparisons)],
        theme=THEME,
        markers=_MARKERS,
        date=comparisons[0].settings.get("date") or date.today().isoformat(),
    )
    write_text(folder / PAGE, visible(text), CompareError)
    return folder / PAGE


def _drawn(section: Section, prefix: str, folder: Path) -> dict[str, Any]:
    """The section with its pictures as SVG. Also writes the pictures' files."""
    return {**vars(section), "pictures": [_picture(picture, prefix, folder) for picture in section.pictures]}


def _picture(picture: Picture, prefix: str, folder: Path) -> dict[str, Any]:
    from markupsafe import Markup

    drawn = [Markup(figures.inline(panel, prefix)) for panel in picture.panels]  # ElementTree has escaped it
    for panel in picture.panels:
        figures.save(panel, picture, folder / "figures", prefix)
    return {**vars(picture), "panels": drawn}


def _seeds(comparisons: Sequence[Comparison]) -> Iterator[Any]:
    """One table per model and data set that has several seeds."""

    def key(comparison: Comparison) -> tuple[str, str, str]:
        return tuple(str(comparison.settings.get(name)) for name in ("model", "data", "edits"))  # type: ignore[return-value]

    for _, same in groupby(sorted(comparisons, key=key), key):
        group = list(same)
        if len(group) > 1:
            yield over_seeds(group)
