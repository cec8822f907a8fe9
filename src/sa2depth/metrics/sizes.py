"""Any size: pictures are resized and padded to what a network takes, and its maps brought back.

Padding goes to the right and the bottom, so that a pixel keeps its coordinates; sides that are multiples
already are not touched.
"""

import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import ConfigError


def pad_to_multiple(image: Tensor, multiple: int = 32) -> Tensor:
    """Pad the bottom and the right up to the next multiple.

    The picture is mirrored at its border; where it is too small to be mirrored, its last row or column is
    repeated.

    Args:
        image: ``(B, C, H, W)``, any H, W >= 1.
        multiple: Pixels.

    Returns:
        ``(B, C, H', W')`` with H' and W' the next multiples; crop with ``[..., :H, :W]``.
    """
    height, width = image.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if right:
        image = F.pad(image, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    if below:
        image = F.pad(image, (0, 0, 0, below), mode="reflect" if below < height else "replicate")
    return image


def working_size(
    height: int, width: int, size: tuple[int, int] | None = None, max_side: int | None = None
) -> tuple[int, int]:
    """The size at which an image goes through the network.

    Args:
        height: Of the input, pixels.
        width: Of the input, pixels.
        size: A fixed (height, width), for example the size of training; the aspect may change.
        max_side: Larger images are shrunk, keeping their aspect, until the longer side is this many pixels.

    Returns:
        Height and width in pixels, before padding.

    Raises:
        ConfigError: Both policies at once, or sides below one pixel.
    """
    if size is not None and max_side is not None:
        raise ConfigError("give either size or max_side: they are two answers to one question")
    if size is not None:
        if min(size) < 1:
            raise ConfigError(f"size must be positive pixels (height, width), not {size}")
        return size
    if max_side is not None:
        if max_side < 1:
            raise ConfigError(f"max_side must be positive pixels, not {max_side}")
        scale = max_side / max(height, width)
        if scale < 1:
            return max(1, round(height * scale)), max(1, round(width * scale))
    return height, width


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pictures ``(B, C, H, W)`` bilinearly, smoothing where they shrink; equal size: untouched."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize predicted maps ``(B, C, H, W)`` bilinearly, never smoothing; equal size: untouched."""
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)
