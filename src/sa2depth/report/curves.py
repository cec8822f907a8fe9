"""Training curves from the ``metrics.csv`` that Lightning's CSVLogger writes."""

import csv
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sa2depth.errors import DataError

_AXES = ("step", "epoch")
_COLUMNS = 3
_DPI = 110
# number of points from which a curve has no dots, and a loss is drawn faintly under its running mean
_SMOOTH_FROM = 60


def plot_curves(metrics_csv: Path | str, path: Path | str) -> Path:
    """Draw every logged number over the training step, one panel for each name without its stage.

    ``train/loss`` and ``val/loss`` share the panel ``loss``, as do ``x_step`` and ``x_epoch``; learning rates share a
    panel. Cells without a finite number are left out (the logger leaves most cells empty), and so are counts of images
    that never change.

    Args:
        metrics_csv: File of Lightning's CSVLogger.
        path: The picture file; its folder is made.

    Returns:
        The path.

    Raises:
        DataError: The file is missing or holds no number to draw.
    """
    metrics_csv, path = Path(metrics_csv), Path(path)
    panels = _panels(_read(metrics_csv))
    if not panels:
        raise DataError(
            f"{metrics_csv} holds no number to draw: perhaps the run was stopped before its first log"
        )
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for name, (steps, values) in curves.items():
            many = "loss" in title and len(values) >= _SMOOTH_FROM
            dots = "." if len(values) < _SMOOTH_FROM else ""
            alpha = 0.25 if many else 1.0
            (line,) = axis.plot(steps, values, label=name, alpha=alpha, marker=dots, linewidth=1.2)
            if many:
                axis.plot(steps, _smooth(values), color=line.get_color(), linewidth=1.4)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        for handle in axis.legend(fontsize=7).legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=_DPI)
    return path


Curve = tuple[list[float], list[float]]

_COUNTS = {"images", "empty_images", "nonfinite_images", "nonfinite_pixels"}
"""Counts whose curves are drawn only if they change."""


def _read(path: Path) -> dict[str, Curve]:
    """Name -> (steps, values) of each column that has numbers."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: curves need the CSV logger (logger=csv)")
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for place, row in enumerate(csv.DictReader(file)):
            step = _number(row.get("step"))
            for name, cell in row.items():
                value = _number(cell)
                if name in _AXES or value is None or not isinstance(name, str):
                    continue
                steps, values = curves.setdefault(name, ([], []))
                steps.append(float(place) if step is None else step)
                values.append(value)
    return curves


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _panels(curves: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves grouped by their name without stage and aggregation, losses first; constant counts are left out."""
    panels: dict[str, dict[str, Curve]] = {}
    for name in sorted(curves):
        title = name.split("/", 1)[-1].removesuffix("_step").removesuffix("_epoch")
        for stage in ("train_", "val_", "test_"):
            title = title.removeprefix(stage)
        title = "learning rate" if name.startswith("lr-") else title
        panels.setdefault(title, {})[name] = curves[name]
    for title in _COUNTS & set(panels):
        if all(len(set(values)) == 1 for _, values in panels[title].values()):
            del panels[title]
    return dict(sorted(panels.items(), key=lambda item: ("loss" not in item[0], item[0])))


def _smooth(values: list[float]) -> list[float]:
    """Centred running mean over a tenth of the curve, narrower near both ends so that it does not lag."""
    sums = np.cumsum([0.0, *values])
    place = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 20), np.minimum(place, place[::-1]))
    means: list[float] = ((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)).tolist()
    return means
