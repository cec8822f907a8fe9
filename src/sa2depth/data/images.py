"""Reading photographs and depth maps: the only place that opens image files of a data set.

Photographs go through Pillow (EXIF orientation, palettes, grey), 16-bit depth PNGs through OpenCV: Pillow
opens them as ``I`` or ``I;16`` depending on its version, OpenCV always as ``uint16``.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sa2depth.errors import DataError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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


def read_depth(path: Path, units_per_metre: float) -> npt.NDArray[np.float32]:
    """Read a 16-bit depth PNG as ``(H, W) float32`` metres, 0 = not measured.

    Args:
        path: single-channel 16-bit PNG.
        units_per_metre: value that stands for one metre (NYU v2: 1000, KITTI: 256).

    Raises:
        DataError: the file is absent, broken, or not a single-channel 16-bit PNG.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read this depth map ({error.strerror})") from error
    wanted = f"{path}: expected a 16-bit single-channel PNG ({units_per_metre:g} units a metre)"
    if not data.startswith(_PNG_SIGNATURE):
        raise DataError(f"{wanted}, found another format. Depth must never pass through JPEG.")
    raw: npt.NDArray[Any] | None = _decode(data)
    if raw is None:
        raise DataError(f"{wanted}, found a PNG that is damaged or ends early. Fetch this file again.")
    if raw.ndim != 2 or raw.dtype != np.uint16:
        channels = 1 if raw.ndim == 2 else raw.shape[2]
        raise DataError(
            f"{wanted}, found {channels} channel(s) of {raw.dtype}. Is this a coloured picture of depth?"
        )
    return raw.astype(np.float32) / np.float32(units_per_metre)


def _decode(data: bytes) -> npt.NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _size(image: Image.Image) -> str:
    return f"{image.height}x{image.width} pixels"
