"""The decoder's block: position, attention, feed-forward (``SADEBlock`` of the released code)."""

from collections.abc import Callable

from torch import Tensor, nn

from sa2depth.nn.attention import FlexibleAttention
from sa2depth.nn.feed_forward import GatedFeedForward
from sa2depth.nn.folding import fold
from sa2depth.nn.position import PositionConv


class SelectiveAttentionBlock(nn.Module):
    """Refine one level of the pyramid.

    Its parts are given as factories, as for timm's blocks; the defaults are the paper's.

    Args:
        channels: ``C``.
        dim_head: channels of an attention head.
        offset_kernel: kernel of the attention's offset network.
        offset_stride: stride of that network, chosen so that the keys lie on the grid of 1/32.
        attention: ``(channels, dim_head, offset_kernel, offset_stride)`` to a module.
        feed_forward: ``channels`` to a module.
        position: ``channels`` to a module; None leaves it out.
    """

    compile_unit = True

    def __init__(
        self,
        channels: int,
        dim_head: int,
        offset_kernel: int,
        offset_stride: int,
        attention: Callable[..., nn.Module] = FlexibleAttention,
        feed_forward: Callable[[int], nn.Module] = GatedFeedForward,
        position: Callable[[int], nn.Module] | None = PositionConv,
    ) -> None:
        super().__init__()
        self.position = nn.Identity() if position is None else position(channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = attention(channels, dim_head, offset_kernel, offset_stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.feed_forward = feed_forward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        x = self.position(x)
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))

    def fold_norms(self) -> None:
        """Remove the norms that the layers after them can absorb; see `sa2depth.nn.traits`."""
        self.norm1 = fold(self.norm1, self.attention)  # type: ignore[assignment]
        self.norm2 = fold(self.norm2, self.feed_forward)  # type: ignore[assignment]
