"""`alphaedit trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import CompareError
from ..model import DEMO_MODEL
from .console import console
from .loading import loaded
from .options import Loading, Model, Pilot, Place, Quiet, positive


def trace(
    model: Model = Place(DEMO_MODEL),
    *,
    facts: Pilot = None,
    samples: Annotated[int, Parameter(validator=positive, help="Draws of noise per fact.")] = 10,
    window: Annotated[
        int | None,
        Parameter(
            validator=positive, help="Blocks whose feed-forward outputs are restored together. Default: a fifth."
        ),
    ] = None,
    plot: Annotated[Path | None, Parameter(help="Also draw the heat maps, into this PNG, SVG or PDF file.")] = None,
    quiet: Quiet = False,
    loading: Loading = Loading(),
) -> None:
    """Show where a model recalls facts: the causal trace of ROME, layer by layer and position by position."""
    from rich.table import Table

    from ..nullspace.spectrum import check_format
    from ..storage.files import check_place
    from ..tuning.causal_trace import CLASSES, causal_trace
    from .pilot import pilot

    if plot is not None:
        check_place(plot, CompareError)
        check_format(plot)
    chosen, _ = pilot(facts)
    found = causal_trace(
        *loaded(model, loading),
        [fact.request for fact in chosen],
        window=window,
        samples=samples,
        progress=not quiet,
    )
    table = Table(
        title=f"{escape(model)}: points of the object's probability that restoring a state gives back",
        caption=f"{found.facts} facts: {100 * found.clean:.1f} % clean, {100 * found.corrupted:.1f} % with the subject "
        f"corrupted; the hidden state of one block (left), the feed-forward outputs of {found.window} (right)",
    )
    table.add_column("layer", justify="right")
    for name in CLASSES:
        table.add_column(name, justify="right")
    for layer in range(found.depth):
        cells = [
            f"{_points(float(found.hidden[row, layer]))} {_points(float(found.mlp[row, layer]))}"
            for row in range(len(CLASSES))
        ]
        table.add_row(str(layer), *cells)
    console.print(table)
    console.print(f"most recall at the subject's last token: layers {', '.join(map(str, found.best_layers(5)))}")
    if plot is not None:
        from ..report.trace_picture import draw_trace

        draw_trace(found, plot, model)
        console.print(f"heat maps drawn in {escape(str(plot.resolve()))}")


def _points(share: float) -> str:
    return f"{100 * share:5.1f}" if share == share else "    –"
