"""Depth maps from single scans of KITTI's laser scanner: points are projected into the camera; the nearest wins.

Written from the readme of KITTI's raw data and its calibration files. These sources leave some choices open:

- A point belongs to the pixel whose centre is nearest, the top-left pixel's centre being (0, 0). Widely used scripts
  subtract one more pixel, after MATLAB code that counts from 1. On KITTI's own sample the convention used here has
  no offset against the official projection (median 0.1 px); theirs is 1 px off.
- Depth is the distance along the optical axis of the image's camera, not the scanner's own x.
- The scan is used as recorded: the scanner turns for a tenth of a second while the car moves. KITTI's ``velodyne_raw``
  maps undo that motion ("temporally unrolled"). On the sample 33 % of their pixels have a point in the same pixel here
  and 98 % within two pixels, half of them less than 0.05 m nearer or farther; over the whole image the median
  difference is 3 mm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sa2depth.data.io.depth_files import DepthMap
from sa2depth.errors import DataError

_BYTES_A_POINT = 16
Projection = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class VelodyneDepth:
    """Reads a scan ``velodyne_points/data/%010d.bin`` as the depth map of one camera (a `DepthDecoder`).

    Attributes:
        projection: three rows of four: scanner point, metres, to homogeneous pixels; see
            `calibration.scanner_to_image`. A tuple, so that frames can be compared and pickled.
    """

    projection: Projection
    suffixes: ClassVar[tuple[str, ...]] = (".bin",)

    @classmethod
    def of(cls, matrix: npt.NDArray[np.float64]) -> "VelodyneDepth":
        """The decoder for a ``(3, 4)`` matrix."""
        return cls(tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix))

    def __call__(self, path: Path, size: tuple[int, int]) -> DepthMap:
        """Read and project; see `sa2depth.data.io.depth_files.DepthDecoder`."""
        return project(read_scan(path), np.array(self.projection), size)


def read_scan(path: Path) -> npt.NDArray[np.float32]:
    """``(N, 4) float32``: x forward, y left, z up in metres, and reflectance.

    Raises:
        DataError: the file is absent, empty, cut off, or holds numbers that are not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read this laser scan ({error.strerror})") from error
    if not data or len(data) % _BYTES_A_POINT:
        raise DataError(
            f"{path}: expected points of {_BYTES_A_POINT} bytes each, found {len(data):,} bytes. "
            "Download this file again."
        )
    points = np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, 4)
    if not np.isfinite(points).all():
        raise DataError(f"{path}: expected finite numbers, found NaN or infinity: this is not a laser scan")
    return points


def project(
    points: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], size: tuple[int, int]
) -> DepthMap:
    """Project a point cloud to a depth map.

    Args:
        points: ``(N, 3+)``, the first three columns in metres.
        matrix: ``(3, 4)``, from a point to homogeneous pixels; its last row gives the depth in metres.
        size: ``(H, W)`` of the image.

    Returns:
        ``(H, W) float32`` metres: for each pixel the nearest point in front of the camera that falls on it, or 0.
    """
    height, width = size
    u, v, depth = matrix[:, :3] @ points[:, :3].T.astype(np.float64) + matrix[:, 3:]
    front = depth > 0
    u, v, depth = u[front] / depth[front], v[front] / depth[front], depth[front]
    # Compare before rounding: points beside the camera have coordinates of any size.
    inside = (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
    column, row = (np.floor(axis[inside] + 0.5).astype(np.int64) for axis in (u, v))
    depth = depth[inside]
    far_to_near = np.argsort(-depth, kind="stable")
    result = np.zeros(size, np.float32)
    # NumPy keeps the last of several values for one pixel, here the nearest.
    result[row[far_to_near], column[far_to_near]] = depth[far_to_near]
    return result
