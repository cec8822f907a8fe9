"""Fusion of all levels by channel-wise selection (paper section III-D; ``SFU`` of the released code) or as a sum."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sa2depth.nn.bilinear import upsample_bilinear
from sa2depth.nn.pointwise import PointwiseConv


class SelectiveFusion(nn.Module):
    """Upsample every level to the finest size and add them up, weighted by a softmax over levels for each channel.

    Args:
        channels: channels of each level, fine to coarse.
        dim: channels of the result; even.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(PointwiseConv(level, dim) for level in channels)
        self.squeeze = PointwiseConv(dim, dim // 2)
        self.excite = nn.ModuleList(PointwiseConv(dim // 2, dim) for _ in channels)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H / 2**i, W / 2**i)``, fine to coarse, to ``(B, dim, H, W)``."""
        size = levels[0].shape[2:]
        projected = [project(level) for project, level in zip(self.projections, levels, strict=True)]
        pooled = torch.stack([_mean_at(level, size) for level in projected]).sum(dim=0)
        squeezed = F.silu(self.squeeze(pooled))
        weights = torch.stack([excite(squeezed) for excite in self.excite]).softmax(dim=0)
        weights = weights.to(projected[0].dtype)  # autocast made them float32
        # Levels are weighted before they are upsampled, one after the other: a stack would take the memory of four
        # more maps of the finest size.
        fused = projected[0] * weights[0]
        for level, weight in zip(projected[1:], weights[1:], strict=True):
            fused = fused + upsample_bilinear(level * weight, size)
        return fused


class SumFusion(nn.Module):
    """Upsample every level to the finest size and add them up without weights.

    Args:
        channels: channels of each level, fine to coarse.
        dim: channels of the result.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(PointwiseConv(level, dim) for level in channels)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H / 2**i, W / 2**i)``, fine to coarse, to ``(B, dim, H, W)``."""
        fused = self.projections[0](levels[0])
        for project, level in zip(self.projections[1:], levels[1:], strict=True):
            fused = fused + upsample_bilinear(project(level), fused.shape[2:])
        return fused


def _mean_at(level: Tensor, size: torch.Size) -> Tensor:
    """Mean over the pixels of the resized map, ``(B, C, 1, 1)``."""
    height, width = level.shape[2:]
    # If the scale is a whole number, every pixel has the same share in the result, even at the border.
    whole = size[0] % height == 0 and size[1] % width == 0
    return (level if whole else upsample_bilinear(level, size)).mean(dim=(2, 3), keepdim=True)
