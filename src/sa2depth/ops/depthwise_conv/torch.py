"""Depthwise convolution in plain torch, for any device; the oracle of the kernels."""

import torch.nn.functional as F
from torch import Tensor

from sa2depth.ops.registry import Backend


def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``depthwise_conv`` on any device."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


BACKEND = Backend("torch", run)
