"""The section on null spaces: spectra, nullity and leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..comparison.results import Comparison
from . import grid
from .figures import Picture, layers_panel, spectrum_panel
from .grid import Cell, Grid
from .section import PROJECTION, Section
from .style import MARKERS, Style
from .words import held

_QUANTILES = (0, 10, 25, 50, 75, 90, 100)


def null_spaces(comparison: Comparison, looks: Mapping[str, Style]) -> Section | None:
    spectra = {int(layer): values for layer, values in (comparison.settings.get("spectra") or {}).items()}
    spaces: Mapping[str, Any] = comparison.settings.get("null_spaces") or {}
    spectra = {layer: values for layer, values in spectra.items() if len(values)}
    if not spectra and not spaces:
        return None
    pictures: list[Picture] = []
    grids: list[Grid] = []
    criteria = [space.get("criterion") for space in spaces.values()]
    if spectra:
        shades = [
            Style("blue", "", opacity=0.3 + 0.7 * index / max(1, len(spectra) - 1)) for index in range(len(spectra))
        ]
        panel = spectrum_panel(spectra, _thresholds(criteria), shades)
        pictures.append(
            Picture(
                "Eigenvalues of the covariance C of preserved keys. Directions below the threshold are called null: "
                "P projects onto them. What they still hold of C is leakage.",
                [panel],
                [(f"layer {layer}", shade) for layer, shade in zip(spectra, shades, strict=True)],
                Grid(
                    "Eigenvalues of C at some ranks",
                    ["layer", *(f"{share} %" for share in _QUANTILES)],
                    [
                        (
                            Cell(str(layer), layer),
                            [number_of(values[round(share / 100 * (len(values) - 1))]) for share in _QUANTILES],
                        )
                        for layer, values in spectra.items()
                    ],
                ),
            )
        )
    same = _shared(spaces)
    if same:
        series = _shared_looks(same, looks)
        nullity = {each.names[0]: each.nullity for each in same}
        leakage = {each.names[0]: each.leakage for each in same}
        drawn = (
            ("nullity", "nullity, directions", nullity, "{:.0f}"),
            ("null-leakage", "leakage tr(PCP)/tr(C) %", leakage, "{:.1f}"),
        )
        pictures.append(
            Picture(
                "How many directions of the input are null, and the share of C that P lets through.",
                [
                    layers_panel(name, title, values, series, form)
                    for name, title, values, form in drawn
                    if any(values.values())
                ],
                [(f"{each.criterion}: {', '.join(each.names)}", series[each.names[0]]) for each in same],
            )
        )
        grids = [
            Grid(
                f"{each.criterion}: {', '.join(each.names)}",
                ["layer", "nullity", "leakage %"],
                [
                    (
                        Cell(str(layer), layer),
                        [grid.number(each.nullity.get(layer), "{:.0f}"), grid.number(each.leakage.get(layer))],
                    )
                    for layer in sorted(each.nullity | each.leakage)
                ],
            )
            for each in same
        ]
    return Section("null-spaces", "Null spaces", held(comparison), PROJECTION, pictures, grids)


def number_of(value: float) -> Cell:
    return Cell(f"{value:.1e}", value)


def _thresholds(criteria: Sequence[Any]) -> list[float]:
    """The thresholds among the criteria ("threshold 0.02" or {"threshold": 0.02}); others have no line to draw."""
    found = []
    for criterion in criteria:
        if isinstance(criterion, Mapping):
            found.append(criterion.get("threshold"))
        else:
            kind, _, value = str(criterion).replace("=", " ").partition(" ")
            found.append(float(value) if kind == "threshold" and _is_number(value) else None)
    return sorted({value for value in found if value is not None})


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


@dataclass
class _Shared:
    """Null spaces by layer, and the variants that use them: usually several share them."""

    criterion: str
    nullity: dict[int, float]
    leakage: dict[int, float]
    names: list[str]


def _shared(spaces: Mapping[str, Any]) -> list[_Shared]:
    """The distinct null spaces: by criterion, and apart if they come from other text and so differ on some layer."""
    found: list[_Shared] = []
    for variant, space in spaces.items():
        criterion = space.get("criterion")
        if isinstance(criterion, Mapping):
            criterion = ", ".join(f"{key} {value}" for key, value in criterion.items() if value is not None)
        nullity, leakage = (
            {int(layer): scale * float(value) for layer, value in (space.get(key) or {}).items()}
            for key, scale in (("nullity", 1), ("leakage", 100))
        )
        one = _Shared(str(criterion or "–"), nullity, leakage, [variant])
        for other in found:
            if other.criterion == one.criterion and _agree(other.nullity, nullity) and _agree(other.leakage, leakage):
                other.nullity |= nullity
                other.leakage |= leakage
                other.names.append(variant)
                break
        else:
            found.append(one)
    return found


def _agree(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    return all(one[layer] == other[layer] for layer in one.keys() & other.keys())


def _shared_looks(same: Sequence[_Shared], looks: Mapping[str, Style]) -> dict[str, Style]:
    """Looks by first variant: its own look if it has null spaces for itself, ink if several share them."""
    found: dict[str, Style] = {}
    for index, (name, *others) in enumerate(each.names for each in same):
        ink = Style("ink", MARKERS[index % len(MARKERS)], solid=index % 2 == 0)
        found[name] = ink if others or name not in looks else looks[name]
    return found
