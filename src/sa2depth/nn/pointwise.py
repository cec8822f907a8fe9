"""1x1 convolutions: matrix products where the memory layout allows it."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sa2depth.nn.layout import has_tokens


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution.

    Args:
        x: ``(B, C, H, W)``; on CUDA in channels-last layout, this is one matrix product.
        weight: ``(O, C, 1, 1)``.
        bias: ``(O)``.

    Returns:
        ``(B, O, H, W)`` in the layout of ``x``.
    """
    # the CPU's convolution is as fast on tokens as on maps
    if x.device.type == "cpu" or not has_tokens(x):
        return F.conv2d(x, weight, bias)
    return _matrix_product(x, weight, bias)


def _matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens = F.linear(rearrange(x, "b c h w -> b h w c"), weight.flatten(1), bias)
    return rearrange(tokens, "b h w o -> b o h w")


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution, see :func:`pointwise`.

    Args:
        channels: ``C``.
        out: ``O``.
        bias: add a learnt bias.
    """

    keep_float32 = False
    plain_conv = True

    def __init__(self, channels: int, out: int, bias: bool = True) -> None:
        super().__init__(channels, out, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H, W)``."""
        return pointwise(input, self.weight, self.bias)
