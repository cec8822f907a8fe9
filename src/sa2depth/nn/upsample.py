"""Upsampling between two levels of the decoder (``up0..2`` and ``fusion0..2`` of the released code)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.errors import ConfigError
from sa2depth.nn.layout import in_layout
from sa2depth.nn.norm import ChannelNorm
from sa2depth.nn.pointwise import PointwiseConv, pointwise


class Upsample(nn.Module):
    """Double a coarse map by pixel shuffle and fuse it with the encoder's map of that size.

    Args:
        coarse: channels of the coarse map; even.
        fine: channels of the fine map and of the result.

    Raises:
        ConfigError: if ``coarse`` is odd.
    """

    compile_unit = True

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        if coarse % 2:
            raise ConfigError(
                f"upsampling halves the channels, so their number {coarse} must be even: choose other encoder.channels"
            )
        self.expand = PointwiseConv(coarse, 2 * coarse, bias=False)
        self.norm = ChannelNorm(2 * coarse)
        self.fuse = PointwiseConv(coarse // 2 + fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """``(B, Cc, H, W)`` and ``(B, C, 2H, 2W)`` to ``(B, C, 2H, 2W)``."""
        shuffled = in_layout(F.pixel_shuffle(self.norm(self.expand(coarse)), 2))
        # The 1x1 convolution of [shuffled, fine], without concatenating them in memory.
        shuffled_kernel, fine_kernel = torch.split(
            self.fuse.weight, [shuffled.shape[1], fine.shape[1]], dim=1
        )
        return pointwise(shuffled, shuffled_kernel, self.fuse.bias) + pointwise(in_layout(fine), fine_kernel)
