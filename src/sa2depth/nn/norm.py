"""Layer normalisation over the channels of a map (``LayerNormProxy`` of the released code)."""

from einops import rearrange
from torch import Tensor, nn

from sa2depth.nn.layout import from_tokens


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over ``C`` at each pixel of ``(B, C, H, W)``; the result has the layout of its device."""

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        return from_tokens(super().forward(rearrange(input, "b c h w -> b h w c")))
