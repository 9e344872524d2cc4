"""`alphaedit prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import NullSpaceError, StatisticsError
from ..model import DEMO_MODEL
from .console import console, size
from .options import Loading, Method, Model, Place, Preparing, Quiet


def prepare(
    model: Model = Place(DEMO_MODEL),
    *,
    method: Method = "alphaedit",
    out: Annotated[Path | None, Parameter(help="Also write the null spaces to this .safetensors file.")] = None,
    npz: Annotated[
        Path | None, Parameter(help="Also write .npz statistics, as EasyEdit and ROME read them, to this folder.")
    ] = None,
    quiet: Quiet = False,
    preparing: Preparing = Preparing(),
    loading: Loading = Loading(),
) -> None:
    """Compute a model's covariances and null spaces, once, into the cache."""
    from rich.table import Table

    from ..storage.files import check_place
    from .preparing import Prepared

    if out is not None:
        check_place(out, NullSpaceError)
    if npz is not None:
        check_place(npz, StatisticsError, folder=True)
    ready = Prepared.of(method, model, preparing, loading, quiet)
    table = Table(title=f"{escape(model)}: null spaces at {ready.hyperparameters.null_space}")
    for title in ("layer", "d_in", "nullity", "leakage", "factored P", "dense P (float32)"):
        table.add_column(title, justify="right")
    for layer, space in ready.null_spaces.items():
        table.add_row(
            str(layer),
            str(space.d_in),
            f"{space.nullity} ({100 * space.nullity / space.d_in:.0f} %)",
            f"{space.leakage(ready.statistics.covariances[layer]):.3f}",
            size(space.factor.numel() * 4),
            size(space.d_in**2 * 4),
        )
    console.print(table)
    text = ready.statistics.provenance["text"]
    source, root = escape(str(ready.statistics.provenance["source"])), escape(str(ready.ground.preparation.store.root))
    console.print(f"from {text['tokens']:,} tokens of {source}; cached in {root}")
    if out is not None:
        ready.null_spaces.save(out)
        console.print(f"null spaces written to {escape(str(out))}")
    if npz is not None:
        for path in ready.statistics.save_npz(ready.ground.model, npz, text["tokens"]):
            console.print(f"statistics written to {escape(str(path))}")
