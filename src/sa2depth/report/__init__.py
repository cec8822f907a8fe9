"""What an evaluation leaves behind: tables, depth pictures and training curves."""

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
