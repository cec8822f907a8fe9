"""Fake kernels and gradient formulas that the fast back ends of an operator share.

A fast back end is a pair of ``torch.library`` custom operators, forward and backward; neither has a second derivative.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

CustomOp = Any  # torch.library's own class has no public name


def register_dcnv3(forward: CustomOp, backward: CustomOp, backend: str) -> None:
    """Make a differentiable operator of a pair that computes DCNv3.

    Args:
        forward: ``(input, offset, mask, *options) -> output``.
        backward: ``(grad, input, offset, mask, *options) -> gradients of the three``.
        backend: for the message about second derivatives.
    """

    def like_output(input: Tensor, offset: Tensor, mask: Tensor, *options: Any) -> Tensor:
        return input.new_empty((*mask.shape[:3], input.shape[3]))

    def like_inputs(
        grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *options: Any
    ) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in (input, offset, mask))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(grad, *ctx.saved_tensors, *ctx.options), *(None for _ in ctx.options))

    forward.register_fake(like_output)
    backward.register_fake(like_inputs)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("dcnv3", backend))


def register_selective_scan(
    forward: CustomOp,
    backward: CustomOp,
    backend: str,
    like_outputs: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
) -> None:
    """Make a differentiable operator of a pair that computes the selective scan of tokens.

    Args:
        forward: ``(x, projected, dt_weight, dt_bias, a_log, d_skip, height, keep_states) -> output, states``, with
            ``x (B, L, D)``; without ``keep_states`` there are no states and no gradient.
        backward: ``(grad, x, projected, dt_weight, dt_bias, a_log, d_skip, states, height) -> six gradients``.
        backend: for messages.
        like_outputs: ``(x, a_log, keep_states) -> output, states``, uninitialised.
    """

    def fake(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return like_outputs(x, others[3], others[-1])

    def like_inputs(grad: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in others[:6])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.height, ctx.kept = inputs
        ctx.save_for_backward(*tensors, output[1])

    def gradients(ctx: Any, grad: Tensor, _grad_states: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.kept:
            raise RuntimeError(
                f"selective_scan ({backend}) ran with keep_states=False: it has no backward pass"
            )
        *tensors, states = ctx.saved_tensors
        return (*backward(grad, *tensors, states, ctx.height), None, None)

    forward.register_fake(fake)
    backward.register_fake(like_inputs)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("selective_scan_2d", backend))


def refuse_second_derivative(operator: str, backend: str) -> Callable[..., None]:
    """A gradient formula that says that there is none."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{operator} has no second derivative on the back end {backend}; use_backend('torch') has"
        )

    return refuse
