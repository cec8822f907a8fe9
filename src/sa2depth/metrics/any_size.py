"""Run a network on pictures of any size: pad, resize, average with the mirrored picture, and undo it on the result.

Evaluation and inference share it. Padding goes to the right and the bottom, so that a pixel keeps its coordinates;
sides that are multiples already stay unchanged.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.errors import ConfigError, ShapeError


def by(size: Sequence[int]) -> str:
    """Write a size as text: ``480x640``, height first."""
    return "x".join(str(side) for side in size)


def stride_multiple(model: nn.Module) -> int:
    """The number of pixels that the sides of a network's input must be multiples of; 32 if it does not say."""
    return int(getattr(model, "stride_multiple", 32))


def predict_any_size(
    network: Callable[[Tensor], Tensor], picture: Tensor, multiple: int = 32, flip: bool = False
) -> Tensor:
    """Predict maps of a picture of any size: pad it, predict, cut the padding off; with ``flip`` average the TTA flip.

    The picture is mirrored before it is padded, so that the padding lies outside the picture on both passes.

    Args:
        network: ``(B, 3, H', W') -> (B, C, H', W')``; maps of another size are resized to it (bilinear).
        picture: ``(B, 3, H, W)``.
        multiple: The sides H' and W' are multiples of this many pixels.
        flip: Whether to average with the prediction of the mirrored picture (`flip_average`).

    Returns:
        ``(B, C, H, W)``, at least float32.

    Raises:
        ShapeError: The network's output has other axes.
    """

    def predict(shown: Tensor) -> Tensor:
        padded = pad_to_multiple(shown, multiple)
        maps = network(padded)
        if maps.ndim != 4 or len(maps) != len(padded):
            raise ShapeError(
                f"the network turned {tuple(padded.shape)} into {tuple(maps.shape)}; its output should be "
                f"({len(padded)}, 1, {padded.shape[-2]}, {padded.shape[-1]})"
            )
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        maps = resize_map(maps, (padded.shape[-2], padded.shape[-1]))
        return maps[..., : shown.shape[-2], : shown.shape[-1]]

    maps = predict(picture)
    return flip_average(maps, predict(picture.flip(-1)).flip(-1)) if flip else maps


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width, each rounded up to the next multiple."""
    return size[0] + -size[0] % multiple, size[1] + -size[1] % multiple


def pad_to_multiple(image: Tensor, multiple: int = 32) -> Tensor:
    """Pad the bottom and the right up to the next multiple.

    The picture is mirrored at its border; if it is too small for that, its last row or column is repeated.

    Args:
        image: ``(B, C, H, W)``, any H, W >= 1.
        multiple: Pixels.

    Returns:
        ``(B, C, H', W')`` with H' and W' the next multiples; crop with ``[..., :H, :W]``.
    """
    height, width = image.shape[-2], image.shape[-1]
    high, wide = padded_size((height, width), multiple)
    below, right = high - height, wide - width
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
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        size: A fixed (height, width), for example the size of training; the aspect may change.
        max_side: Larger images are shrunk, keeping their aspect, until the longer side is this many pixels.

    Returns:
        Height and width in pixels, before padding.

    Raises:
        ConfigError: Both policies are given, or a side is below one pixel.
    """
    if size is not None and max_side is not None:
        raise ConfigError("give either size or max_side, not both: each of them fixes the working size")
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
    """Resize pictures ``(B, C, H, W)`` bilinearly, with smoothing where they shrink; an equal size changes nothing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize predicted maps ``(B, C, H, W)`` bilinearly, without smoothing; an equal size changes nothing."""
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def flip_average(pred: Tensor, pred_of_mirrored_back: Tensor) -> Tensor:
    """Blend a prediction with the one made on the mirrored image (TTA flip).

    The rule is Monodepth's post-processing (Godard et al. 2017, section 3.3), which the released evaluation applies to
    depth. The middle takes the plain mean. The leftmost 5 % of the width take only the mirrored prediction, the
    rightmost 5 % only the direct one, with linear ramps over the next 5 %.

    Args:
        pred: ``(..., H, W)`` depth in metres, predicted on the image.
        pred_of_mirrored_back: ``(..., H, W)`` depth predicted on the mirrored image and then mirrored back,
            so that both lie on the same pixels.

    Returns:
        ``(..., H, W)`` depth in metres, at least float32.

    Raises:
        ShapeError: The shapes differ.
    """
    if pred.shape != pred_of_mirrored_back.shape:
        raise ShapeError(
            f"flip_average needs two predictions of the same shape, got {tuple(pred.shape)} and "
            f"{tuple(pred_of_mirrored_back.shape)}"
        )
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, other = pred.to(dtype), pred_of_mirrored_back.to(dtype)
    across = torch.linspace(0.0, 1.0, pred.shape[-1], dtype=dtype, device=pred.device)
    left = 1.0 - (20.0 * (across - 0.05)).clamp(0.0, 1.0)
    right = left.flip(-1)
    return right * pred + left * other + (1.0 - left - right) * 0.5 * (pred + other)
