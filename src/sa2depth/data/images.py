"""Reading photographs and masks through Pillow, which knows EXIF orientation, palettes and grey.

Depth files have readers of their own: `sa2depth.data.depth_files`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sa2depth.errors import DataError


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Read a photograph as ``(H, W, 3) uint8`` RGB, upright.

    Grey, palette and RGBA images are converted (transparency is dropped), the EXIF orientation is applied.

    Raises:
        DataError: the file is absent, broken, no image, or holds more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path}: expected an 8-bit photograph, found {_size(image)} of mode {image.mode}. "
                    "Is this a depth map?"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected a readable photograph (JPEG, PNG ...), found a broken file or another format "
            f"({error}). Fetch this file again."
        ) from error


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read an 8-bit mask as ``(H, W) bool``: True where it is not 0.

    Raises:
        DataError: the file is absent, broken or no image.
    """
    return np.asarray(read_rgb(path).any(axis=2), np.bool_)


def _size(image: Image.Image) -> str:
    return f"{image.height}x{image.width} pixels"
