"""Bilinear upsampling whose gradient is computed by two matrix products instead of atomic additions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sa2depth.ops.precision import no_autocast


def upsample_bilinear(x: Tensor, size: torch.Size) -> Tensor:
    """``F.interpolate(x, size, mode="bilinear")`` in the dtype of ``x``, even under autocast.

    Args:
        x: ``(B, C, h, w)``.
        size: ``(H, W)``.

    Returns:
        ``(B, C, H, W)``.
    """
    if x.shape[2:] == size:
        return x
    with no_autocast(
        x
    ):  # autocast would convert the map to float32; the kernel accumulates in float32 anyway
        if x.device.type == "cpu":  # PyTorch's own gradient is no slower there
            return F.interpolate(x, size, mode="bilinear")
        upsampled: Tensor = _Upsample.apply(x, size[0], size[1])  # type: ignore[no-untyped-call]
        return upsampled


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, height: int, width: int) -> Tensor:
        ctx.size = x.shape[2:]
        return F.interpolate(x, (height, width), mode="bilinear")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return shrink(grad, *ctx.size), None, None


def shrink(grad: Tensor, height: int, width: int) -> Tensor:
    """The transpose of the upsampling: ``(B, C, H, W)`` to ``(B, C, height, width)``.

    Rows and columns are weighted one after the other, each by one matrix product over channels-last pixels.
    """
    batch, channels, rows, columns = grad.shape
    tokens = grad.permute(0, 2, 3, 1).reshape(batch, rows, columns * channels)
    by_rows = _weights(height, rows, grad) @ tokens
    by_columns = _weights(width, columns, grad) @ by_rows.reshape(batch * height, columns, channels)
    return by_columns.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _weights(few: int, many: int, like: Tensor) -> Tensor:
    """Weight of each coarse pixel in each fine pixel along one side, ``(few, many)``."""
    unit = torch.eye(few, device=like.device, dtype=torch.float32)[None]
    return F.interpolate(unit, many, mode="linear")[0].to(like.dtype)
