"""The plain feed-forward layer of transformers (Vaswani et al. 2017), as 1x1 convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.nn.folding import fold_into
from sa2depth.nn.pointwise import PointwiseConv


class Mlp(nn.Module):
    """Expand, GELU, project back, at every pixel independently.

    Args:
        channels: ``C``.
        expansion: hidden channels per input channel.
    """

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.expand = PointwiseConv(channels, channels * expansion)
        self.project = PointwiseConv(channels * expansion, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        return self.project(F.gelu(self.expand(x)))

    def take_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Take ``x`` in place of ``scale * x + shift``; see `sa2depth.nn.traits`."""
        return fold_into((self.expand,), scale, shift)
