"""The nine depth errors of one image, in float64 under a protocol (Eigen et al. 2014).

Counterpart of ``compute_errors`` and the loop of ``eval.py`` in the released code, and equal to them on
finite input.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sa2depth.errors import ShapeError
from sa2depth.masks import valid_mask
from sa2depth.metrics.protocol import Protocol, ProtocolLike, load_protocol

METRICS = ("silog", "abs_rel", "log10", "rmse", "sq_rel", "log_rmse", "d1", "d2", "d3")
COUNTS = ("pixels", "nonfinite_pixels")


def evaluate_image(
    pred: torch.Tensor | NDArray[Any], gt: torch.Tensor | NDArray[Any], protocol: ProtocolLike
) -> dict[str, float]:
    """Errors of one predicted depth map.

    Args:
        pred: ``(H,W)`` predicted metres (leading axes of length 1 are fine), NumPy or torch, floating.
        gt: Ground truth in metres of the same size, 0 where not measured.
        protocol: A ``Protocol``, or its name, file or mapping.

    Returns:
        ``METRICS`` (``silog`` times 100, ``rmse`` in metres, the thresholds ``d1..d3`` as shares in [0, 1]),
        ``pixels``, the number of scored pixels, and ``nonfinite_pixels``, the number of NaN and infinite
        predictions anywhere in the frame. Without a scored pixel the errors are NaN and ``pixels`` is 0.

    Raises:
        ShapeError: The sizes differ, are not one image, do not fit the protocol's crop, or are not floating.
        ConfigError: Unknown protocol.
    """
    row = image_row(_as_map(pred, "pred"), _as_map(gt, "gt"), load_protocol(protocol))
    return dict(zip((*METRICS, *COUNTS), row.tolist(), strict=True))


def image_row(pred: torch.Tensor, gt: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """``evaluate_image`` on tensors.

    Args:
        pred: ``(H,W)`` floating, metres.
        gt: ``(H,W)`` floating, metres.
        protocol: What to score and how.

    Returns:
        ``(11,)`` float64 on the device of ``pred``: ``METRICS``, ``pixels``, ``nonfinite_pixels``.

    Raises:
        ShapeError: The sizes differ or do not fit the protocol's crop.
    """
    if pred.shape != gt.shape:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and ground truth {tuple(gt.shape)} differ in size: "
            "resize the prediction to the ground truth, never the other way round"
        )
    pred, gt = pred.detach(), gt.detach()
    if pred.device.type == "mps":  # has no float64
        pred, gt = pred.cpu(), gt.cpu()
    gt = gt.to(pred.device)
    nonfinite = (~torch.isfinite(pred)).sum()

    top, bottom, left, right = protocol.crop_box(*gt.shape)
    gt, pred = gt[top:bottom, left:right], pred[top:bottom, left:right]
    valid = valid_mask(gt, protocol.min_depth, protocol.max_depth)
    truth, guess = gt[valid].double(), pred[valid].double()
    # OFFICIAL: the released evaluation repairs these silently (NaN -> min, inf -> max); so does the score
    # here, to stay comparable, but `nonfinite` travels beside it.
    guess = torch.nan_to_num(
        guess, nan=protocol.min_depth, posinf=protocol.max_depth, neginf=protocol.min_depth
    )
    guess = guess.clamp(protocol.min_depth, protocol.max_depth)
    if protocol.clip_both_at is not None:
        truth, guess = truth.clamp(max=protocol.clip_both_at), guess.clamp(max=protocol.clip_both_at)
    counts = torch.stack([valid.sum(), nonfinite]).double()
    return torch.cat([_errors(guess, truth), counts])


def _errors(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """``(9,)`` errors as in ``METRICS`` of ``(n,)`` positive depths; the mean of nothing is NaN."""
    log_error = guess.log() - truth.log()
    error = guess - truth
    ratio = torch.maximum(guess / truth, truth / guess)
    mean_log = log_error.mean()
    return torch.stack(
        [
            # OFFICIAL: sqrt(mean(e^2) - mean(e)^2), which rounds below zero on exactly scaled predictions
            # (NaN in the released float32 code); the same number as a mean of squares cannot.
            100.0 * (log_error - mean_log).square().mean().sqrt(),
            (error.abs() / truth).mean(),
            log_error.abs().mean() / math.log(10.0),
            error.square().mean().sqrt(),
            (error.square() / truth).mean(),
            log_error.square().mean().sqrt(),
            *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
        ]
    )


def _as_map(values: torch.Tensor | NDArray[Any], name: str) -> torch.Tensor:
    """``(H,W)`` tensor out of an array or tensor with leading axes of length 1."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if tensor.ndim < 2 or any(length != 1 for length in tensor.shape[:-2]):
        raise ShapeError(f"{name} must be one (H, W) depth map, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ShapeError(
            f"{name} must be floating-point metres, got {tensor.dtype}: divide by the depth scale first"
        )
    return tensor.reshape(tensor.shape[-2:])
