"""What the fast back ends of the selective scan share: sizes, fake kernels and the gradient formula."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative

DIRECTIONS = 4
"""Row, column, reversed row, reversed column."""

CHUNK = 64
"""Tokens between saved states."""

LARGEST_RANK = 64
"""Of the projection to the time steps."""


def chunks(length: int) -> int:
    """How many chunks hold so many tokens."""
    return -(-length // CHUNK)


def why_not_ways(x_proj_weight: Tensor) -> str:
    """Why kernels cannot scan in so many directions; empty if they can."""
    found = len(x_proj_weight)
    return "" if found == DIRECTIONS else f"the kernels scan in {DIRECTIONS} directions, not {found}"


def register(
    forward: CustomOp, backward: CustomOp, backend: str, like_outputs: Callable[..., tuple[Tensor, ...]]
) -> None:
    """Make a differentiable operator of a pair that computes the selective scan of tokens.

    Args:
        forward: ``(x, projection, dt_weight, dt_bias, a_log, d_skip, height, keep) -> output, *kept``, with ``x`` and
            output ``(B, L, D)`` of one type and the others float32: ``(4, D, R)``, ``(4, D)``, ``(4 * D, N)``,
            ``(4 * D)``; ``projection`` is what the back end projects with or has projected. Without ``keep`` nothing is
            kept for the backward pass and there is no gradient; none flows through what is kept.
        backward: ``(grad, x, projection, dt_weight, dt_bias, a_log, d_skip, *kept, height) -> six gradients``.
        backend: for messages.
        like_outputs: as ``forward``, but the outputs are uninitialised.
    """

    def like_inputs(grad: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in others[:6])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.height, ctx.kept = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.set_materialize_grads(False)  # what is kept is large, and so would be zeros for it

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
