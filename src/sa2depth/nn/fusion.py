"""Fusion of all levels by channel-wise selection (paper section III-D; ``SFU`` of the released code)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelectiveFusion(nn.Module):
    """Bring every level to the finest size and add them up with weights that compete for each channel.

    Args:
        channels: channels of each level, fine to coarse.
        dim: channels of the result; even.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(level, dim, 1) for level in channels)
        self.squeeze = nn.Conv2d(dim, dim // 2, 1)
        self.excite = nn.ModuleList(nn.Conv2d(dim // 2, dim, 1) for _ in channels)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels ``(B, C_i, H / 2**i, W / 2**i)``, fine to coarse, to ``(B, dim, H, W)``."""
        size = levels[0].shape[2:]
        projected = [
            _resize(project(level), size) for project, level in zip(self.projections, levels, strict=True)
        ]
        pooled = torch.stack([level.mean(dim=(2, 3), keepdim=True) for level in projected]).sum(dim=0)
        squeezed = F.silu(self.squeeze(pooled))
        weights = torch.stack([excite(squeezed) for excite in self.excite]).softmax(dim=0)
        # One level after the other: all of them stacked would be four maps of the finest size more.
        fused = projected[0] * weights[0]
        for level, weight in zip(projected[1:], weights[1:], strict=True):
            fused = torch.addcmul(fused, level, weight)
        return fused


def _resize(level: Tensor, size: torch.Size) -> Tensor:
    return level if level.shape[2:] == size else F.interpolate(level, size, mode="bilinear")
