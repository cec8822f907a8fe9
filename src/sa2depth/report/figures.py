"""The grid of image, truth, prediction and error as a picture.

It uses matplotlib's object interface and not pyplot, so that it needs neither global state nor a display.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from sa2depth.errors import ShapeError
from sa2depth.metrics.holes import fill_from_nearest
from sa2depth.report.colours import DEPTH_MAP, ERROR_MAP, as_map, as_picture, color_table, colorize, paint

_CELL_WIDTH_INCH, _DPI = 2.6, 110
# reach of a measured pixel in the pictures of truth and error: up to its diagonal neighbours
_DOT_REACH_PX = 1.5


def depth_grid(
    images: Sequence[NDArray[Any] | torch.Tensor],
    truths: Sequence[NDArray[Any] | torch.Tensor | None],
    predictions: Sequence[NDArray[Any] | torch.Tensor],
    max_depth: float,
    path: Path | str,
    titles: Sequence[str] | None = None,
    max_error: float = 0.5,
) -> Path:
    """Draw rows of image, truth, prediction and relative error, with one depth scale for all.

    `DepthGrids` draws several grids in less time.

    Args:
        images: ``(H,W,3)`` uint8 or ``(3,H,W)`` floating-point in [0, 1], RGB.
        truths: ``(H,W)`` metres, 0 = not measured; None if there is none.
        predictions: ``(H,W)`` metres.
        max_depth: Metres at the end of the depth scale, which starts at 0.
        path: The picture file; its folder is made.
        titles: A name for each row.
        max_error: Share ``|prediction - truth| / truth`` at the end of the error scale.

    Returns:
        The path.

    Raises:
        ShapeError: There is no row, the lists differ in length, or truth and prediction differ in size.
    """
    return DepthGrids(max_depth, max_error).draw(images, truths, predictions, path, titles)


class DepthGrids:
    """Draws one grid after another, with the same pixels as `depth_grid`.

    A grid with the layout of the previous one (rows, sizes, rows without truth) reuses its axes and colour bars, which
    take longer than the pictures. Only one thread may use an object at a time.

    Args:
        max_depth: Metres at the end of the depth scale, which starts at 0.
        max_error: Share ``|prediction - truth| / truth`` at the end of the error scale.
    """

    def __init__(self, max_depth: float, max_error: float = 0.5) -> None:
        self._scales = max_depth, max_error
        self._layout: _Layout | None = None

    def draw(
        self,
        images: Sequence[NDArray[Any] | torch.Tensor],
        truths: Sequence[NDArray[Any] | torch.Tensor | None],
        predictions: Sequence[NDArray[Any] | torch.Tensor],
        path: Path | str,
        titles: Sequence[str] | None = None,
    ) -> Path:
        """Draw one grid; arguments, result and errors are those of `depth_grid`."""
        if not images or not len(images) == len(truths) == len(predictions):
            raise ShapeError(
                f"depth_grid needs equal numbers, at least one, of images, truths and predictions; found {len(images)} "
                f"images, {len(truths)} truths and {len(predictions)} predictions"
            )
        rows = [
            _row_cells(as_picture(image), truth, prediction, *self._scales)
            for image, truth, prediction in zip(images, truths, predictions, strict=True)
        ]
        names = [""] * len(rows) if titles is None else [titles[row][:60] for row in range(len(rows))]
        shapes = _shapes(rows)
        if self._layout is None or self._layout.shapes != shapes:
            self._layout = _Layout(shapes, *self._scales)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._layout.fill(rows, names)
        self._layout.save(path)
        return path


_Cell = tuple[NDArray[np.uint8] | None, str]
_Shapes = tuple[tuple[tuple[int, ...] | None, ...], ...]


def _shapes(rows: Sequence[Sequence[_Cell]]) -> _Shapes:
    return tuple(tuple(None if cell is None else cell.shape for cell, _ in row) for row in rows)


class _Layout:
    """The figure of a grid: cells to fill, and headings and colour bars, which are painted once and then restored.

    Args:
        shapes: Shapes of each row's four pictures; None stands for a note without a picture.
        max_depth: See `DepthGrids`.
        max_error: See `DepthGrids`.
    """

    def __init__(self, shapes: _Shapes, max_depth: float, max_error: float) -> None:
        self.shapes = shapes
        # One aspect for all cells keeps the columns aligned; pictures keep their own aspect inside their cell.
        aspect = max(shape[0] / shape[1] for shape, *_ in shapes if shape is not None)
        cell_height = _CELL_WIDTH_INCH * aspect
        top, bottom = 0.34, 0.74
        height = top + bottom + len(shapes) * (cell_height + 0.22)
        facecolor = rcParams["savefig.facecolor"]
        figure = Figure(
            figsize=(4 * (_CELL_WIDTH_INCH + 0.08), height),
            dpi=_DPI,
            facecolor=None if facecolor == "auto" else facecolor,
        )
        axes = figure.subplots(len(shapes), 4, squeeze=False)
        figure.subplots_adjust(0.01, bottom / height, 0.99, 1 - top / height, 0.03, 0.22 / cell_height)
        self._cells = [
            [_cell(axis, shape) for axis, shape in zip(*row, strict=True)]
            for row in zip(axes, shapes, strict=True)
        ]
        self._titles = [_note_below(row[0]) for row in axes]
        headings = ("image", "ground truth", "prediction", "relative error |p − g| / g")
        for axis, heading in zip(axes[0], headings, strict=True):
            # without y, every axis would make ticks to find their height
            axis.set_title(heading, fontsize=9, y=1.0)
        _legend(figure, (0.26, 0.48), height, DEPTH_MAP, max_depth, "depth (m); black: not measured")
        _legend(figure, (0.76, 0.22), height, ERROR_MAP, max_error, "relative error")
        # in the order in which matplotlib draws them: axes by axes, pictures before texts
        self._changing: list[Artist] = []
        for (first, *others), title in zip(self._cells, self._titles, strict=True):
            parts = [*first, title, *(part for cell in others for part in cell)]
            self._changing += [part for part in parts if part is not None]
        self._canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
        self._background: Any = None

    def fill(self, rows: Sequence[Sequence[_Cell]], titles: Sequence[str]) -> None:
        """Fill in pictures of the layout's shapes, their notes and the names of the rows."""
        for row, cells in zip(rows, self._cells, strict=True):
            for (pixels, note), (image, text) in zip(row, cells, strict=True):
                if image is not None:
                    image.set_data(pixels)
                text.set_text(note)
        for text, title in zip(self._titles, titles, strict=True):
            text.set_text(title)

    def save(self, path: Path) -> None:
        """Write the picture."""
        if path.suffix.lower() != ".png":
            self._canvas.print_figure(str(path), dpi=_DPI)
            return
        pixels = self._painted()
        if (pixels[..., 3] == 255).all():
            pixels = pixels[..., :3]
        # For these pictures Z_RLE takes half the time of the default and makes smaller files.
        how = {"compress_level": 1, "compress_type": zlib.Z_RLE}
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", dpi=(_DPI, _DPI), **how)

    def _painted(self) -> NDArray[np.uint8]:
        """``(H,W,4)`` pixels, equal to those of the whole figure."""
        if self._background is None:
            for part in self._changing:
                part.set_visible(False)
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._canvas.figure.bbox)
            for part in self._changing:
                part.set_visible(True)
        self._canvas.restore_region(self._background)
        for part in self._changing:
            part.draw(self._canvas.get_renderer())
        return np.asarray(self._canvas.buffer_rgba())


