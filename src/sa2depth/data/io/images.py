"""Reading photographs and masks through Pillow, which handles EXIF orientation, palettes and grey.

Depth files have readers of their own: `sa2depth.data.io.depth_files`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sa2depth.errors import DataError
from sa2depth.image_files import Note, changes_sides, opened, to_rgb, upright


def read_rgb(path: Path, note: Note | None = None) -> npt.NDArray[np.uint8]:
    """Read a photograph as ``(H, W, 3) uint8`` RGB, upright.

    Grey, palette, CMYK and RGBA images are converted (transparency is dropped), 16-bit colour keeps its upper
    8 bits, and the EXIF orientation is applied.

    Args:
        path: the file.
        note: called with anything odd about the file, see `sa2depth.image_files.upright`; None: log it, once per file.

    Raises:
        DataError: the file is absent, broken, not an image, too large, or a single channel of more than 8 bits.
    """
    with opened(path, "photograph") as image:
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"{path}: expected an 8-bit photograph, found {_size(image)} of mode {image.mode}. "
                "Is this a depth map?"
            )
        return np.array(to_rgb(upright(image, str(path), note)[0]))


def photograph_size(path: Path) -> tuple[int, int]:
    """``(H, W)`` of a photograph as `read_rgb` returns it, from the file's header if that is enough.

    Raises:
        DataError: as `read_rgb`; damage after the header is noticed only if the whole file is read.
    """
    with opened(path, "photograph") as image:
        if image.format in ("JPEG", "MPO", "PNG"):  # others may be rotated while decoding
            width, height = image.size
            return (width, height) if changes_sides(image, str(path)) else (height, width)
    height, width = read_rgb(path).shape[:2]
    return height, width


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask as ``(H, W) bool``, upright: True where it is not 0.

    In a palette image 0 is the first entry, whatever its colour; in a colour image it is black. Transparency is
    ignored.

    Raises:
        DataError: the file is absent, broken or not an image.
    """
    with opened(path, "mask") as image:
        turned, _ = upright(image, str(path))
        if turned.mode in ("1", "L", "P") or turned.mode.startswith("I"):
            return np.not_equal(np.array(turned), 0)
        return np.asarray(np.array(to_rgb(turned)).any(axis=2), np.bool_)


def _size(image: Image.Image) -> str:
    return f"{image.height}x{image.width} pixels"
