"""A frame names the files of one image and its depth, and its camera; `read_frame` reads them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sa2depth.data.io.depth_files import MILLIMETRE_PNG, DepthDecoder, DepthMap
from sa2depth.data.io.images import read_mask, read_rgb
from sa2depth.data.sample import RawSample, camera_matrix, nearest_resized
from sa2depth.depth_size import why_not
from sa2depth.errors import DataError


@dataclass(frozen=True)
class Frame:
    """One image on disk.

    Attributes:
        image: the photograph.
        depth: its depth file; None if the data set has none for this image.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels; None: read from ``intrinsics_file``, or unknown without one.
        id: name of the frame, unique within a data set, e.g. ``train/office_0003/00002``.
        place: name of the place it shows. Frames of one place look alike and stay together when a list is divided.
        decode: reads ``depth`` as metres.
        mask: 8-bit image, 0 where depth must not be used; None: use all of it.
        intrinsics_file: text file with the nine numbers of the camera matrix.
        smaller_depth: True if ``depth`` may have fewer pixels than ``image``, see `sa2depth.depth_size`.
    """

    image: Path
    depth: Path | None
    intrinsics: tuple[float, float, float, float] | None
    id: str
    place: str = ""
    decode: DepthDecoder = MILLIMETRE_PNG
    mask: Path | None = None
    intrinsics_file: Path | None = None
    smaller_depth: bool = False

    @property
    def files(self) -> list[Path]:
        """All files that reading this frame opens."""
        given = (self.image, self.depth, self.mask, self.intrinsics_file)
        return [path for path in given if path is not None]


def read_frame(frame: Frame) -> RawSample:
    """Read the files of one frame.

    Returns:
        A sample at the photograph's own size; the camera matrix holds NaN where the camera is unknown.

    Raises:
        DataError: a file is absent or broken, or the sizes do not fit; the message names the file.
    """
    image = read_rgb(frame.image)
    depth = depth_of_frame(frame, (image.shape[0], image.shape[1]))
    return RawSample(image, depth, _camera(frame), frame.id)


def depth_of_frame(frame: Frame, size: tuple[int, int]) -> DepthMap | None:
    """Read and mask the depth of a frame; None if it has none.

    Args:
        frame: the frame to read.
        size: ``(H, W)`` of its photograph, upright.

    Returns:
        ``(H, W)`` metres, or fewer pixels where the frame allows it; 0 = not measured.

    Raises:
        DataError: a file is absent or broken, or its size does not fit; the message names it.
    """
    if frame.depth is None:
        return None
    depth = frame.decode(frame.depth, size)
    if problem := size_problem(frame, depth.shape, size):
        raise DataError(f"{frame.depth}: {problem}")
    if frame.mask is None:
        return depth
    mask = read_mask(frame.mask)
    if mask.shape not in (size, depth.shape):
        wanted = f"{size[0]}x{size[1]}, found {mask.shape[0]}x{mask.shape[1]}"
        raise DataError(f"{frame.mask}: expected the size of its image {frame.image.name}, {wanted}")
    return np.where(nearest_resized(mask, depth.shape), depth, np.float32(0))


def size_problem(frame: Frame, found: tuple[int, ...], size: tuple[int, int]) -> str | None:
    """A message if a depth map of size ``found`` does not fit its photograph of ``size``, else None."""
    if frame.smaller_depth:
        return why_not((found[0], found[1]), size, frame.image.name)
    if found == size:
        return None
    return (
        f"expected the size of its image {frame.image.name}, {size[0]}x{size[1]}, found {found[0]}x{found[1]}"
    )


def read_camera(path: Path) -> npt.NDArray[np.float64]:
    """Read a ``(3, 3)`` camera matrix from a text file of nine numbers.

    Raises:
        DataError: the file is absent or holds something else.
    """
    try:
        numbers = [float(word) for word in path.read_text().split()]
    except OSError as error:
        raise DataError(f"{path}: cannot read this camera matrix ({error.strerror})") from error
    except ValueError as error:
        raise DataError(
            f"{path}: expected the nine numbers of a camera matrix, found other text ({error})"
        ) from error
    if len(numbers) != 9 or min(numbers[0], numbers[4]) <= 0:
        raise DataError(
            f"{path}: expected the nine numbers of a camera matrix with positive focal lengths, found {numbers}"
        )
    return np.array(numbers).reshape(3, 3)


def _camera(frame: Frame) -> npt.NDArray[np.float64]:
    if frame.intrinsics is not None:
        return camera_matrix(*frame.intrinsics)
    if frame.intrinsics_file is not None:
        return read_camera(frame.intrinsics_file)
    unknown = np.full((3, 3), np.nan)
    unknown[2] = 0.0, 0.0, 1.0
    return unknown