def _cell(axis: Axes, shape: tuple[int, ...] | None) -> tuple[AxesImage | None, Text]:
    """The picture of a cell and the note below it, both to be filled; without a picture the note is in the middle."""
    axis.set_axis_off()
    if shape is None:
        return None, axis.text(0.5, 0.5, "", transform=axis.transAxes, va="center", ha="center", fontsize=8)
    return axis.imshow(np.zeros(shape, np.uint8)), _note_below(axis)


def _note_below(axis: Axes) -> Text:
    return axis.text(0.0, -0.02, "", transform=axis.transAxes, va="top", fontsize=7)


def _row_cells(
    picture: NDArray[np.uint8], truth: Any, prediction: Any, max_depth: float, max_error: float
) -> list[_Cell]:
    """Picture and caption of the four cells of a row."""
    guess = as_map(prediction)
    shown = colorize(guess, 0.0, max_depth)
    if truth is None:
        return [(picture, ""), (None, "no ground truth"), (shown, _range_note(guess)), (None, "")]
    known = as_map(truth)
    if known.shape != guess.shape:
        raise ShapeError(f"ground truth {known.shape} and prediction {guess.shape} differ in size")
    scored = (known > 0) & (known <= max_depth) & np.isfinite(known)
    broken = scored & ~np.isfinite(guess)
    error = np.abs(guess - known) / np.where(scored, known, 1.0)
    good = scored & ~broken
    # A cell is smaller than its picture, so single measured pixels would vanish among the holes around them.
    thick_truth = fill_from_nearest(np.where(scored, known, 0.0), scored, _DOT_REACH_PX)
    thick_error = fill_from_nearest(np.where(good, error, -1.0), scored, _DOT_REACH_PX)
    painted = paint(thick_error, thick_error >= 0, 0.0, max_error, ERROR_MAP, (0, 0, 0))
    painted[thick_truth == 0] = 64  # grey: black is the smallest error
    painted[(thick_truth > 0) & (thick_error < 0)] = (0, 255, 255)
    note = f"mean {error[good].mean():.3f}" if good.any() else "nothing to compare"
    if broken.any():
        note += f", {int(broken.sum())} NaN or infinite (cyan)"
    return [
        (picture, ""),
        (colorize(thick_truth, 0.0, max_depth), _range_note(known)),
        (shown, _range_note(guess)),
        (painted, note),
    ]


def _range_note(depth: NDArray[np.float64]) -> str:
    known = depth[np.isfinite(depth) & (depth > 0)]
    return f"{known.min():.2f}–{known.max():.2f} m" if known.size else "no valid pixel"


def _legend(
    figure: Figure, place: tuple[float, float], height: float, colormap: str, end: float, label: str
) -> None:
    """Draw a colour bar at the foot of the figure; ``place`` is left and width as shares of the figure."""
    axis = figure.add_axes((place[0], 0.42 / height, place[1], 0.1 / height), zorder=-1)  # below long titles
    mappable = ScalarMappable(Normalize(0.0, end), ListedColormap(color_table(colormap) / 255.0))
    bar = figure.colorbar(mappable, cax=axis, orientation="horizontal")
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
