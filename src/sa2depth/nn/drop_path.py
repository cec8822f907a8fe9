"""Stochastic depth (Huang et al., ECCV 2016): a residual branch left out for some images of a batch."""

import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError


class DropPath(nn.Module):
    """In training, drop a branch for each image with a given chance, and scale what is left so that its mean stays.

    The chance is a buffer, not a Python number: a compiled layer then serves all layers of its shape.

    Args:
        rate: chance in [0, 1).

    Raises:
        ConfigError: another chance.
    """

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"drop path rate {rate}: at least 0 and below 1")
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """``(B, ...)`` to ``(B, ...)``; ``drawn (B, 1, ...)`` may bring the random numbers, even in [0, 1)."""
        if not self.training:
            return x
        keep = 1 - self.rate
        if drawn is None:
            drawn = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device)
        kept = drawn < keep
        return x * (kept / keep).to(x.dtype)
