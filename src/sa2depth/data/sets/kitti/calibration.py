"""KITTI's calibration files: camera matrix and scanner-to-image projection of a recording day.

Source: the readme of the raw data's development kit. A file holds lines ``name: numbers``; ``calib_cam_to_cam.txt``
and ``calib_velo_to_cam.txt`` are in the folder of their day (``2011_09_26``). Cameras are 2 (left) and 3 (right).
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sa2depth.errors import DataError

CAMERAS_FILE = "calib_cam_to_cam.txt"
SCANNER_FILE = "calib_velo_to_cam.txt"

Matrix = npt.NDArray[np.float64]


def read_calibration(path: Path) -> dict[str, Matrix]:
    """Numbers of a calibration file by name, as flat arrays; lines of other content (dates) are skipped.

    Raises:
        DataError: the file is absent or holds no line of numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot read this calibration file ({error}). It comes with the day's archive, e.g. "
            "2011_09_26_calib.zip of KITTI's raw data page."
        ) from error
    numbers: dict[str, Matrix] = {}
    for line in lines:
        name, _, values = line.partition(":")
        try:
            numbers[name.strip()] = np.array([float(value) for value in values.split()])
        except ValueError:  # calib_time: 09-Jan-2012 13:57:47
            continue
    if not any(values.size for values in numbers.values()):
        raise DataError(
            f"{path}: expected lines such as 'P_rect_02: 7.2e+02 ...', found none. Download it again."
        )
    return numbers


def camera_intrinsics(day: Path, camera: int) -> tuple[float, float, float, float]:
    """``(fx, fy, cx, cy)`` in pixels of the rectified images of one camera.

    Args:
        day: folder of a recording day, with ``calib_cam_to_cam.txt``.
        camera: 2 or 3.

    Raises:
        DataError: the file is absent, broken or lacks the camera.
    """
    p = _projection(day, camera)
    return float(p[0, 0]), float(p[1, 1]), float(p[0, 2]), float(p[1, 2])


def scanner_to_image(day: Path, camera: int) -> Matrix:
    """``(3, 4)`` matrix from a laser scanner point in metres to homogeneous pixels of one camera.

    It is ``P_rect_0X @ R_rect_00 @ [R | T]``. The last row gives the point's depth along the optical axis of *that*
    camera: ``P_rect`` carries the camera's offset from camera 0 in its fourth column, 6 cm to the side and 3 mm along
    the axis for camera 2.

    Args:
        day: folder of a recording day, with both calibration files.
        camera: 2 or 3.

    Raises:
        DataError: a file is absent, broken or lacks an entry.
    """
    rectify, move = np.eye(4), np.eye(4)
    rectify[:3, :3] = _entry(day / CAMERAS_FILE, "R_rect_00", (3, 3))
    move[:3, :3] = _entry(day / SCANNER_FILE, "R", (3, 3))
    move[:3, 3] = _entry(day / SCANNER_FILE, "T", (3,))
    return np.asarray(_projection(day, camera) @ rectify @ move)


def _projection(day: Path, camera: int) -> Matrix:
    path, name = day / CAMERAS_FILE, f"P_rect_{camera:02d}"
    matrix = _entry(path, name, (3, 4))
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DataError(
            f"{path}: expected finite numbers and positive focal lengths in {name}, found {matrix.tolist()}"
        )
    return matrix


def _entry(path: Path, name: str, shape: tuple[int, ...]) -> Matrix:
    numbers = read_calibration(path)
    values = numbers.get(name)
    if values is None or values.size != int(np.prod(shape)):
        found = "no such entry" if values is None else f"{values.size} numbers"
        raise DataError(
            f"{path}: expected an entry '{name}' of {int(np.prod(shape))} numbers, found {found}. "
            "Download the day's calibration archive again."
        )
    return values.reshape(shape)
