"""Layer normalisation in plain torch, for any device; the oracle of the kernels."""

import torch.nn.functional as F
from torch import Tensor

from sa2depth.ops.registry import Backend


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """``layer_norm`` on any device."""
    output = F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.gelu(output) if gelu else output


BACKEND = Backend("torch", run)
