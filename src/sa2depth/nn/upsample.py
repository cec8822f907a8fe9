"""Upsampling between two levels of the decoder (``up0..2`` and ``fusion0..2`` of the released code)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.errors import ConfigError
from sa2depth.nn.norm import ChannelNorm


class Upsample(nn.Module):
    """Double a coarse map by pixel shuffle and fuse it with the encoder's map of that size.

    Args:
        coarse: channels of the coarse map; even.
        fine: channels of the fine map and of the result.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        if coarse % 2:
            raise ConfigError(f"upsampling shuffles half the channels: {coarse} must be even")
        self.expand = nn.Conv2d(coarse, 2 * coarse, 1, bias=False)
        self.norm = ChannelNorm(2 * coarse)
        self.fuse = nn.Conv2d(coarse // 2 + fine, fine, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """``(B, Cc, H, W)`` and ``(B, C, 2H, 2W)`` to ``(B, C, 2H, 2W)``."""
        shuffled = F.pixel_shuffle(self.norm(self.expand(coarse)), 2)
        return self.fuse(torch.cat((shuffled, fine.to(shuffled.dtype)), dim=1))
