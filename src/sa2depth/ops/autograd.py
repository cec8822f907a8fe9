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
        forward: ``(input, points, *options) -> output``; ``points`` are offset and mask of each pixel, joined.
        backward: ``(grad, input, points, *options) -> gradients of the two``.
        backend: for the message about second derivatives.
    """

    def like_output(input: Tensor, points: Tensor, *options: Any) -> Tensor:
        return input.new_empty((*points.shape[:3], input.shape[3]))

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


def register_selective_scan(
    forward: CustomOp,
    backward: CustomOp,
    backend: str,
    like_outputs: Callable[..., tuple[Tensor, ...]],
) -> None:
    """Make a differentiable operator of a pair that computes the selective scan of tokens.

    Args:
        forward: ``(x, projection, dt_weight, dt_bias, a_log, d_skip, height, keep) -> output, *kept``, with
            ``x (B, L, D)``; ``projection`` is what the back end projects with or has projected. Without ``keep``
            nothing is kept for the backward pass and there is no gradient.
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


def refuse_second_derivative(operator: str, backend: str, *, torch_has: bool = True) -> Callable[..., None]:
    """A gradient formula that says that there is none, and whether the torch path has one."""
    where = f"on the back end {backend}; use_backend('torch') has" if torch_has else "on any back end"

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"{operator} has no second derivative {where}")

    return refuse
