"""`alphaedit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import NullSpaceError
from ..model import DEMO_MODEL
from .console import console
from .options import Loading, Method, Model, Place, Preparing, Quiet


def inspect(
    model: Model = Place(DEMO_MODEL),
    *,
    method: Method = "alphaedit",
    plot: Annotated[Path | None, Parameter(help="Also draw the spectra, into this PNG, SVG or PDF file.")] = None,
    quiet: Quiet = False,
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
) -> None:
    """Show what different thresholds would make null in each layer, and draw the spectra."""
    from rich.table import Table

    from ..nullspace.spectrum import LISTED_THRESHOLDS, Spectrum, check_format
    from ..nullspace.spectrum import plot as draw
    from ..storage.files import check_place
    from .preparing import Prepared

    if plot is not None:
        check_place(plot, NullSpaceError)
        check_format(plot)
    ready = Prepared.of(method, model, preparing, loading, quiet)
    criterion = ready.hyperparameters.null_space
    spectra = [Spectrum.of(layer, space, criterion) for layer, space in ready.null_spaces.items()]
    table = Table(
        title=f"{escape(model)}: nullity (leakage) by threshold; chosen: {criterion}",
        caption="leakage tr(PCP)/tr(C): the share of preserved keys' energy that the null space still holds",
    )
    marked = criterion.threshold
    table.add_column("layer", justify="right")
    table.add_column("d_in", justify="right")
    for value in LISTED_THRESHOLDS:
        chosen_one = marked == value
        table.add_column(f"[reverse]▸{value:g}[/reverse]" if chosen_one else f"{value:g}", justify="right")
    if marked not in LISTED_THRESHOLDS:
        table.add_column(f"[reverse]▸{criterion}[/reverse]", justify="right")
    for spectrum in spectra:
        counts = [int((spectrum.eigenvalues < value).sum()) for value in LISTED_THRESHOLDS]
        if marked not in LISTED_THRESHOLDS:
            counts.append(spectrum.nullity)
        cells = [f"{count}\n({spectrum.leakage(count):.2f})" if count else "–" for count in counts]
        column = LISTED_THRESHOLDS.index(marked) if marked in LISTED_THRESHOLDS else len(cells) - 1
        cells[column] = f"[bold]{cells[column]}[/bold]"
        table.add_row(str(spectrum.layer), str(len(spectrum.eigenvalues)), *cells)
    console.print(table)
    text = ready.statistics.provenance["text"]
    console.print(f"from {text['tokens']:,} tokens of {escape(str(ready.statistics.provenance['source']))}")
    if plot is not None:
        draw(spectra, plot)
        console.print(f"spectra drawn in {escape(str(plot.resolve()))}")
