"""Top-k flexible attention and its modulator (paper section III-B; ``TKFA``, ``Modulator`` as released)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sa2depth.errors import ConfigError, as_typed
from sa2depth.nn.folding import fold_into
from sa2depth.nn.layout import from_tokens, in_layout
from sa2depth.nn.merged import MergesWeights
from sa2depth.nn.norm import ChannelNorm
from sa2depth.nn.pointwise import PointwiseConv, pointwise
from sa2depth.ops import RANKS, depthwise_conv, rank_attention
from sa2depth.ops.precision import at_least_float32, no_autocast


class Modulator(MergesWeights):
    """Gate between the attention over all keys and that of each rank group.

    Args:
        channels: ``C``, even.
    """

    keep_float32 = True  # ops.depthwise_conv reads the merged kernel in float32

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.mix = PointwiseConv(2 * channels, channels)
        self.activation = nn.PReLU(channels)
        self.update_depthwise = nn.Conv2d(half, half, 11, padding=5, groups=half)
        self.update = PointwiseConv(half, channels)
        self.reset_depthwise = nn.Conv2d(half, half, 11, padding=5, groups=half)
        self.reset = PointwiseConv(half, channels)

    def forward(self, overall: Tensor, groups: Tensor) -> Tensor:
        """Gate every group against the overall attention.

        Args:
            overall: ``(B, C, H, W)``, attention over all keys.
            groups: ``(G, B, C, H, W)``, attention inside each rank group.

        Returns:
            ``(G, B, C, H, W)``.
        """
        count = len(groups)
        # The 1x1 convolution of [overall, group]; the part of `overall` is computed once for all groups.
        overall_kernel, group_kernel = self.mix.weight.chunk(2, dim=1)
        shared = pointwise(overall, overall_kernel, self.mix.bias)
        mixed = _all_groups(pointwise(_one_batch(groups), group_kernel), count) + shared
        kernel, bias = self.merged()
        local = depthwise_conv(self.activation(_one_batch(mixed)), kernel, bias)
        update_half, reset_half = local.chunk(2, dim=1)
        update = _all_groups(self.update(update_half).sigmoid(), count)
        reset = _all_groups(self.reset(reset_half).tanh(), count)
        return update * overall + (1 - update) * (reset * groups)

    def _merge(self) -> tuple[Tensor, ...]:
        # One call runs both gates' depthwise convolutions: each acts on its own half of the channels.
        kernel = torch.cat((self.update_depthwise.weight, self.reset_depthwise.weight))
        return kernel, torch.cat((_bias(self.update_depthwise), _bias(self.reset_depthwise)))


def _one_batch(groups: Tensor) -> Tensor:
    return in_layout(rearrange(groups, "g b c h w -> (g b) c h w"))


def _all_groups(batch: Tensor, count: int) -> Tensor:
    return rearrange(batch, "(g b) c h w -> g b c h w", g=count)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class FlexibleAttention(nn.Module):
    """Attention from every pixel to a small grid of sampled keys, overall and inside ranges of rank.

    Keys and values are sampled from the map at a regular grid, displaced by a learnt offset per head. The strided
    offset network sets their number ``N``: the strides of the paper give all four levels the grid of 1/32.

    Args:
        channels: ``C``; ``channels // dim_head`` heads.
        dim_head: channels of a head; divides ``channels``.
        kernel: size of the offset network's depthwise convolution.
        stride: stride of that convolution.
        modulator: ``channels`` to a module that gates each group against the attention over all keys, as `Modulator`
            does; None uses the groups as they are.
        ranks: start and end of each group's rank range, as shares of the keys, counted from the highest score.

    Raises:
        ConfigError: if ``channels`` is odd, ``dim_head`` does not divide it, or a range of ranks is impossible.
    """

    keep_float32 = True  # because of the key offsets; each PointwiseConv inside states its own keep_float32

    def __init__(
        self,
        channels: int,
        dim_head: int,
        kernel: int,
        stride: int,
        modulator: Callable[[int], nn.Module] | None = Modulator,
        ranks: Sequence[tuple[float, float]] = RANKS,
    ) -> None:
        super().__init__()
        if channels % dim_head or channels % 2:
            raise ConfigError(
                f"attention on {channels} channels: their number must be even and a multiple of dim_head {dim_head}; "
                "choose another decoder.dim_head or other encoder.channels"
            )
        if not ranks or not all(len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1 for ends in ranks):
            raise ConfigError(
                f"ranks={as_typed(ranks)}: give a list of ranges, each from one share of the keys to a larger one, "
                f"such as {as_typed(RANKS)}"
            )
        self.ranks = tuple((float(start), float(end)) for start, end in ranks)
        self.heads = channels // dim_head
        self.scale = dim_head**-0.5
        self.query = PointwiseConv(channels, channels)
        self.key_value = PointwiseConv(channels, 2 * channels)
        self.offset = nn.Sequential()
        self.offset.add_module(
            "depthwise", nn.Conv2d(dim_head, dim_head, kernel, stride, kernel // 2, groups=dim_head)
        )
        self.offset.add_module("norm", ChannelNorm(dim_head))
        self.offset.add_module("activation", nn.SiLU())
        self.offset.add_module("project", nn.Conv2d(dim_head, 2, 1))
        self.modulator = None if modulator is None else modulator(channels)
        self.group_weights = nn.ParameterList(torch.full((1,), 0.2) for _ in ranks)
        self.project = PointwiseConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        height = x.shape[2]
        query = self.query(x)
        sampled = self._sample(x, query)
        key, value = self.key_value(sampled).chunk(2, dim=1)
        query, key, value = (
            rearrange(t, "b (heads d) h w -> b heads (h w) d", heads=self.heads) for t in (query, key, value)
        )
        attended = rank_attention(query, key, value, self.scale, ranks=self.ranks)
        attended = rearrange(attended, "g b heads (h w) d -> g b h w (heads d)", h=height)
        overall, groups = from_tokens(attended[0]), rearrange(attended[1:], "g b h w c -> g b c h w")
        gated = groups if self.modulator is None else self.modulator(overall, groups)
        weights = torch.cat(list(self.group_weights)).to(gated.dtype)
        return self.project((gated * weights[:, None, None, None, None]).sum(dim=0))

    def take_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Take ``x`` in place of ``scale * x + shift``; see `sa2depth.nn.traits`.

        Only two 1x1 convolutions read the input: one directly, one after a sampling whose weights sum to one.
        """
        return fold_into((self.query, self.key_value), scale, shift)

    def _sample(self, x: Tensor, query: Tensor) -> Tensor:
        """The map at the displaced key grid, ``(B, C, Hk, Wk)``."""
        per_head = rearrange(query, "b (heads d) h w -> (b heads) d h w", heads=self.heads)
        with no_autocast(x):
            # Coordinates in bf16 would be off by up to 0.6 px on a map 304 wide.
            offset = self.offset(at_least_float32(per_head))
            # (y, x), unbounded until the sum is clamped
            points = rearrange(offset, "b p h w -> b h w p") + reference_grid(offset)
            grid = points.clamp(-1, 1).flip(-1)
            source = rearrange(at_least_float32(x), "b (heads d) h w -> (b heads) d h w", heads=self.heads)
            sampled = F.grid_sample(source, grid, mode="bilinear", align_corners=True)
        together = rearrange(sampled, "(b heads) d h w -> b (heads d) h w", heads=self.heads)
        return in_layout(together.to(x.dtype))


def reference_grid(offset: Tensor) -> Tensor:
    """Undisplaced key positions ``(Hk, Wk, 2)`` as ``(y, x)`` for offsets ``(..., Hk, Wk)``.

    As released, half-pixel centres are divided by ``n - 1``, so they span ``-1 + 1/(n-1)`` to ``1 + 1/(n-1)``. The grid
    is thus skewed to the bottom right, and its last row and column are clamped to the border. Released weights depend
    on this.
    """
    axes = [_reference_axis(n, offset) for n in offset.shape[-2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _reference_axis(n: int, like: Tensor) -> Tensor:
    if n == 1:
        # OFFICIAL: divides by zero for a grid one key wide; here that key lies in the middle.
        return like.new_zeros(1)
    return (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / (n - 1) * 2 - 1
