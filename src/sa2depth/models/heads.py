"""Heads: bin centres for the whole image, bin scores for each pixel; both read every decoder level."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.errors import ConfigError, as_typed
from sa2depth.nn import (
    ChannelNorm,
    GatedFeedForward,
    PointwiseConv,
    SelectiveFusion,
    SelectiveScan2d,
    bin_centers_from_logits,
)


class BinHead(nn.Module):
    """Multi-level bin prediction (paper section III-D; ``MLBP`` of the released code).

    Args:
        channels: channels of the levels, fine to coarse.
        hidden: width of each level's descriptor and of the MLP.
        bins: ``K``.
        levels: ``all`` reads all levels, ``last`` only the one that the decoder makes last, the finest.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.

    Raises:
        ConfigError: if ``levels`` is neither.
    """

    compile_unit = True
    keep_float32 = False

    def __init__(
        self,
        channels: list[int],
        hidden: int = 256,
        bins: int = 128,
        levels: Literal["all", "last"] = "all",
        *,
        min_depth: float,
        max_depth: float,
    ) -> None:
        super().__init__()
        if levels not in ("all", "last"):
            raise ConfigError(f"the bin head reads levels=all or levels=last, not {as_typed(levels)}")
        channels = channels if levels == "all" else channels[:1]
        self.bins = bins
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.projections = nn.ModuleList(nn.Conv2d(level, hidden, 1) for level in channels)
        self.norm = nn.LayerNorm(hidden * len(channels))
        self.fc1 = nn.Linear(hidden * len(channels), hidden)
        self.fc2 = nn.Linear(hidden, bins)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H_i, W_i)``, fine to coarse, to bin centres ``(B, K)`` in metres."""
        # Averaging before the 1x1 convolution gives the same as after it, and is far cheaper.
        descriptors = [
            project(level.mean(dim=(2, 3), keepdim=True)).flatten(1)
            for project, level in zip(self.projections, levels[: len(self.projections)], strict=True)
        ]
        # Released weights expect the descriptors from coarse to fine.
        joined = self.norm(torch.cat(descriptors[::-1], dim=1))
        logits = self.fc2(F.gelu(self.fc1(joined)))
        return bin_centers_from_logits(logits, self.min_depth, self.max_depth)


class UniformBins(nn.Module):
    """Bins of equal width, the same for every image; nothing is predicted.

    Args:
        channels: ignored; channels of the levels.
        bins: ``K``.
        min_depth: metres, left edge of the first bin.
        max_depth: metres, right edge of the last bin.
    """

    centers: Tensor

    def __init__(self, channels: list[int], bins: int = 128, *, min_depth: float, max_depth: float) -> None:
        super().__init__()
        self.bins = bins
        centers = bin_centers_from_logits(torch.zeros(1, bins), min_depth, max_depth)
        self.register_buffer("centers", centers, persistent=False)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H_i, W_i)`` to bin centres ``(B, K)`` in metres."""
        return self.centers.expand(len(levels[0]), -1)


class ScanHead(nn.Module):
    """Multi-level selective scan (paper section III-D; ``MLSS`` of the released code).

    Args:
        channels: channels of the levels, fine to coarse.
        hidden: channels after fusion.
        bins: ``K``.
        state: size of the scan's state for each inner channel.
        directions: number of scan directions, see `sa2depth.nn.SelectiveScan2d`.
        fusion: ``(channels, hidden)`` to a module that fuses the levels into one map.
        feed_forward: ``hidden`` to a module.
    """

    compile_unit = True

    def __init__(
        self,
        channels: list[int],
        hidden: int = 256,
        bins: int = 128,
        state: int = 16,
        directions: Literal[4, 2, 1] = 4,
        fusion: Callable[[list[int], int], nn.Module] = SelectiveFusion,
        feed_forward: Callable[[int], nn.Module] = GatedFeedForward,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.fusion = fusion(channels, hidden)
        self.norm1 = ChannelNorm(hidden)
        self.scan = SelectiveScan2d(hidden, state, directions=directions)
        self.norm2 = ChannelNorm(hidden)
        self.feed_forward = feed_forward(hidden)
        self.score = PointwiseConv(hidden, bins)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H_i, W_i)``, fine to coarse, to bin scores ``(B, K, H_0, W_0)``."""
        x = self.fusion(levels)
        x = x + self.scan(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return self.score(x)


class ConvHead(nn.Module):
    """A plain convolutional head with the same interface: the baseline without fusion weights and scan.

    Args:
        channels: channels of the levels, fine to coarse.
        hidden: channels after fusion.
        bins: ``K``.
    """

    compile_unit = True
    keep_float32 = False

    def __init__(self, channels: list[int], hidden: int = 256, bins: int = 128) -> None:
        super().__init__()
        self.bins = bins
        self.projections = nn.ModuleList(nn.Conv2d(level, hidden, 1) for level in channels)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.score = nn.Conv2d(hidden, bins, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H_i, W_i)``, fine to coarse, to bin scores ``(B, K, H_0, W_0)``."""
        size = levels[0].shape[2:]
        fused = sum(
            F.interpolate(project(level), size, mode="bilinear")
            for project, level in zip(self.projections, levels, strict=True)
        )
        return self.score(torch.relu(self.norm(self.conv(fused))))
