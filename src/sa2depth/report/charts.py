"""Small charts that matplotlib draws as inline SVG: sharp at any size, in the page's own colours, without a script.

matplotlib paints with placeholder colours, which are then replaced by variables of ``page.css`` that differ between
light and dark; the id of a group that begins with ``_NOTE`` becomes a tooltip.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Format = Callable[[float], str]

_WIDTH, _HEIGHT = 360, 200
_PLOT = (0.117, 0.18, 0.856, 0.77)  # left, bottom, width and height, as shares of the picture
_STEPS = [1, 2, 2.5, 5, 10]  # between round numbers along an axis
_NOTE = "note:"
# an axis is cut if the outliers would take more than this many times the space of the middle 98 %
_STRETCH = 2.0
_MOST_BINS, _FEWEST_BINS = 40, 8
_CURVES = ("s0", "s1", "s2", "s3", "s4", "s5")
_INKS = ("accent", "pale", "good", "bad", "mean", "ink", "soft", "grid", "card", *_CURVES)
_COLOURS = {ink: f"#{place:06x}" for place, ink in enumerate(_INKS, start=1)}
_EDGE: dict[str, Any] = {"edgecolor": _COLOURS["card"], "linewidth": 0.8}  # parts the bars
# matplotlib's SVG becomes part of the page: tooltips, no ids (they would not be unique), the page's font and colours
_TO_PAGE = (
    (rf'<g id=(["\']){_NOTE}(.*?)\1>', r'<g class="hint"><title>\2</title>'),
    (r'<g id="[^"]*"/>', ""),
    (r'<g id="[^"]*">', "<g>"),
    (r' clip-path="[^"]*"', ""),
    (r"font-family: [^;]*; ", ""),
    (r' transform="rotate\(-0[^"]*"', ""),
    *((f": {colour}", f": var(--{ink})") for ink, colour in _COLOURS.items()),
    (r"\s*\n\s*", " "),
)
_STYLE = style.context(
    ["default", {"svg.fonttype": "none", "text.parse_math": False, "font.size": 10.5, "axes.labelpad": 7}]
)


@_STYLE
def histogram(values: Sequence[float], label: str, split: Callable[[float], str] | None = None) -> Markup:
    """Histogram of the images over a metric, with their mean (line) and median (dashed).

    A few far outliers do not squeeze the rest: the axis then ends near the 1st and 99th percentile, and a paler bar at
    the end holds the images beyond.

    Args:
        values: One number per image; NaN and infinite ones are left out.
        label: Name of the axis.
        split: Colour of a bar (a variable of ``page.css``) by the middle of its interval, for a chart of differences.

    Returns:
        An SVG element, empty without a finite value.
    """
    data = _finite(values)
    if not data.size:
        return Markup("")
    edges = _edges(data, *_limits(data), split is not None)
    counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), edges)
    beyond = np.zeros_like(counts)
    beyond[0], beyond[-1] = (data < edges[0]).sum(), (data > edges[-1]).sum()
    within, width = counts - beyond, edges[1] - edges[0]
    middles = edges[:-1] + width / 2
    axes = _axes((edges[0], edges[-1]), (0.0, counts.max() * 1.06), label)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS, integer=True))
    colours = [_COLOURS["accent" if split is None else split(middle)] for middle in middles.tolist()]
    spans = [f"{_short(left)} to {_short(right)}" for left, right in pairwise(edges)]
    notes = [f"{span}: {_images(count)}" for span, count in zip(spans, within, strict=True)]
    _note(axes.bar(middles, within, width, color=colours, **_EDGE), notes)
    for end, side, words, near in ((0, "left", "below", counts[:7]), (-1, "right", "above", counts[-7:])):
        if beyond[end]:
            note = f"{_images(beyond[end])} {words} {_short(edges[end])}"
            bar = axes.bar(middles[end], beyond[end], width, within[end], color=_COLOURS["pale"], **_EDGE)
            _note(bar, [note])
            axes.text(edges[end], near.max() + 0.02 * counts.max(), f"{beyond[end]} beyond", ha=side)
    for value, dashes in ((data.mean(), "-"), (np.median(data), (0, (2.2, 1.7)))):
        if edges[0] <= value <= edges[-1]:
            axes.axvline(value, color=_COLOURS["mean"], linestyle=dashes, linewidth=1.8)
    if split is not None and edges[0] <= 0 <= edges[-1]:
        axes.axvline(0.0, color=_COLOURS["ink"], linewidth=1)
    mean, median = _short(data.mean()), _short(np.median(data))
    return _svg(axes, f"Histogram of {label}: {_images(data.size)}, mean {mean}, median {median}")


@_STYLE
def columns(names: Sequence[str], values: Sequence[float], label: str, form: Format) -> Markup:
    """One bar for each name; negative values hang below zero, missing ones leave a gap.

    Args:
        names: Labels under the bars.
        values: Heights of the bars; NaN for a missing bar.
        label: Name of the axis, below the names.
        form: Formats a value for the tooltip, and for the axis if it writes percent.

    Returns:
        An SVG element, empty without a finite value.
    """
    finite = _finite(values)
    if not finite.size:
        return Markup("")
    low, high = min(0.0, finite.min()) * 1.08, max(0.0, finite.max()) * 1.08
    axes = _axes((-0.5, len(names) - 0.5), (low, high if high > low else low + 1.0), label)
    axes.grid(visible=False, axis="x")
    if "%" in form(high):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: form(tick)))
    step = 2 if len(names) > 8 else 1  # more names would touch each other
    axes.set_xticks(range(0, len(names), step), names[::step])
    notes = [f"{name}: {form(value)}" for name, value in zip(names, values, strict=True)]
    there = np.flatnonzero(np.isfinite(values))
    bars = axes.bar(there, finite, 0.84, color=_COLOURS["accent"], **_EDGE)
    _note(bars, [notes[place] for place in there])
    return _svg(axes, f"{label}. {', '.join(notes)}")


@_STYLE
def cumulative(series: Sequence[tuple[str, Sequence[float]]], label: str) -> Markup:
    """Share of the images with at most a value, one curve per run.

    Args:
        series: Name and values of each curve; NaN and infinite ones are left out.
        label: Name of the axis.

    Returns:
        An SVG element, empty if a curve has no finite value.
    """
    curves = [(name, np.sort(_finite(values))) for name, values in series]
    if not curves or any(not values.size for _, values in curves):
        return Markup("")
    _, high = _limits(np.concatenate([values for _, values in curves]))
    axes = _axes((0.0, high if high > 0 else 1.0), (0.0, 1.0), label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:.0f} %"))
    # 200 points show the shape of 5050 images as well as 5050 do
    grid = np.linspace(*axes.get_xlim(), 200)
    for place, (name, values) in enumerate(curves):
        shares = np.searchsorted(values, grid, side="right") / values.size
        _note(axes.plot(grid, shares, color=_COLOURS[_CURVES[place % len(_CURVES)]], linewidth=2), [name])
    return _svg(axes, f"Share of images with at most a {label}: " + ", ".join(name for name, _ in curves))


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], label: str) -> Axes:
    """An empty plot with about six round numbers along the foot and four up the side."""
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))  # an SVG has 72 units per inch
    figure.patch.set_visible(False)
    axes = figure.add_axes(_PLOT, frame_on=False, axisbelow=True, xlim=x_range, ylim=y_range, xlabel=label)
    axes.tick_params(length=0, pad=6)
    axes.grid(color=_COLOURS["grid"], linewidth=1)
    axes.axhline(0, color=_COLOURS["soft"], linewidth=1)
    for axis, most in ((axes.xaxis, 6), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(most, steps=_STEPS))
        axis.set_major_formatter(FuncFormatter(lambda tick, _: _short(tick)))
    return axes


def _note(artists: Iterable[Artist], notes: Sequence[str]) -> None:
    """Give each of the artists a tooltip."""
    for artist, words in zip(artists, notes, strict=True):
        artist.set_gid(_NOTE + words)


def _svg(axes: Axes, words: str) -> Markup:
    """The chart as an SVG element; ``words`` describe it for readers who cannot see it."""
    file = io.StringIO()
    canvas: Any = FigureCanvasSVG(axes.get_figure(root=True))  # its methods have no types
    silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():  # the reader's browser has more letters than matplotlib's font
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.print_svg(file, metadata=silent)
    # left out: a style before the body, which would hold for the whole page, and clip paths after it, which need ids
    body = file.getvalue().split("</defs>", 1)[1].rsplit("<defs>", 1)[0]
    for pattern, replacement in _TO_PAGE:
        body = re.sub(pattern, replacement, body)
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(_WIDTH, _HEIGHT, words) + Markup(body + "</svg>")  # matplotlib has escaped all texts


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    data = np.asarray(values, np.float64)
    return data[np.isfinite(data)]


def _limits(data: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of an axis."""
    low, high = float(data.min()), float(data.max())
    p1, p99 = (float(p) for p in np.percentile(data, [1, 99]))
    reach = _STRETCH * (p99 - p1)
    if p99 > p1 and high - low > reach:
        # only the side with outliers is cut
        low = low if p1 - low <= 0.25 * reach else p1
        high = high if high - p99 <= 0.25 * reach else p99
    return low, high


def _edges(data: NDArray[np.float64], low: float, high: float, through_zero: bool) -> NDArray[np.float64]:
    """Edges of the bins, about as many as the rule of Freedman and Diaconis gives; zero is one of them if requested."""
    if high - low <= 1e-12 * max(1.0, abs(high)):
        margin = max(abs(high) * 0.05, 1e-3)
        return np.linspace(low - margin, high + margin, 4)
    inside = data[(data >= low) & (data <= high)]
    q1, q3 = np.percentile(inside, [25, 75])
    width = 2 * (q3 - q1) / len(inside) ** (1 / 3)
    wanted = (high - low) / width if width > 0 else _FEWEST_BINS
    bins = int(np.clip(math.ceil(wanted), _FEWEST_BINS, _MOST_BINS))
    if through_zero and low < 0 < high:
        step = (high - low) / bins
        return np.arange(math.floor(low / step), math.ceil(high / step) + 1, dtype=np.float64) * step
    return np.linspace(low, high, bins + 1)


def _short(value: float) -> str:
    """Format a number for an axis."""
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}".replace("-", "−")


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
