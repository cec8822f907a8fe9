"""Reading photographs and masks through Pillow, which knows EXIF orientation, palettes and grey.

Depth files have readers of their own: `sa2depth.data.depth_files`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from sa2depth.errors import DataError


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Read a photograph as ``(H, W, 3) uint8`` RGB, upright.

    Grey, palette, CMYK and RGBA images are converted (transparency is dropped), of 16-bit colour the upper 8 bits
    are kept, the EXIF orientation is applied.

    Raises:
        DataError: the file is absent, broken, no image, or a single channel of more than 8 bits.
    """
    with _opened(path, "photograph") as image:
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"{path}: expected an 8-bit photograph, found {_size(image)} of mode {image.mode}. "
                "Is this a depth map?"
            )
        image.info.pop("transparency", None)  # of a palette: Pillow would warn of it for every file
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def photograph_size(path: Path) -> tuple[int, int]:
    """``(H, W)`` of a photograph as `read_rgb` hands it out, from the head of the file where that says it.

    Raises:
        DataError: as `read_rgb`, where the whole file has to be read.
    """
    try:
        with Image.open(path) as image:
            known = image.format in ("JPEG", "MPO", "PNG")  # others may turn while decoded
            turned = known and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            width, height = image.size
    except Exception:  # whatever Pillow raises, the reader of the whole file says it in words
        known = turned = False
    if not known:
        height, width = read_rgb(path).shape[:2]
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask as ``(H, W) bool``, upright: True where it is not 0.

    In a palette image 0 is the first entry, whatever its colour; in colour it is black; transparency does not
    count.

    Raises:
        DataError: the file is absent, broken or no image.
    """
    with _opened(path, "mask") as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("1", "L", "P") or upright.mode.startswith("I"):
            return np.not_equal(np.array(upright), 0)
        return np.asarray(np.array(upright.convert("RGB")).any(axis=2), np.bool_)


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An image file, with errors for people while it is read."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such {what}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected a readable {what} (JPEG, PNG ...), found a broken file or another format "
            f"({error}). Fetch this file again."
        ) from error


def _size(image: Image.Image) -> str:
    return f"{image.height}x{image.width} pixels"
