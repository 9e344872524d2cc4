"""How things look on the page and in its figures: colours for light and dark, and the style of each variant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..comparison.results import Comparison

HUES = ("blue", "vermilion", "green", "purple", "ochre", "cyan", "slate")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

THEME = {
    "ink": ("#1d2228", "#e8e6e1"),
    "muted": ("#56606b", "#a7aeb6"),
    "grid": ("#dde1e6", "#363c44"),
    "paper": ("#ffffff", "#15181c"),
    # Okabe & Ito's hues, each at least 3:1 against its paper.
    "blue": ("#0072b2", "#5aaef0"),
    "vermilion": ("#d55e00", "#ff8f57"),
    "green": ("#00805f", "#3fcaa0"),
    "purple": ("#a54f88", "#e5a0cb"),
    "ochre": ("#946700", "#e3b94c"),
    "cyan": ("#2f93ad", "#9fe0ee"),
    "slate": ("#6b7684", "#b8c1cb"),
}
"""Colours by name, for light and for dark. Figures are drawn in the light ones, which are all different."""


def colour(name: str) -> str:
    return THEME[name][0]


@dataclass(frozen=True)
class Style:
    """The style of one thing in a figure and in its legend; projected variants are solid and filled."""

    hue: str
    marker: str = "o"
    solid: bool = True
    line: bool = True
    opacity: float = 1.0

    @property
    def dashes(self) -> str | tuple[float, tuple[float, ...]]:
        return "-" if self.solid else (0.0, (4.0, 2.0))

    @property
    def face(self) -> str:
        return colour(self.hue if self.solid else "paper")


def base_of(variant: str) -> str:
    """The variant's name without its projection: `memit` for `memit+P`."""
    return variant.removesuffix("+P")


def method_of(variant: str) -> str:
    """The variant's name without settings: `memit+P` for `memit@mom2_update_weight=0+P`."""
    return re.sub(r"@[^@+]*", "", variant)


def pairs(variants: Sequence[str]) -> list[tuple[str, str | None, str | None]]:
    """(method, variant without P, variant with P) in order of appearance; None for the half that was not run."""
    found: dict[str, list[str | None]] = {}
    for variant in variants:
        found.setdefault(base_of(variant), [None, None])[variant.endswith("+P")] = variant
    return [(base, plain, projected) for base, (plain, projected) in found.items()]


def styles(comparisons: Iterable[Comparison]) -> dict[str, Style]:
    """One style per variant, the same on the whole page: the method's hue and marker, solid if it is projected.

    A variant is projected if its name says so, or if it has null spaces (AlphaEdit has them by itself).
    """
    comparisons = list(comparisons)
    variants = list(dict.fromkeys(name for comparison in comparisons for name in comparison.variants))
    return alike(
        variants, {name for comparison in comparisons for name in comparison.settings.get("null_spaces") or {}}
    )


def alike(variants: Sequence[str], projected: Collection[str]) -> dict[str, Style]:
    """One style per variant: those with and without P share hue and marker; solid if it is one of `projected`."""
    found = {}
    for index, (_, plain, with_) in enumerate(pairs(variants)):
        for name in (plain, with_):
            if name is not None:
                solid = name is with_ or name in projected
                marker = MARKERS[(index + index // len(HUES)) % len(MARKERS)]  # where hues repeat, markers differ
                found[name] = Style(HUES[index % len(HUES)], marker, solid)
    return found
