"""Multi-head attention inside square windows with a relative position bias (Swin Transformer, Liu et al. 2021)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from einops import rearrange, repeat
from torch import Tensor, nn

from sa2depth.errors import ConfigError
from sa2depth.nn.folding import fold_into
from sa2depth.nn.layout import from_tokens
from sa2depth.nn.pointwise import PointwiseConv


class WindowAttention(nn.Module):
    """Attention from every pixel to the pixels of its window; windows do not overlap and are not shifted.

    Maps of any size are padded to whole windows; padded pixels are masked out as keys.

    Args:
        channels: ``C``; ``channels // dim_head`` heads.
        dim_head: channels of a head; divides ``channels``.
        _offset: ignored; kernel and stride of the offset network that other attentions have.
        window: side of a window in pixels of the level, at least 1.

    Raises:
        ConfigError: if ``dim_head`` does not divide ``channels``, or ``window`` is below 1.
    """

    pairs: Tensor

    def __init__(
        self, channels: int, dim_head: int, *_offset: int, window: Annotated[int, Interval(ge=1)] = 8
    ) -> None:
        super().__init__()
        if channels % dim_head:
            raise ConfigError(
                f"window attention: dim_head {dim_head} does not divide {channels} channels; choose another "
                "decoder.dim_head or other encoder.channels"
            )
        if window < 1:
            raise ConfigError(f"window attention: set window to at least 1 pixel, not {window}")
        self.heads = channels // dim_head
        self.window = window
        self.query_key_value = PointwiseConv(channels, 3 * channels)
        self.project = PointwiseConv(channels, channels)
        self.position_bias = nn.Parameter(torch.empty(self.heads, (2 * window - 1) ** 2))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("pairs", _offsets_of_pairs(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        height, width = x.shape[2:]
        down, right = -height % self.window, -width % self.window
        padded = F.pad(self.query_key_value(x), (0, right, 0, down))
        rows = padded.shape[2] // self.window
        query, key, value = rearrange(
            padded,
            "b (part heads d) (row y) (column x) -> part (b row column) heads (y x) d",
            part=3,
            heads=self.heads,
            y=self.window,
            x=self.window,
        )
        # The bias has four dimensions: CUDA's fused kernels decline one with three.
        bias = self.position_bias[None, :, self.pairs].to(query.dtype)
        if down or right:
            bias = bias + self._beyond(x).to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        whole = rearrange(
            attended,
            "(b row column) heads (y x) d -> b (row y) (column x) (heads d)",
            b=len(x),
            row=rows,
            y=self.window,
        )
        return self.project(from_tokens(whole[:, :height, :width]))

    def take_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Take ``x`` in place of ``scale * x + shift``; see `sa2depth.nn.traits`."""
        return fold_into((self.query_key_value,), scale, shift)

    def _beyond(self, x: Tensor) -> Tensor:
        """Mask of the padding, ``(B * windows, 1, 1, N)``: 0 for keys in the map, minus infinity beyond it."""
        height, width = x.shape[2:]
        inside = x.new_zeros(1, 1, height, width)
        padded = F.pad(inside, (0, -width % self.window, 0, -height % self.window), value=float("-inf"))
        return repeat(
            padded,
            "1 1 (row y) (column x) -> (b row column) 1 1 (y x)",
            b=len(x),
            y=self.window,
            x=self.window,
        )


def _offsets_of_pairs(window: int) -> Tensor:
    """Index of the relative position of each pair of pixels of a window, ``(N, N)`` with ``N = window ** 2``."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    offsets = places[:, None] - places[None] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]
