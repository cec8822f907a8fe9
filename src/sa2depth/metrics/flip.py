"""Flip averaging at test time: the mean of two predictions, each left out where its own border is blind.

The rule is Monodepth's post-processing (Godard et al. 2017, section 3.3), which the released evaluation
applies to depth.
"""

import torch

from sa2depth.errors import ShapeError


def flip_average(pred: torch.Tensor, pred_of_mirrored_back: torch.Tensor) -> torch.Tensor:
    """Blend a prediction with the one made on the mirrored image.

    In the middle the plain mean. In the leftmost 5 % of the width only the mirrored one counts, in the
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
            f"flip_average wants two predictions of one shape, got {tuple(pred.shape)} and "
            f"{tuple(pred_of_mirrored_back.shape)}"
        )
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, other = pred.to(dtype), pred_of_mirrored_back.to(dtype)
    across = torch.linspace(0.0, 1.0, pred.shape[-1], dtype=dtype, device=pred.device)
    left = 1.0 - (20.0 * (across - 0.05)).clamp(0.0, 1.0)
    right = left.flip(-1)
    return right * pred + left * other + (1.0 - left - right) * 0.5 * (pred + other)
