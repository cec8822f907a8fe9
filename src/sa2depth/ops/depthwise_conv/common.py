"""Shared by the fast back ends of depthwise convolution: memory order, fake kernels and the gradient formula."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.runtime.gpu import ready

KERNEL_SIZES = (3, 5, 7, 9, 11)

# Overhead of a thread, counted in rows: two rows of margin, and the wait for the first.
_ROWS_OF_START = 6


def run_channels_last(
    operator: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Run ``ops.depthwise_conv`` with an operator on ``(B, H, W, C)``."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with no_autocast(x):
        pixels = x.permute(
            0, 2, 3, 1
        ).contiguous()  # outside of the operator, so that backward reuses any copy
        output = operator(pixels, weight.float(), None if bias is None else bias.float())
    return output.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=1024)
def rows_of_least_time(height: int, columns: int, places: int) -> int:
    """The best number of rows: with fewer, margins are read more often; with more, multiprocessors end up idle."""

    def time(rows: int) -> int:
        return math.ceil(columns * math.ceil(height / rows) / places) * (rows + _ROWS_OF_START)

    return min((math.ceil(height / count) for count in range(1, height + 1)), key=time)


def gradients(
    kernels: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., None]],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wants_input: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias, empty if not wanted; ``grad`` is that of the output.

    ``kernels`` are a convolution, a function of ``(grad, x, kernel_size)`` that sums the gradients of weight and bias
    over parts of the image, and a function that adds these sums up into the two gradients.
    """
    convolve, weight_parts, sum_chunks = kernels
    grad = ready(grad)
    grad_x = convolve(grad, weight, None, flipped=True) if wants_input else x.new_empty(0)
    if not wants_weight and not wants_bias:
        return grad_x, weight.new_empty(0), weight.new_empty(0)
    # The kernels always compute both.
    grad_weight = weight.new_empty(weight.shape)
    grad_bias = weight.new_empty(weight.shape[0] if wants_bias else 0)
    if grad.numel():
        sum_chunks(weight_parts(grad, ready(x), weight.shape[-1]), grad_weight, grad_bias)
    else:
        grad_weight.zero_()
        grad_bias.zero_()
    return grad_x, grad_weight if wants_weight else weight.new_empty(0), grad_bias


def register(forward: CustomOp, backward: CustomOp, backend: str) -> None:
    """Register the backward operator of depthwise convolution as the gradient of the forward operator.

    Args:
        forward: ``(x, weight, bias or None) -> output``.
        backward: ``(grad, x, weight, wants_input, wants_weight, wants_bias) ->`` gradients of the three, empty if
            not wanted.
        backend: name for the message about second derivatives.
    """

    def like_output(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x.new_empty(x.shape)

    def like_gradients(
        grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool, wants_weight: bool, wants_bias: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            x.new_empty(x.shape if wants_input else 0),
            weight.new_empty(weight.shape if wants_weight else 0),
            weight.new_empty(weight.shape[0] if wants_bias else 0),
        )

    def save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    def formula(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        found = backward(grad, *ctx.saved_tensors, *wanted)
        return tuple(gradient if wants else None for gradient, wants in zip(found, wanted, strict=True))

    forward.register_fake(like_output)
    backward.register_fake(like_gradients)
    forward.register_autograd(formula, setup_context=save)
    backward.register_autograd(refuse_second_derivative("depthwise_conv", backend))
