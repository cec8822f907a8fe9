"""Small charts as inline SVG: sharp at any size, in the page's own colours, light or dark, without a script.

Colours, fonts and line widths are classes of ``page.css``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 10.0, 10.0, 36.0
# an axis is cut where the outliers would take more than this many times the room of the middle 98 %
_STRETCH = 2.0
_MOST_BINS, _FEWEST_BINS = 40, 8

Format = Callable[[float], str]


@dataclass
class _Canvas:
    """A plot area with linear axes; what is drawn is collected in ``parts``."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    parts: list[Markup] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def bar(self, left: float, right: float, value: float, kind: str, note: str) -> None:
        """A bar from zero to ``value``, in data units, with a text that appears under the mouse."""
        x0, x1 = self.x(left), self.x(right)
        top, foot = sorted((self.y(value), self.y(0.0)))
        self.parts.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(kind, x0 + 0.4, top, max(x1 - x0 - 0.8, 0.4), max(foot - top, 0.0), note)
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, kind: str) -> None:
        """A straight line in picture units."""
        self.parts.append(
            Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
                kind, x0, y0, x1, y1
            )
        )

    def text(self, x: float, y: float, words: str, anchor: str = "middle") -> None:
        self.parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)
        )

    def vertical(self, value: float, kind: str) -> None:
        """A line over the whole height at ``value``, if the axis reaches it."""
        if self.x_range[0] <= value <= self.x_range[1]:
            self.line(self.x(value), _TOP, self.x(value), _HEIGHT - _BOTTOM, kind)

    def y_axis(self, form: Format, whole: bool = False) -> None:
        for tick in _ticks(*self.y_range, count=4, whole=whole):
            y = self.y(tick)
            self.line(_LEFT, y, _WIDTH - _RIGHT, y, "grid")
            self.text(_LEFT - 5, y + 3.5, form(tick), "end")

    def x_axis(self, label: str, form: Format) -> None:
        for tick in _ticks(*self.x_range, count=6):
            x = self.x(tick)
            self.line(x, _HEIGHT - _BOTTOM, x, _HEIGHT - _BOTTOM + 3, "axis")
            self.text(x, _HEIGHT - _BOTTOM + 14, form(tick))
        self.x_label(label)

    def x_label(self, label: str) -> None:
        self.line(_LEFT, self.y(0.0), _WIDTH - _RIGHT, self.y(0.0), "axis")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, label)

    def svg(self, words: str) -> Markup:
        """The picture; ``words`` say for those who cannot see it what it shows."""
        return Markup(
            '<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>'
        ).format(_WIDTH, _HEIGHT, words, Markup("").join(self.parts))


def histogram(values: Sequence[float], label: str, split: Callable[[float], str] | None = None) -> Markup:
    """How the images are distributed over a metric, with their mean (line) and median (dashed).

    A few far outliers do not squeeze the rest: the axis ends near the 1st and 99th percentile then, and what
    lies beyond is gathered in a paler bar at the end.

    Args:
        values: One number an image; NaN and infinite ones are left out.
        label: Name of the axis.
        split: Class of a bar by the middle of its interval, for a chart of differences.

    Returns:
        An SVG element, empty without a finite value.
    """
    data = np.array([value for value in values if math.isfinite(value)], np.float64)
    if not data.size:
        return Markup("")
    low, high = _limits(data)
    edges = _edges(data, low, high, split is not None)
    counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), edges)
    canvas = _Canvas((float(edges[0]), float(edges[-1])), (0.0, float(counts.max()) * 1.06))
    canvas.y_axis(lambda tick: f"{tick:g}", whole=True)
    below, above = int((data < edges[0]).sum()), int((data > edges[-1]).sum())
    for place, count in enumerate(counts.tolist()):
        left, right = float(edges[place]), float(edges[place + 1])
        beyond = below if place == 0 else above if place == len(counts) - 1 else 0
        note = f"{_short(left)} to {_short(right)}: {_images(count - beyond)}"
        kind = "" if split is None else split((left + right) / 2)
        canvas.bar(left, right, count - beyond, kind, note)
        if beyond:
            near = counts[:7] if place == 0 else counts[-7:]  # the words stand above these bars
            _stack_outliers(canvas, (left, right), count, beyond, place == 0, float(near.max()))
    canvas.vertical(float(data.mean()), "mean")
    canvas.vertical(float(np.median(data)), "median")
    if split is not None:
        canvas.vertical(0.0, "zero")
    canvas.x_axis(label, _short)
    return canvas.svg(
        f"Histogram of {label}: {_images(data.size)}, mean {_short(float(data.mean()))}, "
        f"median {_short(float(np.median(data)))}"
    )


