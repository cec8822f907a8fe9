"""A map gated by the tanh of its own grouped 3x3 convolution: the middle of the gated feed-forward layer."""

from torch import Tensor, device, dtype

from sa2depth.errors import ShapeError
from sa2depth.ops.dispatch import choose
from sa2depth.ops.gated_conv import cpu, cuda, torch, triton
from sa2depth.ops.gated_conv.common import GROUP
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register


def gated_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``x * tanh(conv(x))`` with zero padding.

    On a GPU the result is channels last in memory, and a channels-last ``x`` is fastest, because others are copied.
    There ``x`` may be float32, bfloat16 or float16, independently of kernel and bias; under autocast it is converted to
    autocast's dtype. Sums are float32.

    Args:
        x: ``(B, C, H, W)``, ``C`` a multiple of 4.
        kernel: ``(C, 4, 3, 3)``.
        bias: ``(C)``.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ShapeError: if the shapes do not match.
    """
    channels = x.shape[1]
    if channels % GROUP or kernel.shape != (channels, GROUP, 3, 3) or bias.shape != (channels,):
        raise ShapeError(
            f"gated_conv takes x (B, C, H, W), kernel (C, {GROUP}, 3, 3) and bias (C) with C a multiple of "
            f"{GROUP}, not {tuple(x.shape)}, {tuple(kernel.shape)}, {tuple(bias.shape)}"
        )
    return choose(OPERATOR, x, kernel, bias)(x, kernel, bias)


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(5, device, dtype)
    inputs = as_leaves([draw(2, 72, 13, 17), draw(72, 4, 3, 3) * 0.3, draw(72)])
    return lambda: gated_conv(*inputs), inputs


_BACKENDS = (cpu.BACKEND, cuda.BACKEND, triton.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("gated_conv", _BACKENDS, _example))
