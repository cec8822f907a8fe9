"""Stochastic depth (Huang et al., ECCV 2016): a residual branch left out for some images of a batch."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drop a branch for each image with a given chance, and scale what is left so that its mean stays.

    The chance is a buffer, not a Python number: a compiled layer then serves all layers of its shape.

    Args:
        rate: chance in [0, 1).
    """

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...)`` to ``(B, ...)``."""
        if not self.training:
            return x
        keep = 1 - self.rate
        kept = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device) < keep
        return x * (kept / keep).to(x.dtype)