def columns(names: Sequence[str], values: Sequence[float], label: str, form: Format) -> Markup:
    """One bar for each name; negative values hang below zero, missing ones leave a gap.

    Args:
        names: Under the bars.
        values: Their heights; NaN where there is none.
        label: Below the names.
        form: Writes a value, shown under the mouse; the axis where it writes percent.

    Returns:
        An SVG element, empty without a finite value.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Markup("")
    low, high = min(0.0, *finite) * 1.08, max(0.0, *finite) * 1.08
    canvas = _Canvas((0.0, float(len(names))), (low, high if high > low else low + 1.0))
    canvas.y_axis(form if "%" in form(high) else _short)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        if math.isfinite(value):
            canvas.bar(place + 0.08, place + 0.92, value, "", f"{name}: {form(value)}")
        crowded = len(names) > 8 and place % 2
        if not crowded:
            canvas.text(canvas.x(place + 0.5), _HEIGHT - _BOTTOM + 14, name)
    canvas.x_label(label)
    pairs = ", ".join(f"{name}: {form(value)}" for name, value in zip(names, values, strict=True))
    return canvas.svg(f"{label}. {pairs}")


def cumulative(series: Sequence[tuple[str, Sequence[float]]], label: str) -> Markup:
    """Share of the images with at most a value, one curve a run.

    Args:
        series: Name and values of each curve; NaN and infinite ones are left out.
        label: Name of the axis.

    Returns:
        An SVG element, empty where a curve has no finite value.
    """
    curves = [(name, np.sort(np.array([v for v in values if math.isfinite(v)]))) for name, values in series]
    if not curves or any(not values.size for _, values in curves):
        return Markup("")
    _, high = _limits(np.concatenate([values for _, values in curves]))
    canvas = _Canvas((0.0, high if high > 0 else 1.0), (0.0, 1.0))
    canvas.y_axis(lambda tick: f"{100 * tick:.0f} %")
    for place, (name, values) in enumerate(curves):
        # 200 points show the shape of 5050 images as well as 5050 do
        grid = np.linspace(*canvas.x_range, 200)
        shares = np.searchsorted(values, grid, side="right") / values.size
        path = " ".join(f"{canvas.x(x):.1f},{canvas.y(y):.1f}" for x, y in zip(grid, shares, strict=True))
        canvas.parts.append(
            Markup('<polyline class="curve s{}" points="{}"><title>{}</title></polyline>').format(
                place % 6, path, name
            )
        )
    canvas.x_axis(label, _short)
    return canvas.svg(f"Share of images with at most a {label}: " + ", ".join(name for name, _ in curves))


def legend(kind: str, words: str) -> Markup:
    """A line of its kind (a class of ``page.css``) with its meaning, for the text above a chart."""
    sample = Markup('<svg class="key" viewBox="0 0 24 10" aria-hidden="true"><line class="{}" {}/></svg> {}')
    return sample.format(kind, Markup('x1="1" y1="5" x2="23" y2="5"'), words)


def _stack_outliers(
    canvas: _Canvas, sides: tuple[float, float], count: int, beyond: int, is_first: bool, clear: float
) -> None:
    """Paler bar of the images beyond the end of the axis, on top of those within; its number stands at ``clear``."""
    left, right = sides
    words = f"{_images(beyond)} {'below' if is_first else 'above'} {_short(left if is_first else right)}"
    top, foot = canvas.y(count), canvas.y(count - beyond)
    canvas.parts.append(
        Markup(
            '<rect class="bar beyond" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
        ).format(canvas.x(left) + 0.4, top, canvas.x(right) - canvas.x(left) - 0.8, foot - top, words)
    )
    anchor = "start" if is_first else "end"
    canvas.text(canvas.x(left if is_first else right), canvas.y(clear) - 4, f"{beyond} beyond", anchor)


def _limits(data: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of an axis."""
    low, high = float(data.min()), float(data.max())
    p1, p99 = (float(p) for p in np.percentile(data, [1, 99]))
    reach = _STRETCH * (p99 - p1)
    if p99 > p1 and high - low > reach:
        # only the side that stretches is cut
        low = low if p1 - low <= 0.25 * reach else p1
        high = high if high - p99 <= 0.25 * reach else p99
    return low, high


def _edges(data: NDArray[np.float64], low: float, high: float, through_zero: bool) -> NDArray[np.float64]:
    """Edges of the bins, about as many as Freedman and Diaconis advise; zero is one of them if asked for."""
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


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About ``count`` round numbers within the ends, integers where there is nothing between (counts)."""
    ticks = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    reach = 1e-9 * (high - low)
    return [float(tick) for tick in ticks if low - reach <= tick <= high + reach]


def _short(value: float) -> str:
    """A number for an axis."""
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}".replace("-", "−")


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
