"""Selective scan of a map as a layer (SS2D of VMamba, Liu et al. 2024; ``SSM.py`` of the released code)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sa2depth.errors import ConfigError, as_typed
from sa2depth.nn.layout import from_tokens
from sa2depth.nn.norm import TokenNorm
from sa2depth.ops import depthwise_conv, selective_scan_2d

_DT_RANGE = (1e-3, 1e-1)
_DT_FLOOR = 1e-4


class SelectiveScan2d(nn.Module):
    """Gated selective scan along rows and columns, both ways.

    Args:
        channels: ``C``.
        state: size of the state of each inner channel, ``N``.
        expansion: inner channels per channel, ``D = expansion * C``.
        directions: 4 for rows and columns both ways, 2 for rows both ways, 1 for rows forwards only.

    Raises:
        ConfigError: if ``directions`` is another number.
    """

    keep_float32 = False  # for the two projections; the scan's own parameters belong to no inner layer

    def __init__(
        self, channels: int, state: int = 16, expansion: int = 2, directions: Literal[4, 2, 1] = 4
    ) -> None:
        super().__init__()
        if directions not in (4, 2, 1):
            raise ConfigError(f"a selective scan has 4, 2 or 1 directions, not {as_typed(directions)}")
        inner, rank = expansion * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(directions, rank + 2 * state, inner))
        self.dt_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.a_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(directions * inner, 1))
        self.d_skip = nn.Parameter(torch.ones(directions * inner))
        self.out_norm = TokenNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self._reset()

    def _reset(self) -> None:
        inner, rank = self.dt_weight.shape[1:]
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            # Time steps are log-uniform over the range; the bias is their inverse softplus.
            low, high = map(math.log, _DT_RANGE)
            dt = torch.empty_like(self.dt_bias).uniform_(low, high).exp().clamp(min=_DT_FLOOR)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        tokens = rearrange(x, "b c h w -> b h w c")
        # two matrix products instead of one that is split: each half is contiguous
        inner, gate = (F.linear(tokens, weight) for weight in self.in_proj.weight.chunk(2))
        inner = depthwise_conv(rearrange(inner, "b h w d -> b d h w"), self.conv.weight, self.conv.bias)
        scanned = selective_scan_2d(
            F.silu(inner), self.x_proj_weight, self.dt_weight, self.dt_bias, self.a_log, self.d_skip
        )
        normed = self.out_norm(rearrange(scanned, "b d h w -> b h w d"))
        return from_tokens(self.out_proj(normed * F.silu(gate)))
