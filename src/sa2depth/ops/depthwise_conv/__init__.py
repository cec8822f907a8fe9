"""Depthwise convolution with stride 1: each channel has its own square kernel."""

from torch import Tensor, device, dtype

from sa2depth.errors import ShapeError
from sa2depth.ops.depthwise_conv import cuda, torch, triton
from sa2depth.ops.dispatch import choose
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=k // 2, groups=C)``, faster on GPUs for kernels of 3x3 to 11x11.

    Under autocast ``x`` and the result have autocast's dtype, as for ``F.conv2d``, but the kernels of ``cuda`` and
    ``triton`` still keep the weights and sums in float32.

    Args:
        x: ``(B, C, H, W)``. These kernels read ``torch.channels_last`` in place and copy other layouts once.
        weight: ``(C, 1, k, k)``, ``k`` odd.
        bias: ``(C)`` or None.

    Returns:
        ``(B, C, H, W)`` in the dtype of ``x``; from these kernels in ``torch.channels_last`` layout.

    Raises:
        ShapeError: if the shapes do not match.
    """
    _check(x, weight, bias)
    return choose(OPERATOR, x, weight, bias)(x, weight, bias)


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
            "depthwise_conv takes x (B, C, H, W), weight (C, 1, k, k) with k odd and bias (C), not "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {'no bias' if bias is None else tuple(bias.shape)}"
        )


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(4, device, dtype)
    inputs = as_leaves([draw(2, 40, 13, 17), draw(40, 1, 11, 11) * 0.1, draw(40)])
    return lambda: depthwise_conv(*inputs), inputs


_BACKENDS = (cuda.BACKEND, triton.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("depthwise_conv", _BACKENDS, _example))
