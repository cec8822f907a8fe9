"""Shared by the fast back ends of DCNv3: joined points, fixed-point sums, fake kernels and the gradient formula."""

import math
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative

KERNEL_SIZE = 3
"""Kernel size that the GPU kernels support."""


def joined(points: tuple[Tensor, ...]) -> Tensor:
    """Offset and mask in one tensor."""
    return points[0] if len(points) == 1 else torch.cat(points, dim=-1)


def like_output(input: Tensor, points: Tensor, *options: Any) -> Tensor:
    """An output, uninitialised."""
    return input.new_empty((*points.shape[:3], input.shape[3]))


def fixed_point(
    grad: Tensor, points: Tensor, groups: int, remove_center: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Units in 1, and the value of one unit, both float32 on the device: the finest unit that cannot overflow.

    An input pixel gets at most the largest possible share once from each point. For a map of 120x160 the unit is then
    2**-44 of the largest product of gradient and mask, far below float32's rounding of it.
    """
    largest = grad.abs().amax().double()
    if not softmax:
        used = groups * (KERNEL_SIZE**2 - remove_center)
        largest = largest * points[..., 2 * used : 3 * used].abs().amax().double()
    shares = points.shape[1] * points.shape[2] * KERNEL_SIZE**2
    exponent = torch.frexp(largest * shares).exponent
    # 2**62 with one spare bit for rounding; float32 has no unit beyond 2**126
    one = torch.ones((), dtype=torch.float64, device=grad.device)
    unit = torch.ldexp(one, (61 - exponent).clamp(-126, 126)).float()
    # fixed point cannot hold a gradient that is not finite: the whole result becomes NaN instead
    return unit, torch.where(largest.isfinite(), 1 / unit, math.nan)


def register(forward: CustomOp, backward: CustomOp, backend: str) -> None:
    """Register the backward operator of DCNv3 as the gradient of the forward operator.

    Args:
        forward: ``(input, points, *options) -> output``; ``points`` are the joined offset and mask.
        backward: ``(grad, input, points, *options) -> gradients of the two``.
        backend: name for the message about second derivatives.
    """

    def like_inputs(grad: Tensor, input: Tensor, points: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        return input.new_empty(input.shape), points.new_empty(points.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(grad, *ctx.saved_tensors, *ctx.options), *(None for _ in ctx.options))

    forward.register_fake(like_output)
    backward.register_fake(like_inputs)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("dcnv3", backend, torch_has=False))
