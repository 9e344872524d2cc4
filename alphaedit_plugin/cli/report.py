"""`alphaedit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from .console import console


def report(
    run: Annotated[Path, Parameter(help="A folder that `alphaedit compare` wrote, finished or not.")], /
) -> None:
    """Write the tables and the HTML page of a comparison anew, and print its tables."""
    from ..comparison.run_folder import read_run
    from ..report.export import export
    from ..report.page import write_report
    from ..report.tables import table

    comparisons = read_run(run)
    export(comparisons, run)
    for comparison in comparisons:
        console.print(table(comparison))
    console.print(f"report: {escape(str(write_report(comparisons, run)))}")
