"""Guess the unit of a depth file from the range of its values.

A file read with the wrong number of units per metre looks like any other depth map, only nearer or farther. The range
in which the depths of its data set lie gives it away.
"""

import math
from typing import NamedTuple

UNITS: dict[float, str] = {
    1000.0: "millimetres (1000 units per metre: NYU v2, DIML)",
    256.0: "1/256 m (256 units per metre: KITTI)",
    1.0: "metres (1 unit per metre)",
    100.0: "centimetres (100 units per metre: Virtual KITTI)",
    5000.0: "1/5000 m (5000 units per metre: TUM)",
    8000.0: "millimetres rotated by 3 bits (SUN RGB-D)",
    10000.0: "tenths of a millimetre (10000 units per metre)",
}
"""Units per metre that occur in this field, the most frequent first."""

_SUSPECT = 3.5
"""A split is suspect if its range ends at more than this many times its farthest depth; 1000/256 is 3.9."""


class Spread(NamedTuple):
    """The range of the measured depths of an image, in metres.

    Attributes:
        low: 1st percentile.
        median: 50th percentile.
        high: 99th percentile.
        outside: share of measured pixels outside the range of the data set, in [0, 1].
    """

    low: float
    median: float
    high: float
    outside: float


def fitting_units(
    spread: Spread, depth_range: tuple[float, float], units_per_metre: float | None
) -> list[str]:
    """Names of the units in which the depths of an image would lie inside the range.

    Args:
        spread: as read with ``units_per_metre``.
        depth_range: nearest and farthest plausible depth, metres.
        units_per_metre: scale that the file was read with; None: its reader has none, and nothing fits.
    """
    if units_per_metre is None:
        return []
    return [
        name
        for units, name in UNITS.items()
        if units != units_per_metre
        and depth_range[0] <= spread.low * units_per_metre / units
        and spread.high * units_per_metre / units <= depth_range[1]
    ]


def too_near(farthest: float, depth_range: tuple[float, float], units_per_metre: float) -> str | None:
    """A hint at another unit if the farthest depth of a split is far below the end of the range, else None.

    A scale that makes everything too small leaves each image inside a range that begins at a few centimetres; only
    the whole split shows it.

    Args:
        farthest: the largest 99th percentile among the images of the split, metres.
        depth_range: nearest and farthest plausible depth, metres.
        units_per_metre: scale that the files were read with.
    """
    end = depth_range[1]
    if not math.isfinite(end) or farthest * _SUSPECT >= end:
        return None
    for units, name in UNITS.items():
        true = farthest * units_per_metre / units
        if units < units_per_metre and end / _SUSPECT < true <= end:
            return f"up to {true:.3g} m if the values were {name}"
    return None
