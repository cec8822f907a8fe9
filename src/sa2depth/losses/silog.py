"""The scale-invariant logarithmic loss of Eigen et al. (2014), weighted as in BTS and the paper.

Counterpart of ``silog_loss`` in the released ``utils.py``.
"""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from sa2depth.errors import ShapeError
from sa2depth.values import checked


class SILog(nn.Module):
    r"""Scale-invariant logarithmic loss over all valid pixels of the batch.

    .. math:: \alpha \sqrt{\tfrac1n \sum d^2 - \lambda (\tfrac1n \sum d)^2}, \qquad d = \ln pred - \ln target

    The mean runs over the valid pixels of the whole batch (of this process), not per image. The caller provides the
    mask, ``sa2depth.masks.valid_mask(depth, min_depth, max_depth)``; the released training uses ``max_depth=inf``.

    OFFICIAL: value and gradient are those of the released code wherever these are finite. Elsewhere ours are finite,
    too: a perfect prediction and an empty mask give 0 with zero gradients (still connected to ``pred``, so that
    DistributedDataParallel finds every parameter), and a prediction of 0 or below counts as ``eps`` with zero
    gradient. A NaN at a valid pixel stays NaN, because a broken model must be noticed.

    Args:
        variance_focus: lambda in [0, 1]; 1 ignores the global scale, 0 is the plain RMS of the logarithms.
        scale: alpha, > 0.
        eps: Predictions are clamped to at least this many metres, > 0.

    Raises:
        ConfigError: An argument is out of range.
    """

    @checked
    def __init__(
        self,
        variance_focus: Annotated[float, Interval(ge=0, le=1)] = 0.85,
        scale: Annotated[float, Interval(gt=0, lt=math.inf)] = 10.0,
        eps: Annotated[float, Interval(gt=0, lt=math.inf)] = 1e-12,
    ) -> None:
        super().__init__()
        self.variance_focus = variance_focus
        self.scale = scale
        self.eps = eps

    def forward(self, pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Loss of one batch.

        Args:
            pred: ``(B,1,H,W)`` predicted depth in metres.
            target: ``(B,1,H,W)`` ground truth in metres, > 0 wherever ``valid``.
            valid: ``(B,1,H,W)`` bool, True where the pixel counts.

        Returns:
            Scalar, at least float32, even under autocast.

        Raises:
            ShapeError: The shapes differ or ``valid`` is not bool.
        """
        if not pred.shape == target.shape == valid.shape:
            raise ShapeError(
                "SILog takes pred, target and valid of the same shape, not "
                f"{tuple(pred.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}"
            )
        if valid.dtype != torch.bool:
            raise ShapeError(f"SILog takes a bool mask (True = valid), not {valid.dtype}")
        with torch.autocast(pred.device.type, enabled=False):
            dtype = torch.promote_types(pred.dtype, torch.float32)
            # Masking with `where` before the logarithm keeps a NaN at an invalid pixel out of the value and, as
            # NaN * 0, out of the gradient. Boolean indexing would make the CPU wait for the GPU to count.
            pred = torch.where(valid, pred.to(dtype), 1.0).clamp(min=self.eps)
            target = torch.where(valid, target.to(dtype), 1.0)
            difference = pred.log() - target.log()
            count = valid.sum().clamp(min=1)
            mean = difference.sum() / count
            # mean(d^2) - lambda mean(d)^2, written as a sum of squares: it cannot round below zero.
            spread = torch.where(valid, difference - mean, 0.0).square().sum() / count
            inner = spread + (1.0 - self.variance_focus) * mean.square()
            # The root's slope is infinite at zero: there, and only there, a constant 1 replaces its argument.
            flat = inner == 0
            root = torch.where(flat, 1.0, inner).sqrt()
            return torch.where(flat, inner, root) * self.scale

    def extra_repr(self) -> str:
        """The arguments, for ``print(model)``."""
        return f"variance_focus={self.variance_focus}, scale={self.scale}, eps={self.eps}"
