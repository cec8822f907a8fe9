"""The files that an evaluation writes: tables, depth pictures, training curves and a page."""

from sa2depth.report.colours import colorize
from sa2depth.report.curves import plot_curves
from sa2depth.report.figures import DepthGrids, depth_grid
from sa2depth.report.tables import write_by_depth, write_metrics, write_table

__all__ = [
    "DepthGrids",
    "colorize",
    "depth_grid",
    "plot_curves",
    "write_by_depth",
    "write_metrics",
    "write_table",
]
