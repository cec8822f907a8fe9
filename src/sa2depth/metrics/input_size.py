"""What a network sees of an image under a protocol, and how its prediction comes back to the truth's pixels.

Truth is cut, never resampled: it is the prediction that is resized (bilinear) to the truth's size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.metrics.flip import flip_average
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.sizes import pad_to_multiple, resize_image, resize_map, working_size

Undo = Callable[[Tensor], Tensor]


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
    top, bottom, left, right = protocol.frame_box(values.shape[-2], values.shape[-1])
    return values[..., top:bottom, left:right]


def cut_truth(truth: Tensor, image: tuple[int, int], protocol: Protocol) -> Tensor:
    """What is scored of a truth: the protocol's frame of it, or all of one with fewer pixels than its image.

    Args:
        truth: ``(..., h, w)``.
        image: ``(H, W)`` of the image.
        protocol: Says which frame.

    Returns:
        A view; the prediction is brought to its size with ``resize_map``.

    Raises:
        ShapeError: The sizes do not fit each other, or the protocol counts in pixels of the image.
    """
    size = (truth.shape[-2], truth.shape[-1])
    if size == image:
        return cut_frame(truth, protocol)
    protocol.check_smaller_truth(image, size)
    return truth


def prepare_input(image: Tensor, protocol: Protocol, multiple: int = 32) -> tuple[Tensor, Undo]:
    """Bring images to what the network takes, under the protocol's input policy.

    ``as_is`` changes nothing; ``pad`` mirrors the right and the bottom up to the next multiple, ``resize``
    resizes to ``input_size`` (and pads if that is no multiple), ``max_side`` shrinks with smoothing, keeping
    the aspect, and pads; ``bottom_centre`` cuts a window out (and pads if that is no multiple). For flip
    averaging use ``predict_frame``: mirroring before or after padding is not the same.

    Args:
        image: ``(B, 3, H, W)``; whole images are cut to the protocol's frame first.
        protocol: Says frame and policy.
        multiple: Sides of the network's input are multiples of this many pixels: ``model.stride_multiple``.

    Returns:
        ``(B, 3, h', w')`` for the network, and the function that brings its ``(B, C, h', w')`` prediction to
        ``(B, C, h, w)``, the frame's size, at least float32. A prediction of another size than the input is
        resized (bilinear) to the input first.

    Raises:
        ShapeError: The image is no ``(B, C, H, W)`` or does not fit the protocol.
    """
    view = _view(image, protocol, multiple)
    padded = pad_to_multiple(view.picture, multiple)

    def undo(prediction: Tensor) -> Tensor:
        return view.back(_unpadded(prediction, padded, view.picture))

    return padded, undo


def predict_frame(
    network: Callable[[Tensor], Tensor], image: Tensor, protocol: Protocol, multiple: int = 32
) -> Tensor:
    """Depth of the protocol's frame: cut, prepared, predicted, averaged with the mirrored image's, returned.

    The mirrored pass sees the same pixels mirrored, and is averaged at the network's resolution; padding lies
    outside the picture on both passes.

    Args:
        network: ``(B, 3, h', w') in [0, 1] -> (B, 1, h', w')`` metres.
        image: ``(B, 3, H, W)`` in [0, 1].
        protocol: Says frame, input policy and flip averaging.
        multiple: Sides of the network's input are multiples of this many pixels: ``model.stride_multiple``.

    Returns:
        ``(B, 1, h, w)`` metres, at least float32, on the pixels of ``cut_frame(image, protocol)``.

    Raises:
        ShapeError: The image does not fit the protocol.
    """
    view = _view(image, protocol, multiple)

    def predict(picture: Tensor) -> Tensor:
        padded = pad_to_multiple(picture, multiple)
        return _unpadded(network(padded), padded, picture)

    depth = predict(view.picture)
    if protocol.flip:
        depth = flip_average(depth, predict(view.picture.flip(-1)).flip(-1))
    return view.back(depth)


class _View(NamedTuple):
    """``picture (B,3,h',w')`` to be padded, and what brings a map of its size to the frame's size."""

    picture: Tensor
    back: Undo


def _view(image: Tensor, protocol: Protocol, multiple: int) -> _View:
    if image.ndim != 4:
        raise ShapeError(f"images must be (B, 3, H, W), got {tuple(image.shape)}")
    frame = cut_frame(image, protocol)
    height, width = frame.shape[-2], frame.shape[-1]
    if protocol.input == "as_is":
        protocol.check_multiple(multiple, (image.shape[-2], image.shape[-1]))
        return _View(frame, _unchanged)
    if protocol.input == "bottom_centre":
        top, bottom, left, right = protocol.input_box(height, width)
        margins = (left, width - right, top, height - bottom)
        return _View(frame[..., top:bottom, left:right], lambda depth: _extended(depth, margins))
    if protocol.input == "resize":
        assert protocol.input_size is not None
        # OFFICIAL: plain bilinear as cv2.resize in the released scripts, without the smoothing of `max_side`.
        picture = resize_map(frame, protocol.input_size)
    else:  # pad: max_side is None, so nothing is resized
        picture = resize_image(frame, working_size(height, width, max_side=protocol.max_side))
    return _View(picture, lambda depth: resize_map(depth, (height, width)))


def _unpadded(prediction: Tensor, padded: Tensor, picture: Tensor) -> Tensor:
    """A network's map without what ``pad_to_multiple`` added, at least float32."""
    if prediction.ndim != 4 or len(prediction) != len(padded):
        raise ShapeError(
            f"the network answered {tuple(padded.shape)} with {tuple(prediction.shape)}; it should be "
            f"({len(padded)}, 1, {padded.shape[-2]}, {padded.shape[-1]})"
        )
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    prediction = resize_map(prediction, (padded.shape[-2], padded.shape[-1]))
    return prediction[..., : picture.shape[-2], : picture.shape[-1]]


def _unchanged(depth: Tensor) -> Tensor:
    return depth


def _extended(depth: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """A map with its border repeated to the left, right, top and bottom."""
    return F.pad(depth, margins, mode="replicate") if any(margins) else depth
