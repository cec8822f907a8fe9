"""Shared by the fast back ends of the selective scan: sizes, fake kernels and the gradient formula."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative

DIRECTIONS = 4
"""Row, column, reversed row, reversed column."""

CHUNK = 64
"""Tokens between saved states."""

LARGEST_RANK = 64
"""Largest rank of the projection to the time steps."""


def chunks(length: int) -> int:
    """Number of chunks for ``length`` tokens."""
    return -(-length // CHUNK)


def why_not_ways(x_proj_weight: Tensor) -> str:
    """The reason why kernels cannot scan in this number of directions; empty if they can."""
    found = len(x_proj_weight)
    return "" if found == DIRECTIONS else f"the kernels scan in {DIRECTIONS} directions, not {found}"


def register(
    forward: CustomOp, backward: CustomOp, backend: str, like_outputs: Callable[..., tuple[Tensor, ...]]
) -> None:
    """Register the backward operator of the scan of tokens as the gradient of the forward operator.

    Args:
        forward: ``(x, projection, dt_weight, dt_bias, a_log, d_skip, height, keep) -> output, *kept``, with ``x`` and
            output ``(B, L, D)`` of one dtype and the others float32: ``(4, D, R)``, ``(4, D)``, ``(4 * D, N)``,
            ``(4 * D)``; ``projection`` is the back end's projection weight or result. Without ``keep`` nothing is kept
            for the backward pass and there is no gradient; kept tensors never carry one.
        backward: ``(grad, x, projection, dt_weight, dt_bias, a_log, d_skip, *kept, height) -> six gradients``.
        backend: name for messages.
        like_outputs: takes the arguments of ``forward`` and returns its outputs uninitialised.
    """

    def like_inputs(grad: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in others[:6])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.height, ctx.kept = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(
            False
        )  # the kept tensors are large, and zero gradients for them would be, too

    def gradients(ctx: Any, grad: Tensor | None, *_grad_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.kept:
            raise RuntimeError(
                f"selective_scan ({backend}) ran with keep_states=False: it has no backward pass"
            )
        if grad is None:
            return (None,) * 8
        return (*backward(grad, *ctx.saved_tensors, ctx.height), None, None)

    forward.register_fake(like_outputs)
    backward.register_fake(like_inputs)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("selective_scan_2d", backend, torch_has=False))
