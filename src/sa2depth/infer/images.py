"""Whatever a person calls an image, as the tensor that the network takes.

Paths, Pillow images, NumPy arrays and tensors; upright by their EXIF tag; grey, palette, transparent, CMYK
and 16-bit pictures become RGB in [0, 1].
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from sa2depth.errors import DataError, ShapeError

ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor

# Resampling with overshoot leaves floats a little outside [0, 1]; pixels up to 255 are a mistake to tell.
_TOLERANCE = 0.01


def to_tensor(image: ImageLike) -> Tensor:
    """Convert to ``(1, 3, H, W)`` float32 RGB in [0, 1].

    Args:
        image: Path of a picture; Pillow image; array ``(H, W)``, ``(H, W, 1|3|4)`` of uint8, uint16 or floats
            in [0, 1]; tensor ``(3, H, W)`` or ``(1, 3, H, W)`` of uint8 or floats in [0, 1]. Channels are
            RGB; a fourth is transparency and dropped.

    Returns:
        The picture on the CPU, or on the tensor's own device.

    Raises:
        DataError: The file is absent or no readable picture.
        ShapeError: The shape, type or range is none of the above.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_array(_pixels(image))
    if isinstance(image, str | os.PathLike):
        return _from_array(_read(Path(image).expanduser()))
    raise ShapeError(
        f"an image is a path, a PIL image, a NumPy array or a tensor, not {type(image).__name__}"
    )


def _read(path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such image file")
    try:
        with Image.open(path) as image:
            return _pixels(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: not a picture that can be read ({error}); fetch or export it again"
        ) from error


def _pixels(image: Image.Image) -> npt.NDArray[Any]:
    """Upright pixels: ``(H, W, 3) uint8``, or ``(H, W) uint16`` for 16-bit grey."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ShapeError("a picture of floats has no known range: scale it to [0, 1] and pass it as an array")
    if upright.mode.startswith("I"):
        grey = np.array(upright)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ShapeError(f"a grey picture of mode {upright.mode} must hold 16-bit values, 0 to 65535")
        return grey.astype(np.uint16)
    return np.array(upright.convert("RGB"))


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ShapeError(
            f"an image array has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}"
        )
    array = array[:, :, :3]
    if array.dtype in (np.uint8, np.uint16):
        values = array.astype(np.float32) / np.iinfo(array.dtype).max
    elif np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float32)
    else:
        raise ShapeError(f"an image array holds uint8, uint16 or floats in [0, 1], not {array.dtype}")
    picture = rearrange(torch.from_numpy(np.ascontiguousarray(values)), "h w c -> 1 c h w")
    return _in_range(picture.expand(-1, 3, -1, -1))


def _from_tensor(tensor: Tensor) -> Tensor:
    picture = tensor.detach()
    if picture.ndim == 3:
        picture = picture[None]
    if picture.ndim != 4 or picture.shape[:2] != (1, 3) or 0 in picture.shape:
        raise ShapeError(
            f"an image tensor has the shape (3, H, W) or (1, 3, H, W), not {tuple(tensor.shape)}"
        )
    if picture.dtype == torch.uint8:
        return picture.float() / 255
    if not picture.is_floating_point():
        raise ShapeError(f"an image tensor holds uint8 or floats in [0, 1], not {picture.dtype}")
    return _in_range(picture.float())


def _in_range(picture: Tensor) -> Tensor:
    low, high = float(picture.min()), float(picture.max())
    # NaN compares as false, so that it is refused as well.
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ShapeError(
            f"float images are in [0, 1], these pixels are in [{low:g}, {high:g}]: divide by 255, or pass "
            "uint8; the model normalises by itself"
        )
    return picture.clamp(0, 1)
