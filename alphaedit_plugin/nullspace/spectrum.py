"""The spectrum of preserved keys: what each threshold would make null, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import AlphaEditError, NullSpaceError
from ..storage.files import atomic
from .projection import Criterion, NullSpace, energy_share

LISTED_THRESHOLDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one layer's C, ascending, and which of them the chosen criterion calls null."""

    layer: int
    eigenvalues: Tensor
    criterion: Criterion
    nullity: int

    @classmethod
    def of(cls, layer: int, null_space: NullSpace, criterion: Criterion) -> Spectrum:
        return cls(layer, null_space.eigenvalues, criterion, null_space.nullity)

    def leakage(self, nullity: int) -> float:
        """tr(PCP)/tr(C) when the `nullity` smallest eigenvalues are null."""
        return energy_share(self.eigenvalues, nullity)

    @property
    def boundary(self) -> float:
        """The eigenvalue below which the chosen criterion calls a direction null."""
        if self.criterion.threshold is not None:
            return self.criterion.threshold
        return float(self.eigenvalues[min(self.nullity, len(self.eigenvalues) - 1)])


def check_format(path: Path) -> None:
    """Raises AlphaEditError if matplotlib cannot write such a file. Call it before a long computation."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise AlphaEditError(f"{path} cannot be drawn: its name must end in one of .{', .'.join(sorted(known))}")


def plot(spectra: list[Spectrum], path: Path) -> None:
    """A PNG (or any format matplotlib knows by its suffix): eigenvalues of each layer and the boundary.

    Raises AlphaEditError if matplotlib does not know the format.
    """
    check_format(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for index, spectrum in enumerate(spectra):
        colour = f"C{index}"
        values = spectrum.eigenvalues.clamp_min(1e-12).numpy()
        axes.plot(range(1, len(values) + 1), values, color=colour, lw=1.6, label=f"layer {spectrum.layer}")
        axes.plot(spectrum.nullity, spectrum.boundary, "o", color=colour, ms=5)
    threshold = spectra[0].criterion.threshold
    if threshold is not None:
        axes.axhline(threshold, color="0.4", lw=1, ls="--")
        axes.annotate(f"threshold {threshold:g}", (1, threshold), va="bottom", fontsize=9, color="0.3")
    axes.set_yscale("log")
    axes.set_xlabel("eigenvectors of C, from the most null")
    axes.set_ylabel("eigenvalue (mean squared key along it)")
    axes.set_title(f"Preserved keys: left of its dot, a layer's directions are null ({spectra[0].criterion})")
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.legend(frameon=False)
    with atomic(path, NullSpaceError) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."))
