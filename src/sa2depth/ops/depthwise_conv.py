"""Depthwise convolution with stride 1: each channel has a square kernel of its own."""

import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.ops.backends import choose
from sa2depth.ops.depthwise_conv_cuda import depthwise_conv_cuda
from sa2depth.ops.depthwise_conv_cuda import why_not as why_not_cuda
from sa2depth.ops.triton.depthwise_conv import depthwise_conv_triton
from sa2depth.ops.triton.depthwise_conv import why_not as why_not_triton


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=k // 2, groups=C)``, faster on GPUs for kernels of 3x3 to 11x11.

    Autocast treats it as it treats ``F.conv2d``: inside, ``x`` is rounded to autocast's dtype, which is the dtype of
    the result. The kernels of ``cuda`` and ``triton`` keep the weights in float32 all the same, and add up in float32.

    Args:
        x: ``(B, C, H, W)``. These kernels read ``torch.channels_last`` as it lies and copy other layouts once.
        weight: ``(C, 1, k, k)``, ``k`` odd.
        bias: ``(C)`` or none.

    Returns:
        ``(B, C, H, W)`` in the dtype of ``x``; from these kernels in ``torch.channels_last`` layout.

    Raises:
        ShapeError: if the shapes do not belong together.
    """
    _check(x, weight, bias)
    why_not = {
        "cuda": lambda: why_not_cuda(x, weight, bias),
        "triton": lambda: why_not_triton(x, weight, bias),
    }
    return choose("depthwise_conv", _IMPLEMENTATIONS, why_not, x.device)(x, weight, bias)


def depthwise_conv_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``depthwise_conv`` in plain torch: any device, the oracle of the kernels."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


_IMPLEMENTATIONS = {
    "cuda": depthwise_conv_cuda,
    "triton": depthwise_conv_triton,
    "torch": depthwise_conv_torch,
}


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    fits = (
        x.dim() == 4
        and weight.dim() == 4
        and weight.shape[:2] == (x.shape[1], 1)
        and weight.shape[2] == weight.shape[3]
        and weight.shape[3] % 2 == 1
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        raise ShapeError(
            "depthwise_conv wants x (B, C, H, W), weight (C, 1, k, k) with k odd and bias (C), got "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {'no bias' if bias is None else tuple(bias.shape)}"
        )
