"""Shared by the back ends of the gated convolution: memory order, fake kernels and the gradient formula."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative

GROUP = 4
"""Channels of a group."""


def run_channels_last(operator: Callable[..., Tensor], x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Run ``ops.gated_conv`` with an operator on ``(B, H, W, C)``.

    The result is channels last in memory; a channels-last ``x`` is not copied. Under autocast ``x`` is converted to
    autocast's dtype, as for any convolution; kernel and bias are always float32.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    output = operator(rearrange(x, "b c h w -> b h w c"), kernel.float(), bias.float())
    return rearrange(output, "b h w c -> b c h w")


def register(forward: CustomOp, backward: CustomOp, backend: str) -> None:
    """Register the backward operator of the gated convolution as the gradient of the forward operator.

    Args:
        forward: ``(x, kernel, bias) -> output``.
        backward: ``(grad, x, kernel, bias) -> gradients of the three``.
        backend: name for the message about second derivatives.
    """

    def like_output(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    def like_inputs(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(backward(grad, *ctx.saved_tensors))

    forward.register_fake(like_output)
    backward.register_fake(like_inputs)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("gated_conv", backend))
