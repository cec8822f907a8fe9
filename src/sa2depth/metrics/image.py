"""The depth errors of one image, in float64 under a protocol (Eigen et al. 2014).

It corresponds to ``compute_errors`` and the loop of ``eval.py`` in the released code and gives the same numbers on
finite input.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.errors import ShapeError
from sa2depth.masks import valid_mask
from sa2depth.metrics.formulas import Errors, measure
from sa2depth.metrics.protocol import Protocol
from sa2depth.metrics.protocol_files import ProtocolLike, load_protocol
from sa2depth.metrics.view import cut_frame

COUNTS = ("pixels", "nonfinite_pixels")


def evaluate_image(
    pred: torch.Tensor | NDArray[Any], gt: torch.Tensor | NDArray[Any], protocol: ProtocolLike
) -> dict[str, float]:
    """Errors of one predicted depth map.

    Args:
        pred: ``(H,W)`` predicted metres (leading axes of length 1 are fine), NumPy or torch, floating-point; covers
            the whole image or the protocol's frame.
        gt: Ground truth in metres of the same size, 0 where not measured.
        protocol: A ``Protocol``, or its name, file or mapping.

    Returns:
        The protocol's ``metrics`` (units: ``sa2depth.metrics.formulas.measure``), ``pixels``, the number of
        scored pixels, and ``nonfinite_pixels``, the number of NaN and infinite predictions anywhere in the
        frame. Without a scored pixel the errors are NaN and ``pixels`` is 0.

    Raises:
        ShapeError: The sizes differ or do not fit the protocol's frame or crop, or an array is not one image or not
            floating-point.
        ConfigError: The protocol is unknown.
    """
    protocol = load_protocol(protocol)
    scored = score_pixels(_as_map(pred, "pred"), _as_map(gt, "gt"), protocol)
    values = measure(scored.errors, protocol.metrics).tolist()
    counts = (float(len(scored.true_depth)), float(scored.nonfinite))
    return dict(zip((*protocol.metrics, *COUNTS), (*values, *counts), strict=True))


class ScoredPixels(NamedTuple):
    """The pixels of one image that count.

    Attributes:
        errors: Errors of prediction against truth, after NaN repair, clamping and clipping.
        true_depth: ``(n,)`` metres as measured, float64, before any clipping.
        nonfinite: ``()`` number of NaN and infinite predictions anywhere in the frame.
    """

    errors: Errors
    true_depth: torch.Tensor
    nonfinite: torch.Tensor


def score_pixels(pred: torch.Tensor, gt: torch.Tensor, protocol: Protocol) -> ScoredPixels:
    """Select the pixels of a prediction that a protocol scores.

    Args:
        pred: ``(H,W)`` floating-point metres; the whole image or the protocol's frame.
        gt: Ground truth of the same size and unit.
        protocol: Says which pixels are scored and how.

    Returns:
        Scored pixels, float64, on the device of ``pred`` (on the CPU if that device has no float64).

    Raises:
        ShapeError: The sizes differ or do not fit the protocol.
    """
    if pred.shape != gt.shape:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and ground truth {tuple(gt.shape)} differ in size: "
            "resize the prediction to the ground truth, never the other way round"
        )
    pred, gt = pred.detach(), gt.detach()
    if pred.device.type == "mps":  # has no float64
        pred, gt = pred.cpu(), gt.cpu()
    pred, gt = cut_frame(pred, protocol), cut_frame(gt.to(pred.device), protocol)
    nonfinite = (~torch.isfinite(pred)).sum()

    top, bottom, left, right = protocol.crop_box(*gt.shape)
    gt, pred = gt[top:bottom, left:right], pred[top:bottom, left:right]
    valid = valid_mask(gt, protocol.min_depth, protocol.max_depth)
    truth, guess = gt[valid].double(), pred[valid].double()
    # OFFICIAL: the released evaluation repairs these silently (NaN -> min, inf -> max). So does this one, to stay
    # comparable, but it also reports them as `nonfinite`.
    guess = torch.nan_to_num(
        guess, nan=protocol.min_depth, posinf=protocol.max_depth, neginf=protocol.min_depth
    )
    guess = guess.clamp(protocol.min_depth, protocol.max_depth)
    if (clip := protocol.clip_both_at) is None:
        return ScoredPixels(Errors(guess, truth), truth, nonfinite)
    return ScoredPixels(Errors(guess.clamp(max=clip), truth.clamp(max=clip)), truth, nonfinite)


def _as_map(values: torch.Tensor | NDArray[Any], name: str) -> torch.Tensor:
    """``(H,W)`` tensor from an array or tensor with leading axes of length 1."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if tensor.ndim < 2 or any(length != 1 for length in tensor.shape[:-2]):
        raise ShapeError(f"{name} must be one (H, W) depth map, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ShapeError(
            f"{name} must be floating-point metres, got {tensor.dtype}: divide by the depth scale first"
        )
    return tensor.reshape(tensor.shape[-2:])
