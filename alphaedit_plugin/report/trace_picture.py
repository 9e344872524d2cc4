"""The picture of a causal trace, as in ROME's figures: where in the prompt and in which layer a model recalls facts."""

from __future__ import annotations

from pathlib import Path

from ..errors import CompareError
from ..storage.files import atomic
from ..tuning.causal_trace import CLASSES, CausalTrace
from .figures import heat_maps


def draw_trace(trace: CausalTrace, path: Path, model: str) -> None:
    """Two heat maps, classes of positions × layers, in one file of any format that matplotlib knows by its suffix.

    Raises CompareError if it cannot be written.
    """
    title = f"{model}: what restoring a state gives back of an object's probability, {trace.facts} facts"
    maps = {
        "hidden state of one block": (100 * trace.hidden).tolist(),
        f"feed-forward outputs of {trace.window} blocks": (100 * trace.mlp).tolist(),
    }
    figure = heat_maps(title, maps, CLASSES, "layer", "indirect effect, points of probability")
    with atomic(path, CompareError) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower(), dpi=150, facecolor="white")
