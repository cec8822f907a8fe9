"""A contact sheet of a data set: photographs, depth and histograms of depth, before and after augmentation.

The whole sheet has one depth scale: the same colour means the same depth in every picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sa2depth.atomic import atomic_path
from sa2depth.depth_size import same_view
from sa2depth.errors import ShapeError
from sa2depth.metrics.holes import fill_from_nearest
from sa2depth.report.colours import colorize

_DPI = 110
# Cells have equal areas: a street of 375x1242 gets a wider one than a room of 480x640.
_CELL_AREA, _CELL_SIDES = 2.6 * 1.95, (1.3, 5.0)
_GAP, _TITLE, _TOP, _BOTTOM, _SIDE = 0.06, 0.24, 0.62, 0.66, 0.08
_HISTOGRAM_WIDTH, _HISTOGRAM_GAP = 2.3, 0.2
_BINS = 60
_BEFORE, _AFTER = "0.72", "#c2410c"


@dataclass(frozen=True)
class SheetRow:
    """One image of the sheet.

    Attributes:
        title: id of the image.
        image: ``(H, W, 3)`` RGB, uint8 or floating-point in [0, 1].
        depth: ``(H, W)`` metres, 0 = not measured; None if there is none.
        after_image: the augmented image, of any size; None if it is not augmented.
        after_depth: depth of the augmented image.
    """

    title: str
    image: NDArray[Any]
    depth: NDArray[Any] | None
    after_image: NDArray[Any] | None = None
    after_depth: NDArray[Any] | None = None


def contact_sheet(
    rows: Sequence[SheetRow], path: Path | str, heading: str = "", max_depth: float | None = None
) -> Path:
    """Draw rows of image, depth, augmented image and depth (if there are any), and a histogram of depth.

    Args:
        rows: at least one row.
        path: the picture file; its folder is made.
        heading: one line at the top.
        max_depth: metres at the end of the depth scale, which starts at 0; None takes a round number above 99.5 % of
            all measured pixels.

    Returns:
        The path.

    Raises:
        ShapeError: there is no row, or the sizes of image and depth of a row do not fit (`sa2depth.depth_size`).
    """
    if not rows:
        raise ShapeError("a contact sheet needs at least one image")
    for row in rows:
        _require_pair(row.title, row.image, row.depth)
        _require_pair(f"{row.title}, augmented", row.after_image, row.after_depth)
    end = _scale_end(rows) if max_depth is None else max_depth
    augmented = any(row.after_image is not None for row in rows)
    columns = 4 if augmented else 2
    aspect = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    width = min(max(math.sqrt(_CELL_AREA / aspect), _CELL_SIDES[0]), _CELL_SIDES[1])
    cell = width, min(max(width * aspect, _CELL_SIDES[0]), _CELL_SIDES[1])
    page = (
        2 * _SIDE + columns * (cell[0] + _GAP) + _HISTOGRAM_GAP + _HISTOGRAM_WIDTH + 0.12,
        _TOP + _BOTTOM + len(rows) * (cell[1] + _TITLE),
    )
    figure = Figure(figsize=page, dpi=_DPI)
    names = ("image", "depth", "image, augmented", "depth, augmented")[:columns]
    figure.text(_SIDE / page[0], 1 - 0.1 / page[1], heading, va="top", fontsize=10, weight="bold")
    for number, name in enumerate(names):
        left = _SIDE + number * (cell[0] + _GAP) + cell[0] / 2
        figure.text(left / page[0], 1 - (_TOP - 0.08) / page[1], name, ha="center", fontsize=9)
    for number, row in enumerate(rows):
        bottom = page[1] - _TOP - (number + 1) * (cell[1] + _TITLE)
        _draw_row(figure, page, (_SIDE, bottom), cell, row, columns, end)
    _draw_scale(figure, page, columns * (cell[0] + _GAP), end, augmented)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=_DPI)
    return Path(path)


def _draw_row(
    figure: Figure,
    page: tuple[float, float],
    corner: tuple[float, float],
    cell: tuple[float, float],
    row: SheetRow,
    columns: int,
    end: float,
) -> None:
    def axes(left: float, width: float, lift: float = 0.0) -> Axes:
        box = (left / page[0], (corner[1] + lift) / page[1], width / page[0], (cell[1] - lift) / page[1])
        return figure.add_axes(box)

    pictures = [
        (row.image, "no image"),
        (None if row.depth is None else _paint(row.depth, end), "no ground truth"),
        (row.after_image, "not augmented"),
        (None if row.after_depth is None else _paint(row.after_depth, end), "no ground truth"),
    ]
    for number, (picture, absent) in enumerate(pictures[:columns]):
        axis = axes(corner[0] + number * (cell[0] + _GAP), cell[0])
        axis.set_axis_off()
        if picture is None:
            axis.text(0.5, 0.5, absent, transform=axis.transAxes, va="center", ha="center", fontsize=8)
        else:
            axis.imshow(picture, interpolation="antialiased")
    title = (corner[0] / page[0], (corner[1] + cell[1] + 0.05) / page[1])
    figure.text(*title, f"{row.title}   {_note(row)}", fontsize=8, va="bottom")
    left = corner[0] + columns * (cell[0] + _GAP) + _HISTOGRAM_GAP
    _draw_histogram(axes(left, _HISTOGRAM_WIDTH, 0.2), row, end)


def _draw_histogram(axis: Axes, row: SheetRow, end: float) -> None:
    """Histogram of the measured depths; those beyond the scale are in the last bin."""
    edges = np.linspace(0.0, end, _BINS + 1)
    for depth, filled in ((row.depth, True), (row.after_depth, False)):
        known = np.zeros(0) if depth is None else depth[depth > 0]
        if known.size == 0:
            continue
        share = np.histogram(np.minimum(known, end), edges)[0] / known.size
        if filled:
            axis.stairs(share, edges, fill=True, color=_BEFORE)
        else:
            axis.stairs(share, edges, color=_AFTER, linewidth=1.0)
    axis.set_xlim(0.0, end)
    axis.set_ylim(bottom=0.0)
    axis.set_yticks([])
    axis.tick_params(labelsize=7, length=2, pad=1)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)


def _draw_scale(figure: Figure, page: tuple[float, float], width: float, end: float, augmented: bool) -> None:
    """The colour scale of depth and the legend of the histograms, at the foot of the page."""
    axis = figure.add_axes(
        ((_SIDE + 0.15 * width) / page[0], 0.4 / page[1], 0.7 * width / page[0], 0.1 / page[1])
    )
    # The ramp starts just above 0, because 0 is painted as not measured.
    ramp = np.linspace(end / 512, end, 256)[None]
    axis.imshow(colorize(ramp, 0.0, end), aspect="auto", extent=(0.0, end, 0.0, 1.0))
    axis.set_yticks([])
    axis.tick_params(labelsize=7, length=2, pad=1)
    axis.set_xlabel("depth (m); black: not measured", fontsize=8, labelpad=1)
    left = (_SIDE + width + _HISTOGRAM_GAP) / page[0]
    text = "share of measured pixels over depth (m)"
    figure.text(left, 0.42 / page[1], text, fontsize=7, va="center")
    if augmented:
        figure.text(left, 0.26 / page[1], "grey: as read", color="0.45", fontsize=7, va="center")
        left += 0.8 / page[0]
        figure.text(left, 0.26 / page[1], "line: augmented", color=_AFTER, fontsize=7, va="center")


def _paint(depth: NDArray[Any], end: float) -> NDArray[np.uint8]:
    # A cell is smaller than its picture, so single measured pixels would vanish among the holes around them.
    measured = depth > 0
    return colorize(fill_from_nearest(depth, measured, 1.5), 0.0, end)


def _note(row: SheetRow) -> str:
    height, width = row.image.shape[:2]
    if row.depth is None:
        return f"{height}x{width}"
    known = row.depth[row.depth > 0]
    if known.size == 0:
        return f"{height}x{width}, no measured pixel"
    share = known.size / row.depth.size
    return f"{height}x{width}, {share:.0%} measured, {known.min():.2f} to {known.max():.2f} m"


def _scale_end(rows: Sequence[SheetRow]) -> float:
    """A round number of metres that is above nearly all depths."""
    known = [row.depth[row.depth > 0] for row in rows if row.depth is not None]
    values = np.concatenate(known) if known else np.zeros(0)
    if values.size == 0:
        return 10.0
    most = float(np.percentile(values, 99.5))
    step = 10.0 ** math.floor(math.log10(most)) / 2
    return math.ceil(most / step - 1e-9) * step


def _require_pair(name: str, image: NDArray[Any] | None, depth: NDArray[Any] | None) -> None:
    if image is not None and (image.ndim != 3 or image.shape[2] != 3):
        raise ShapeError(f"{name}: expected an RGB image (H, W, 3), found shape {image.shape}")
    if image is not None and depth is not None and not same_view(depth.shape, image.shape[:2]):
        raise ShapeError(f"{name}: image {image.shape[:2]} and depth {depth.shape} differ in size")
