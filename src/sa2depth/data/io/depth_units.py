"""Which unit a depth file may really be in, judged from where its values fall.

A file read with the wrong number of units a metre looks like any other depth map, only nearer or farther. What gives it
away is the range in which the depths of its data set lie.
"""

import math
from typing import NamedTuple

UNITS: dict[float, str] = {
    1000.0: "millimetres (1000 units a metre: NYU v2, DIML)",
    256.0: "1/256 m (256 units a metre: KITTI)",
    1.0: "metres (1 unit a metre)",
    100.0: "centimetres (100 units a metre: Virtual KITTI)",
    5000.0: "1/5000 m (5000 units a metre: TUM)",
    8000.0: "millimetres rotated by 3 bits (SUN RGB-D)",
    10000.0: "tenths of a millimetre (10000 units a metre)",
}
"""Units a metre that occur in this field, the most frequent first."""

_CANNOT_BE = 3.5
"""A split whose farthest depth is so many times below the range's end is looked at; 1000/256 is 3.9."""


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
        units_per_metre: what the file was read with; None: its reader knows no such number, and nothing fits.
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
    """The unit of a whole split whose farthest depth stays far below the end of the range; None: nothing odd.

    A scale that makes everything too small leaves each image inside a range that begins at a few centimetres; over a
    whole split it shows.

    Args:
        farthest: the largest 99th percentile among the images of the split, metres.
        depth_range: nearest and farthest plausible depth, metres.
        units_per_metre: what the files were read with.
    """
    end = depth_range[1]
    if not math.isfinite(end) or farthest * _CANNOT_BE >= end:
        return None
    for units, name in UNITS.items():
        true = farthest * units_per_metre / units
        if units < units_per_metre and end / _CANNOT_BE < true <= end:
            return f"up to {true:.3g} m if the values were {name}"
    return None
