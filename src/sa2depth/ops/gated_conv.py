"""A map gated by the tanh of its own grouped 3x3 convolution: the middle of the gated feed-forward layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.ops.backends import choose
from sa2depth.ops.cpu.gated_conv import gated_conv_cpu
from sa2depth.ops.cpu.gated_conv import why_not as why_not_cpu
from sa2depth.ops.gated_conv_cuda import gated_conv_cuda
from sa2depth.ops.gated_conv_cuda import why_not as why_not_cuda
from sa2depth.ops.triton.gated_conv import gated_conv_triton
from sa2depth.ops.triton.gated_conv import why_not as why_not_triton

GROUP = 4
"""Channels of a group."""


def gated_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``x * tanh(conv(x))``, the convolution padded with zeros.

    On a GPU the result is channels last in memory, and an ``x`` that is so too is fastest: others are copied. There
    ``x`` may be float32, bfloat16 or float16 whatever kernel and bias are; inside autocast it is converted to
    autocast's type. Sums are float32.

    Args:
        x: ``(B, C, H, W)``, ``C`` a multiple of 4.
        kernel: ``(C, 4, 3, 3)``.
        bias: ``(C)``.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ShapeError: if the shapes do not belong together.
    """
    channels = x.shape[1]
    if channels % GROUP or kernel.shape != (channels, GROUP, 3, 3) or bias.shape != (channels,):
        raise ShapeError(
            f"gated_conv wants x (B, C, H, W), kernel (C, {GROUP}, 3, 3) and bias (C) with C a multiple of "
            f"{GROUP}, got {tuple(x.shape)}, {tuple(kernel.shape)}, {tuple(bias.shape)}"
        )
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, kernel, bias))
    implementations = _TRAINING if wants_gradient else _INFERENCE
    why_not = {
        "cuda": lambda: why_not_cuda(x, kernel, bias),
        "triton": lambda: why_not_triton(x, kernel, bias),
        "cpu": lambda: why_not_cpu(x, kernel, bias),
    }
    return choose("gated_conv", implementations, why_not, x.device)(x, kernel, bias)


def gated_conv_torch(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``gated_conv`` in plain torch: any device, the oracle."""
    return x * F.conv2d(x, kernel, bias, padding=1, groups=x.shape[1] // GROUP).tanh()


_TRAINING: dict[str, Callable[..., Tensor]] = {
    "cuda": gated_conv_cuda,
    "triton": gated_conv_triton,
    "torch": gated_conv_torch,
}
_INFERENCE: dict[str, Callable[..., Tensor]] = {"cpu": gated_conv_cpu, **_TRAINING}
