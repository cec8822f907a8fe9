"""A view is a batch as a protocol cuts it, once: image, truth and sizes. The network predicts depth on the same pixels.

Truth is cut, never resampled; instead the prediction is resized (bilinear) to the truth's size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics.any_size import padded_size, predict_any_size, resize_image, resize_map, working_size
from sa2depth.metrics.protocol import Protocol


class Sizes(NamedTuple):
    """Height and width of an image on its way to a score, in pixels.

    Attributes:
        native: size of the file.
        frame: size of the protocol's frame, or of a truth with fewer pixels; truth and prediction are compared at
            this size.
        network: size that the network saw; None if no network ran.
    """

    native: tuple[int, int]
    frame: tuple[int, int]
    network: tuple[int, int] | None


@dataclass(frozen=True)
class View:
    """A batch as a protocol scores it.

    Attributes:
        image: ``(B, 3, h, w)`` in [0, 1], the protocol's frame.
        truth: ``(B, 1, h, w)`` metres, 0 = not measured; may have fewer pixels than the image.
        sizes: sizes that all images of the batch share.
        index: ``(B,)`` places of the images in their data set.
        ids: B names.
    """

    image: Tensor
    truth: Tensor
    sizes: Sizes
    index: Tensor
    ids: Sequence[str]


def view_of(batch: Mapping[str, Any], protocol: Protocol, multiple: int | None = None) -> View:
    """Cut a batch as a protocol says.

    Args:
        batch: ``image (B, 3, H, W)``, ``depth (B, 1, H, W)`` metres (or fewer pixels), ``index (B,)``, ``id``.
        protocol: Says what is cut.
        multiple: `sa2depth.metrics.any_size.stride_multiple` of the network that will see it; None if none will.

    Returns:
        Images and truths that share the batch's memory.

    Raises:
        DataError: The images have no ground truth.
        ShapeError: The images do not fit the protocol's frame; or the truth has another size than its image, and
            shows another view or the protocol counts in pixels of the image.
    """
    if "depth" not in batch:
        raise DataError(
            f"{', '.join(batch['id'])}: no ground truth to score against. Choose a split that has it; `sa2depth "
            "predict` works without"
        )
    image, truth, native = cut_frame(batch["image"], protocol), batch["depth"], _size(batch["image"])
    if _size(truth) == native:
        truth = cut_frame(truth, protocol)
    else:
        protocol.check_smaller_truth(native, _size(truth))
    network = None if multiple is None else padded_size(_picture_size(_size(image), protocol), multiple)
    return View(image, truth, Sizes(native, _size(truth), network), batch["index"], batch["id"])


def cut_frame(values: Tensor, protocol: Protocol) -> Tensor:
    """Cut the protocol's frame out of images or maps; nothing is cut if they have its size or it has no frame.

    Args:
        values: ``(..., H, W)`` image, truth or mask.
        protocol: Says which frame.

    Returns:
        ``(..., h, w)``, a view of the same memory. The principal point of a camera moves up by the first number of
        ``protocol.frame_box(H, W)`` and left by the third.

    Raises:
        ShapeError: The image is smaller than the frame.
    """
    top, bottom, left, right = protocol.frame_box(*_size(values))
    return values[..., top:bottom, left:right]


def predict_frame(
    network: Callable[[Tensor], Tensor], image: Tensor, protocol: Protocol, multiple: int = 32
) -> Tensor:
    """Depth of the protocol's frame, under its input policy and flip averaging.

    ``as_is`` changes nothing; ``pad`` mirrors the right and the bottom up to the next multiple; ``resize`` resizes to
    ``input_size`` (and pads if that is not a multiple); ``max_side`` shrinks with smoothing, keeps the aspect, and
    pads; ``bottom_centre`` cuts out a window (and pads if that is not a multiple). The TTA flip sees the same pixels
    mirrored, and is averaged at the network's resolution.

    Args:
        network: ``(B, 3, h', w') in [0, 1] -> (B, 1, h', w')`` metres.
        image: ``(B, 3, H, W)`` in [0, 1]; whole images are cut to the protocol's frame first.
        protocol: Gives frame, input policy and flip averaging.
        multiple: Sides of the network's input are multiples of this many pixels: ``model.stride_multiple``.

    Returns:
        ``(B, 1, h, w)`` metres, at least float32, on the pixels of ``cut_frame(image, protocol)``.

    Raises:
        ShapeError: The image is not ``(B, 3, H, W)`` or does not fit the protocol.
    """
    if image.ndim != 4:
        raise ShapeError(f"images must be (B, 3, H, W), got {tuple(image.shape)}")
    frame = cut_frame(image, protocol)
    height, width = size = _size(frame)
    if protocol.input == "as_is":
        protocol.check_multiple(multiple, _size(image))
    if protocol.input == "bottom_centre":
        top, bottom, left, right = protocol.input_box(height, width)
        picture = frame[..., top:bottom, left:right]
    elif protocol.input == "resize":
        # OFFICIAL: plain bilinear like cv2.resize in the released scripts, without the smoothing of `max_side`.
        picture = resize_map(frame, _picture_size(size, protocol))
    else:  # only max_side changes the size
        picture = resize_image(frame, _picture_size(size, protocol))
    depth = predict_any_size(network, picture, multiple, protocol.flip)
    if protocol.input == "bottom_centre" and _size(depth) != size:
        return F.pad(depth, (left, width - right, top, height - bottom), mode="replicate")
    return resize_map(depth, size)


def _picture_size(frame: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """The size that the network sees of a frame, before padding; fixed for ``resize`` and ``bottom_centre``."""
    return protocol.input_size or working_size(*frame, max_side=protocol.max_side)


def _size(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]
