"""Progress bars: where somebody watches, and nowhere else."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


def progress_bar(*items: Any, shown: bool, **options: Any) -> Any:
    """tqdm's bar if it is to be `shown` and there is a terminal or a notebook to show it; none in a pipe or a file.

    One that runs inside another goes when it ends, if `leave=False` says so.
    """
    return tqdm(*items, disable=None if shown else True, dynamic_ncols=True, **options)
