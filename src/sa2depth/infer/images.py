"""Convert any kind of image into the tensor that the network takes.

Paths, Pillow images, NumPy arrays and tensors are accepted. Pictures are turned upright by their EXIF tag; grey,
palette, transparent, CMYK and 16-bit pictures become RGB in [0, 1].
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.image_files import REDUCED, megapixel_limit, opened, reduced, to_rgb, too_large, upright

ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor

# Resampling with overshoot leaves floats a little outside [0, 1]; pixels up to 255 are a mistake.
_TOLERANCE = 0.01
_RAISE = "raise the limit with --max-megapixels (max_megapixels= in Python) or"
_SMALLER = "Ask for a smaller size (--max-side 2000; max_side= or size=), so that it is read reduced"
_ASK_FOR_LESS = f"{_SMALLER}, or {_RAISE}"
_EVEN_REDUCED = f"That is the limit for files that are read reduced. Store it smaller, or {_RAISE}"


class Picture(NamedTuple):
    """A picture for the network: ``(1, 3, H', W')`` float32, and ``(H, W)``, the size of its original image.

    The sizes differ if a very large file was read reduced.
    """

    pixels: Tensor
    size: tuple[int, int]


def to_tensor(image: ImageLike) -> Tensor:
    """Convert to ``(1, 3, H, W)`` float32 RGB in [0, 1].

    Args:
        image: Path of a picture; Pillow image; array ``(H, W)``, ``(H, W, 1|3|4)`` of uint8, uint16 or floats
            in [0, 1]; tensor ``(3, H, W)`` or ``(1, 3, H, W)`` of uint8 or floats in [0, 1]. Channels are
            RGB; a fourth is transparency and dropped.

    Returns:
        The picture on the CPU, or on the tensor's own device.

    Raises:
        DataError: The file is missing, unreadable, or too large (`sa2depth.image_files.megapixel_limit`).
        ShapeError: The shape, type or range is none of the above.
    """
    return to_picture(image).pixels


def to_picture(
    image: ImageLike,
    wanted: Callable[[int, int], tuple[int, int]] | None = None,
    max_megapixels: float | None = None,
) -> Picture:
    """Convert like `to_tensor` and keep the image's size; files above the limit are read reduced if that is enough.

    Args:
        image: See `to_tensor`.
        wanted: Maps ``(height, width)`` of an image to the size that the network will see; None: the image's own.
        max_megapixels: Larger files are not read as a whole; None: see `sa2depth.image_files.megapixel_limit`.

    Returns:
        The picture; if it was read reduced, its sides are at least twice the wanted ones.

    Raises:
        DataError: See `to_tensor`.
        ShapeError: See `to_tensor`.
        ConfigError: The limit is not a positive number.
    """
    if isinstance(image, Tensor):
        pixels = _from_tensor(image)
    elif isinstance(image, np.ndarray):
        pixels = _from_array(image)
    elif isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "image")
        pixels = _from_array(_values(upright(image, name)[0]))
    elif isinstance(image, str | os.PathLike):
        return _read(Path(image).expanduser(), wanted, megapixel_limit(max_megapixels))
    else:
        raise ShapeError(
            f"an image must be a path, a PIL image, a NumPy array or a tensor, not {type(image).__name__}"
        )
    return Picture(pixels, (int(pixels.shape[-2]), int(pixels.shape[-1])))


def _read(path: Path, wanted: Callable[[int, int], tuple[int, int]] | None, limit: float) -> Picture:
    with opened(path, "photograph", math.inf) as image:
        width, height = image.size
        if width * height > limit * 1e6:
            factor = 1 if wanted is None else _spare(height, width, wanted)
            if factor < 2:
                raise too_large(path, image.size, limit, _ASK_FOR_LESS)
            if width * height > REDUCED * limit * 1e6:
                raise too_large(path, image.size, REDUCED * limit, _EVEN_REDUCED)
            turned, swapped = upright(reduced(image, factor), str(path))
        else:
            turned, swapped = upright(image, str(path))
        size = (width, height) if swapped else (height, width)
        return Picture(_from_array(_values(turned)), size)


def _spare(height: int, width: int, wanted: Callable[[int, int], tuple[int, int]]) -> int:
    """The largest whole factor that leaves an image, turned or not, twice the wanted sides."""
    factors = []
    for sides in ((height, width), (width, height)):
        factors += [have // (2 * want) for have, want in zip(sides, wanted(*sides), strict=True)]
    return max(1, min(factors))


def _values(upright_image: Image.Image) -> npt.NDArray[Any]:
    """Pixels of a Pillow image: ``(H, W, 3) uint8``, or ``(H, W) uint16`` for 16-bit grey."""
    if upright_image.mode == "F":
        raise ShapeError("a picture of floats has no known range: scale it to [0, 1] and pass it as an array")
    if upright_image.mode.startswith("I"):
        grey = np.array(upright_image)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ShapeError(
                f"a grey picture of mode {upright_image.mode} must hold 16-bit values, 0 to 65535"
            )
        return grey.astype(np.uint16)
    return np.array(to_rgb(upright_image))


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ShapeError(
            f"an image array must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}"
        )
    array = array[:, :, :3]
    if array.dtype in (np.uint8, np.uint16):
        # in place and without a check of the range: a photograph of 100 megapixels already takes 1.2 GB
        values = np.ascontiguousarray(array, np.float32)
        values /= np.float32(np.iinfo(array.dtype).max)
        picture = rearrange(torch.from_numpy(values), "h w c -> 1 c h w")
        return picture if picture.shape[1] == 3 else picture.expand(-1, 3, -1, -1).contiguous()
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float32)
    else:
        raise ShapeError(f"an image array must hold uint8, uint16 or floats in [0, 1], not {array.dtype}")
    picture = rearrange(torch.from_numpy(np.ascontiguousarray(values)), "h w c -> 1 c h w")
    return _in_range(picture.expand(-1, 3, -1, -1))


def _from_tensor(tensor: Tensor) -> Tensor:
    picture = tensor.detach()
    if picture.ndim == 3:
        picture = picture[None]
    if picture.ndim != 4 or picture.shape[:2] != (1, 3) or 0 in picture.shape:
        raise ShapeError(
            f"an image tensor must have the shape (3, H, W) or (1, 3, H, W), not {tuple(tensor.shape)}"
        )
    if picture.dtype == torch.uint8:
        return picture.float() / 255
    if not picture.is_floating_point():
        raise ShapeError(f"an image tensor must hold uint8 or floats in [0, 1], not {picture.dtype}")
    return _in_range(picture.float())


def _in_range(picture: Tensor) -> Tensor:
    low, high = float(picture.min()), float(picture.max())
    # NaN compares as false, so it is refused, too.
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ShapeError(
            f"float images must be in [0, 1], but these pixels are in [{low:g}, {high:g}]: divide by 255, or pass "
            "uint8; do not normalise, the model does"
        )
    return picture.clamp(0, 1)
