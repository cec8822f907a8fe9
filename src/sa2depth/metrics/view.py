"""What a protocol makes of a batch, cut once: image, truth and their sizes; and the network's depth on the same pixels.

Truth is cut, never resampled: it is the prediction that is resized (bilinear) to the truth's size.
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
        native: of the file.
        frame: of what the protocol cuts out of it, or of a truth with fewer pixels; ground truth and prediction are
            compared at this size.
        network: of what the network saw; None where no network ran.
    """

    native: tuple[int, int]
    frame: tuple[int, int]
    network: tuple[int, int] | None


@dataclass(frozen=True)
class View:
    """A batch as a protocol scores it.

    Attributes:
        image: ``(B, 3, h, w)`` in [0, 1], the protocol's frame.
        truth: ``(B, 1, h, w)`` metres, 0 = not measured; of fewer pixels where the truth has fewer than its image.
        sizes: of each image of the batch.
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
        batch: ``image (B, 3, H, W)``, ``depth (B, 1, H, W)`` metres (or of fewer pixels), ``index (B,)``, ``id``.
        protocol: Says what is cut.
        multiple: Of the network that will see it (`sa2depth.metrics.any_size.stride_multiple`); None: none will.

    Returns:
        Images and truths are views of the batch's memory.

    Raises:
        DataError: The images have no ground truth.
        ShapeError: The images do not fit the protocol's frame, or the truth has another size than its image and shows
            another view, or the protocol counts in pixels of the image.
    """
    if "depth" not in batch:
        raise DataError(
            f"{', '.join(batch['id'])}: no ground truth to score against. Choose a split that has it; "
            "`sa2depth predict` needs none"
        )
    image, truth, native = cut_frame(batch["image"], protocol), batch["depth"], _size(batch["image"])
    if _size(truth) == native:
        truth = cut_frame(truth, protocol)
    else:
        protocol.check_smaller_truth(native, _size(truth))
    network = None if multiple is None else padded_size(_picture_size(_size(image), protocol), multiple)
    return View(image, truth, Sizes(native, _size(truth), network), batch["index"], batch["id"])


def cut_frame(values: Tensor, protocol: Protocol) -> Tensor:
    """The protocol's frame of images or maps; what has its size already, or has no frame, is untouched.

    Args:
        values: ``(..., H, W)`` image, truth or mask.
        protocol: Says which frame.

    Returns:
        ``(..., h, w)``, a view. The principal point of a camera moves by the first and third number of
        ``protocol.frame_box(H, W)``: up by the one, left by the other.

    Raises:
        ShapeError: The image is smaller than the frame.
    """
    top, bottom, left, right = protocol.frame_box(*_size(values))
    return values[..., top:bottom, left:right]


def predict_frame(
    network: Callable[[Tensor], Tensor], image: Tensor, protocol: Protocol, multiple: int = 32
) -> Tensor:
    """Depth of the protocol's frame, under its input policy and flip averaging.

    ``as_is`` changes nothing; ``pad`` mirrors the right and the bottom up to the next multiple, ``resize`` resizes to
    ``input_size`` (and pads if that is no multiple), ``max_side`` shrinks with smoothing, keeping the aspect, and pads;
    ``bottom_centre`` cuts a window out (and pads if that is no multiple). The mirrored pass sees the same pixels
    mirrored, and is averaged at the network's resolution.

    Args:
        network: ``(B, 3, h', w') in [0, 1] -> (B, 1, h', w')`` metres.
        image: ``(B, 3, H, W)`` in [0, 1]; whole images are cut to the protocol's frame first.
        protocol: Says frame, input policy and flip averaging.
        multiple: Sides of the network's input are multiples of this many pixels: ``model.stride_multiple``.

    Returns:
        ``(B, 1, h, w)`` metres, at least float32, on the pixels of ``cut_frame(image, protocol)``.

    Raises:
        ShapeError: The image is no ``(B, 3, H, W)`` or does not fit the protocol.
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
        # OFFICIAL: plain bilinear as cv2.resize in the released scripts, without the smoothing of `max_side`.
        picture = resize_map(frame, _picture_size(size, protocol))
    else:  # only max_side changes the size
        picture = resize_image(frame, _picture_size(size, protocol))
    depth = predict_any_size(network, picture, multiple, protocol.flip)
    if protocol.input == "bottom_centre" and _size(depth) != size:
        return F.pad(depth, (left, width - right, top, height - bottom), mode="replicate")
    return resize_map(depth, size)


def _picture_size(frame: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """What the network sees of a frame, before padding: a fixed size for ``resize`` and ``bottom_centre``."""
    return protocol.input_size or working_size(*frame, max_side=protocol.max_side)


def _size(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]
