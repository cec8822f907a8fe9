"""Layer normalisation over channels, for tokens and for maps (``LayerNormProxy`` of the released code)."""

from einops import rearrange
from torch import Tensor, nn

from sa2depth.nn.layout import from_tokens
from sa2depth.ops import layer_norm


class TokenNorm(nn.LayerNorm):
    """LayerNorm over the last dimension, by ``ops.layer_norm``."""

    def forward(self, input: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., C)``."""
        return layer_norm(input, self.weight, self.bias, self.eps)


class ChannelNorm(TokenNorm):
    """LayerNorm over ``C`` at each pixel of ``(B, C, H, W)``; the result has the layout of its device."""

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        return from_tokens(super().forward(rearrange(input, "b c h w -> b h w c")))
