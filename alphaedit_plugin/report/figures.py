"""The figures, drawn with matplotlib: small panels, side by side on a wide screen and stacked on a phone.

Each is drawn once, in the light colours of `style.THEME`. On the page these become CSS variables, so figures follow the
page into dark mode; in the files they stay light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import pairwise
from math import isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..comparison.results import Row
from ..errors import CompareError
from ..evaluation.measure import Estimate
from ..evaluation.metrics import Metric
from ..storage.files import atomic, write_text
from ..visible import visible
from .columns import Column
from .grid import Grid
from .style import THEME, Style, colour, pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 3.1)
"""The size of a panel, in inches."""
WIDE = (5.6, 3.1)
"""That of one with names beside its lines."""
FEW = 5
"""Of more lines than this the intervals would hide the lines: the table beside them has them."""
LEAST_APART = 0.066
"""Between two names, as a share of the axes' height."""

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alphaedit",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": colour("ink"),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": colour("muted"),
    "axes.linewidth": 0.7,
    "axes.labelcolor": colour("muted"),
    "axes.titlecolor": colour("ink"),
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": colour("grid"),
    "grid.linewidth": 0.7,
    "xtick.color": colour("muted"),
    "ytick.color": colour("muted"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": colour("ink"),
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Panel:
    """`alt` describes in words what the panel shows."""

    name: str
    figure: Figure
    alt: str


@dataclass(frozen=True)
class Picture:
    """Panels with a common caption and legend, and the numbers that they show."""

    caption: str
    panels: list[Panel]
    legend: list[tuple[str, Style]] = field(default_factory=list)
    data: Grid | None = None
    small: bool = False
    large: bool = False


def pairs_panel(column: Column, rows: Sequence[Row], looks: Mapping[str, Style], before: Row | None) -> Panel:
    """One line per method: hollow marks without P, filled ones with P, intervals, and the numbers beside them.

    The axis spans the edited models; where the model before any edit lies outside, an arrow says on which side.
    """
    by_name = {row.variant: row for row in rows}
    methods = pairs([name for name in by_name if name in looks])
    with _axes((SIZE[0], 1.1 + 0.36 * len(methods))) as (figure, axes):
        axes.set_title(column.label)
        axes.grid(False, axis="y")
        seen = []
        for y, (_, plain, projected) in enumerate(methods):
            shown = [
                (looks[name], estimate)
                for name in (plain, projected)
                if name is not None and (estimate := column.of(by_name[name])) is not None and isfinite(estimate.value)
            ]
            if len(shown) == 2:
                ends = [estimate.value for _, estimate in shown]
                axes.plot(ends, [y, y], color=colour(shown[0][0].hue), lw=1, alpha=0.55, zorder=2)
            for offset, (look, estimate) in zip((0.14, -0.14) if len(shown) == 2 else (0.0,), shown, strict=False):
                low, high = _ends(estimate)
                axes.plot([low, high], [y - offset] * 2, color=colour(look.hue), lw=1.6, alpha=0.45, zorder=2)
                _mark(axes, [estimate.value], [y - offset], look, size=6.5, zorder=3)
                seen += [low, high]
            text = " → ".join(column.text(by_name[name]) for name in (plain, projected) if name is not None)
            axes.annotate(
                text, (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=9, color=colour("ink"),
            )  # fmt: skip
        axes.set_yticks(range(len(methods)), [_label(base) for base, *_ in methods], color=colour("ink"), fontsize=9.5)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        start = column.of(before) if before is not None else None
        if seen:
            _mark_start(axes, min(seen), max(seen), start.value if start is not None else None, column)
        told = [f"{row.variant} {column.text(row)}" for row in rows]
        return Panel(_slug(f"pairs-{column.name}"), figure, f"Dot plot of {column.label}: {', '.join(told)}.")


def _mark_start(axes: Axes, low: float, high: float, start: float | None, column: Column) -> None:
    """The axis from low to high with some room; the model before any edit as a line in it, or an arrow towards it."""
    room = 0.06 * (high - low or abs(high) or 1)
    if start is None or not isfinite(start):
        axes.set_xlim(low - room, high + room)
        return
    nearest, width = min(max(start, low), high), high - low + 2 * room
    if abs(start - nearest) <= 0.35 * width:  # near enough to be shown on the same scale
        low, high = min(low, start), max(high, start)
        axes.axvline(start, color=colour("muted"), lw=1, ls=(0, (1, 2)), zorder=1)
    axes.set_xlim(low - room, high + room)
    side = "← " if start < low else "→ " if start > high else "┊ "
    axes.annotate(
        f"{side}before {column.form.format(start)}", (1, 1), xycoords="axes fraction", xytext=(0, 9.5),
        textcoords="offset points", ha="right", va="baseline", fontsize=9, color=colour("muted"),
    )  # fmt: skip


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Of the interval; without one both are the value."""
    return (
        estimate.value if estimate.low is None else estimate.low,
        estimate.value if estimate.high is None else estimate.high,
    )


def curves_panel(
    column: Column, series: Mapping[str, Sequence[Row]], looks: Mapping[str, Style], before: Row | None, name: str
) -> Panel:
    """A metric against the number of edits; lines start at the model before any edit, and a few have their intervals as
    thin bars. Those that reach the last checkpoint are named there.
    """
    with _axes(WIDE) as (figure, axes):
        axes.set_title(column.label)
        axes.set_xlabel("edits")
        told, seen, last = [], [], []
        start = column.of(before) if before is not None else None
        known = {
            variant: [(row.edits, estimate) for row in rows if (estimate := column.of(row)) is not None]
            for variant, rows in series.items()
        }
        known = {variant: points for variant, points in known.items() if points}
        places = [edits for points in known.values() for edits, _ in points]
        asides, end = _asides(known, places), max(places, default=0)
        for variant, points in known.items():
            look, x = looks[variant], [edits + asides[variant] for edits, _ in points]
            y = [estimate.value for _, estimate in points]
            for at, (_, estimate) in zip(x, points, strict=True) if len(known) <= FEW else ():
                axes.plot([at, at], _ends(estimate), color=colour(look.hue), lw=0.8, alpha=0.4, zorder=2)
            if start is not None:
                axes.plot([0, x[0]], [start.value, y[0]], color=colour(look.hue), ls=look.dashes, lw=1, alpha=0.35)
            axes.plot(x, y, color=colour(look.hue), ls=look.dashes, lw=1.4, zorder=3)
            _mark(axes, x, y, look, size=4.2, zorder=4)
            seen += y
            if points[-1][0] == end:
                last.append((variant, x[-1], y[-1]))
            told.append(f"{variant} goes from {column.form.format(y[0])} to {column.form.format(y[-1])}")
        if start is not None:
            seen.append(start.value)
            _mark(axes, [0], [start.value], Style("slate"), size=5, zorder=5)
        positive = [value for value in seen if value > 0]
        if positive and len(positive) == len(seen) and max(seen) > 30 * min(seen) and not column.label.endswith("%"):
            _log(axes)
        axes.margins(x=0.03)
        _whole_ticks(axes)
        _name_lines(axes, last, looks)
        return Panel(
            _slug(f"{name}-{column.name}"), figure, f"Line chart of {column.label} against edits: {'; '.join(told)}."
        )


def frontier_panel(
    written: Metric,
    kept: Metric,
    settings: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    lines: Mapping[str, Sequence[int]],
    looks: Mapping[str, Style],
) -> Panel:
    """Every setting of each method as (written, kept), and through those of `lines` the most that is written."""
    with _axes() as (figure, axes):
        axes.set_title(f"{written.label} against {kept.label}")
        axes.set_xlabel(kept.label if kept.better is max else f"{kept.label} (less is better)")
        told = []
        for method, (y, x) in settings.items():
            look, along = looks[method], lines[method]
            axes.scatter(
                x, y, s=16, marker=look.marker, facecolors=look.face, edgecolors=colour(look.hue), linewidths=0.8,
                alpha=0.45, zorder=2,
            )  # fmt: skip
            axes.plot(
                [x[at] for at in along], [y[at] for at in along], color=colour(look.hue), ls=look.dashes,
                drawstyle="steps-post", zorder=3,
            )  # fmt: skip
            _mark(axes, [x[at] for at in along], [y[at] for at in along], look, size=5, zorder=4)
            told.append(f"{method} reaches {written.form.format(max(y))}")
        if kept.better is min:
            axes.invert_xaxis()
        return Panel(
            _slug(f"frontier-{written.name}-{kept.name}"),
            figure,
            f"{written.label} against {kept.label} over all settings: {'; '.join(told)}.",
        )


def _asides(names: Iterable[str], places: Sequence[float]) -> dict[str, float]:
    """How far each line is moved aside, so that lines that coincide are all seen: a hundredth of the span or less each,
    and together no more than a fifth of the way to the next place.
    """
    names, apart = list(names), sorted(set(places))
    gap = min((b - a for a, b in pairwise(apart)), default=0.0)
    step = min(0.008 * (apart[-1] - apart[0]), 0.2 * gap / max(1, len(names) - 1)) if apart else 0.0
    return {name: (at - (len(names) - 1) / 2) * step for at, name in enumerate(names)}


def _name_lines(axes: Axes, last: Sequence[tuple[str, float, float]], looks: Mapping[str, Style]) -> None:
    """The name of each line at its end (variant, x, y), moved apart where names would collide; none for a single line.

    Call this when the axes have their limits.
    """
    found = [each for each in last if isfinite(each[2])]
    if len(found) < 2:
        return
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transScale + axes.transLimits
    ranked = sorted((float(to_axes.transform((x, y))[1]), name, x, y) for name, x, y in found)
    heights = _spread([height for height, *_ in ranked], min(LEAST_APART, 1 / (len(ranked) - 1)))
    for height, (_, name, x, y) in zip(heights, ranked, strict=True):
        hue, shown = colour(looks[name].hue), visible(name)
        axes.annotate(
            _shortened(shown, 24), (x, y), xytext=(1.03, height), textcoords="axes fraction",
            fontsize=8.5, color=hue, va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": hue, "lw": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)
            },
        )  # fmt: skip


def _spread(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights from 0 to 1 at least so far apart, near where they were: the mean of pushing up and down."""
    up: list[float] = []
    down: list[float] = []
    for height in heights:
        up.append(max(height, up[-1] + least) if up else height)
    for height in reversed(heights):
        down.insert(0, min(height, down[0] - least) if down else height)
    found = [(one + other) / 2 for one, other in zip(up, down, strict=True)]
    top = len(found) - 1
    return [min(max(height, at * least), 1 - (top - at) * least) for at, height in enumerate(found)]


def scatter_panel(variant: str, records: Sequence[Mapping[str, Any]], look: Style, number: int) -> Panel:
    """Where the hidden states of held-out facts lie before the edits and after them, in two dimensions."""
    with _axes((3.3, 3.2)) as (figure, axes):
        shown = visible(variant)
        axes.set_title(_shortened(shown, 32))
        for key, hue, solid in (("before", "slate", False), ("after", look.hue, True)):
            x, y = zip(*(record[key] for record in records), strict=True)
            face = colour(hue) if solid else "none"
            axes.scatter(x, y, s=9, facecolors=face, edgecolors=colour(hue), linewidths=0.6, alpha=0.75)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(colour("grid"))
        return Panel(
            _slug(f"shift-{number}-{variant}"),
            figure,
            f"Scatter plot of {len(records)} hidden states before and after the edits of {variant}.",
        )


def spectrum_panel(
    spectra: Mapping[int, Sequence[float]], thresholds: Sequence[float], looks: Sequence[Style]
) -> Panel:
    """Eigenvalues of C against their rank, as a share of all directions; those below a threshold are called null."""
    with _axes() as (figure, axes):
        axes.set_title("spectrum of C")
        _log(axes)
        told = []
        for (layer, values), look in zip(spectra.items(), looks, strict=True):
            positive = [max(value, 1e-12) for value in values]
            share = [100 * (index + 1) / len(values) for index in range(len(values))]
            axes.plot(share, positive, color=colour(look.hue), alpha=look.opacity)
            told.append(f"layer {layer} from {min(positive):.1e} to {max(positive):.1e}")
        for threshold in thresholds:
            axes.axhline(threshold, color=colour("vermilion"), lw=1, ls=(0, (4, 2)))
            axes.annotate(
                f"threshold {threshold:g}", (0, threshold), xycoords=("axes fraction", "data"), ha="left", va="bottom",
                xytext=(3, 2), textcoords="offset points", fontsize=9, color=colour("vermilion"),
            )  # fmt: skip
        axes.set_xlabel("eigenvectors, from the most null, %")
        axes.set_ylabel("eigenvalue")
        axes.margins(x=0.02)
        return Panel(
            _slug("spectrum"),
            figure,
            f"Line chart of eigenvalues in ascending order on a log scale: {'; '.join(told)}.",
        )


def layers_panel(
    name: str, title: str, series: Mapping[str, Mapping[int, float]], looks: Mapping[str, Style], form: str = "{:.1f}"
) -> Panel:
    """A number by layer, one line per variant."""
    panel = _lines_panel(name, title, series, looks, form, "layer")
    panel.figure.axes[0].set_xticks(sorted({layer for values in series.values() for layer in values}))
    return panel


def ages_panel(name: str, title: str, series: Mapping[str, Mapping[int, float]], looks: Mapping[str, Style]) -> Panel:
    """A number by the edits that were made after a fact's own."""
    return _lines_panel(name, title, series, looks, "{:.1f}", "edits since")


def _lines_panel(
    name: str, title: str, series: Mapping[str, Mapping[int, float]], looks: Mapping[str, Style], form: str, axis: str
) -> Panel:
    """One line per variant; the scale is logarithmic if the orders of magnitude differ."""
    with _axes() as (figure, axes):
        axes.set_title(title)
        axes.set_xlabel(axis)
        told = []
        asides = _asides(series, [at for values in series.values() for at in values])
        for variant, values in series.items():
            look, places = looks[variant], sorted(values)
            x, y = [place + asides[variant] for place in places], [values[place] for place in places]
            axes.plot(x, y, color=colour(look.hue), ls=look.dashes, zorder=3)
            _mark(axes, x, y, look, size=5, zorder=4)
            told.append(f"{variant} " + ", ".join(f"{form.format(values[at])} at {axis} {at}" for at in places))
        least, top = min(numbers := [v for values in series.values() for v in values.values()]), max(numbers)
        if 0 < least < top / 30:  # beside a ruined model, all others would look like one line
            _log(axes)
        else:
            axes.set_ylim(0, 1.08 * top or 1)
        axes.margins(x=0.05)
        return Panel(_slug(name), figure, f"Line chart of {title} by {axis}: {'; '.join(told)}.")


def bars_panel(name: str, title: str, values: Mapping[str, float], looks: Mapping[str, Style], form: str) -> Panel:
    """One number per variant: hollow bars without P, filled ones with P."""
    with _axes((SIZE[0], 1.0 + 0.3 * len(values))) as (figure, axes):
        axes.set_title(title)
        axes.grid(False, axis="y")
        for y, (variant, value) in enumerate(values.items()):
            look = looks[variant]
            axes.barh(
                y, value, height=0.58, facecolor=colour(look.hue) if look.solid else colour("paper"),
                edgecolor=colour(look.hue), linewidth=1.2, linestyle=look.dashes,
            )  # fmt: skip
            axes.annotate(
                form.format(value), (value, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(range(len(values)), [_label(variant) for variant in values], color=colour("ink"))
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, max([*values.values(), 1e-9]) * 1.14)
        told = [f"{variant} {form.format(value)}" for variant, value in values.items()]
        return Panel(_slug(name), figure, f"Bar chart of {title}: {', '.join(told)}.")


def gaps_panel(name: str, title: str, values: Mapping[str, tuple[float, float]], looks: Mapping[str, Style]) -> Panel:
    """Two shares in percent per row, a hollow mark and a filled one, and the line between them."""
    with _axes((SIZE[0], 1.25 + 0.34 * len(values))) as (figure, axes):
        axes.set_title(title)
        axes.grid(False, axis="y")
        for y, (row, (hollow, filled)) in enumerate(values.items()):
            look = looks[row]
            axes.plot([hollow, filled], [y, y], color=colour(look.hue), lw=1.4, alpha=0.6, zorder=2)
            _mark(axes, [hollow], [y], replace(look, solid=False), size=7, zorder=3)
            _mark(axes, [filled], [y], replace(look, solid=True), size=7, zorder=4)
        axes.set_yticks(range(len(values)), [_label(row) for row in values], color=colour("ink"))
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        told = [f"{row} {hollow:.1f} and {filled:.1f}" for row, (hollow, filled) in values.items()]
        return Panel(_slug(name), figure, f"Dot plot of {title}, teacher-forced and written: {', '.join(told)}.")


def heat_maps(
    title: str, maps: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[str], across: str, meaning: str
) -> Figure:
    """One heat map per title in `maps`, one above the other and on one scale; rows × columns, nan where nothing is.

    The colours diverge around 0: `meaning` is what they show.
    """
    with _drawing():
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 1.0 + 2.2 * len(maps)), layout="constrained")
        figure.suptitle(visible(title), x=0.01, ha="left", fontsize=10.5)
        largest = max((abs(v) for values in maps.values() for row in values for v in row if v == v), default=0) or 1
        hues = [colour("vermilion"), "#ffffff", colour("blue")]
        scale = LinearSegmentedColormap.from_list("effect", hues).with_extremes(bad=colour("grid"))
        every = figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(every, maps.items(), strict=True):
            image = axes.imshow(values, cmap=scale, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
            axes.set_title(name)
            axes.grid(False)
            axes.set_yticks(range(len(rows)), rows, color=colour("ink"))
        every[-1].set_xlabel(across)
        _whole_ticks(every[-1])
        figure.colorbar(image, ax=list(every), label=meaning, shrink=0.7)
        return figure


def inline(panel: Panel, prefix: str) -> str:
    """The panel as SVG for a page: colours are CSS variables, ids are unique in the page, and nothing is fetched.

    matplotlib's own style sheet is left out: in a page it would affect more than the figure.
    """
    with _drawing():
        root = ElementTree.fromstring(_svg(panel.figure))
    named = {value[0]: f"var(--{name})" for name, value in THEME.items()}
    unique = f"{prefix}-{panel.name}-"
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style", "}title")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = name.rpartition("}")[2]
            if plain == "id":
                value = unique + value
            elif plain == "href":
                value = value.replace("#", f"#{unique}", 1)
            else:
                value = re.sub(r"url\(#", f"url(#{unique}", value)
                value = re.sub(r"#[0-9a-f]{6}\b", lambda match: named.get(match[0], match[0]), value)
            element.set(plain, value)
    width = float(root.get("viewBox", "0 0 1 1").split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("style", f"--width:{width:.0f}px")
    root.set("role", "img")
    root.set("aria-label", panel.alt)
    return ElementTree.tostring(root, encoding="unicode")


def save(panel: Panel, picture: Picture, folder: Path, prefix: str) -> None:
    """Write PNG and SVG, each with the legend. Call this last, because the legend enlarges the panel.

    Raises CompareError if a file cannot be written.
    """
    with _drawing():
        if picture.legend:
            _add_legend(panel.figure, picture.legend)
        path = folder / f"{prefix}-{panel.name}"
        write_text(path.with_name(f"{path.name}.svg"), _svg(panel.figure), CompareError)
        panel.figure.set_layout_engine("none")  # as in the SVG
        with atomic(path.with_name(f"{path.name}.png"), CompareError) as temporary:
            _png(panel.figure, temporary)


def _add_legend(figure: Figure, entries: Sequence[tuple[str, Style]]) -> None:
    """Below the figure, which grows by it, in as many columns as fit beside each other: three at most."""
    handles = [_handle(look) for _, look in entries]
    labels = [visible(label) for label, _ in entries]
    width, height = figure.get_size_inches()
    for columns in range(min(3, len(entries)), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        needed = legend.get_window_extent().width / figure.dpi
        if columns == 1 or needed <= width:
            break
        legend.remove()
    figure.set_size_inches(max(width, needed), height + 0.3 + 0.21 * -(-len(entries) // columns))


def _svg(figure: Figure) -> str:
    """The figure as SVG, without a date: the same numbers give the same file. savefig would draw everything twice."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _png(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(200)
    figure.set_facecolor(colour("paper"))
    FigureCanvasAgg(figure).print_png(path)


@contextmanager
def _drawing() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        yield


@contextmanager
def _axes(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Axes]]:
    with _drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.add_subplot()


def _mark(axes: Axes, x: Sequence[float], y: Sequence[float], look: Style, *, size: float, zorder: float) -> None:
    axes.plot(
        x, y, ls="", marker=look.marker, ms=size, mfc=look.face, mec=colour(look.hue), mew=1.3, zorder=zorder
    )  # fmt: skip


def _handle(look: Style) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour(look.hue), ls=look.dashes if look.line else "", marker=look.marker, mfc=look.face,
        mec=colour(look.hue), alpha=look.opacity,
    )  # fmt: skip


def _log(axes: Axes) -> None:
    """A logarithmic axis. Powers of ten are plain text: mathematics is off, as names could be read as formulas."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.grid(False, which="minor")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "10" + f"{log10(value):.0f}".translate(_RAISED)))
    axes.yaxis.set_minor_formatter(NullFormatter())


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _label(variant: str) -> str:
    """A variant's name on short lines, one per changed hyperparameter, so that the axes keep their space."""
    lines = visible(variant).replace("@", "\n@").split("\n")
    return "\n".join(_shortened(line, 22) for line in lines[:3])


def _shortened(text: str, length: int) -> str:
    """Without its middle, if it is longer: names differ at their ends."""
    end = length // 2
    return text if len(text) <= length else f"{text[: length - end - 1]}…{text[-end:]}"


def _slug(text: str) -> str:
    """The text in a form that fits an id, a URL and a file name."""
    return re.sub(r"[^\w+-]+", "_", text, flags=re.ASCII)[:80]
