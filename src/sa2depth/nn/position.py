"""Positional depthwise convolution at the head of a block (``ResDWC`` of the released code)."""

import torch
from torch import Tensor, nn

from sa2depth.nn.layout import in_layout
from sa2depth.nn.merged import MergesWeights
from sa2depth.ops import depthwise_conv


class PositionConv(MergesWeights):
    """Depthwise 3x3 convolution whose kernel is the learnt one plus a fixed diagonal.

    The released code intends ``x + conv(x)`` but adds ``eye(3)`` to the kernel, which gives
    ``x[i-1, j-1] + x[i, j] + x[i+1, j+1] + conv(x)``. Released weights were trained with it, so it stays.

    Args:
        channels: ``C``.
    """

    keep_float32 = True  # ops.depthwise_conv reads the merged kernel in float32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        # Not trained, yet a parameter as in the released code, so that parameter counts agree.
        self.shortcut = nn.Parameter(torch.eye(3).reshape(1, 1, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        (kernel,) = self.merged()
        return depthwise_conv(in_layout(x), kernel, self.conv.bias)

    def _merge(self) -> tuple[Tensor, ...]:
        return (self.conv.weight + self.shortcut,)
