"""Stochastic depth (Huang et al., ECCV 2016): a residual branch is dropped for some images of a batch."""

import torch
from torch import Tensor, nn

from sa2depth.errors import ConfigError


class DropPath(nn.Module):
    """In training, drop a branch for each image with a given probability, and scale the rest to keep the mean.

    The probability is a buffer, not a Python number, so that all layers of one shape share one compiled graph.

    Args:
        rate: probability in [0, 1).

    Raises:
        ConfigError: if ``rate`` is outside of [0, 1).
    """

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"drop path rate {rate}: choose one of at least 0 and below 1")
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """``(B, ...)`` to ``(B, ...)``; ``drawn (B, 1, ...)`` holds uniform random numbers in [0, 1), or None."""
        if not self.training:
            return x
        keep = 1 - self.rate
        if drawn is None:
            drawn = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device)
        kept = drawn < keep
        return x * (kept / keep).to(x.dtype)
