"""Layer normalisation over the channels of a map (``LayerNormProxy`` of the released code)."""

from einops import rearrange
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over ``C`` at each pixel of ``(B, C, H, W)``; returns a contiguous map.

    Contiguous, because depthwise and grouped convolutions on channels-last maps are several times slower.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        normed = super().forward(rearrange(input, "b c h w -> b h w c"))
        return rearrange(normed, "b h w c -> b c h w").contiguous()
