"""What the fast back ends of layer normalisation share: rows in memory, fake kernels and the gradient formula."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative, wants_gradient
from sa2depth.ops.runtime.gpu import VECTOR_BYTES, ready

MOST_ROWS = 2**31 - 2**24
"""Rows are counted in 32 bits, with those that the blocks of a grid are ahead."""


def run_directly(
    function: Callable[..., tuple[Tensor, Tensor]],
    operator: CustomOp,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The result of ``function``, through PyTorch's dispatcher as ``operator`` only where that has something to do.

    The dispatcher takes longer than the kernel of a small input.
    """
    keep = wants_gradient(x, weight, bias)
    direct = not keep and not torch.compiler.is_compiling() and type(x) is Tensor and not _watched()
    return (function if direct else operator)(x, weight.float(), bias.float(), eps, gelu, dtype, keep)[0]


def _watched() -> bool:
    """Whether something sees operators only as the dispatcher gets them: a trace, a mode, a transform of functions."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def rows_in_memory(x: Tensor) -> tuple[Tensor, int]:
    """Memory that starts with the first row, and the numbers from there to the next row; a copy if it must be."""
    stride = x.shape[-1] if x.is_contiguous() else _row_stride(x)
    vector = VECTOR_BYTES // x.element_size()
    if stride < x.shape[-1] or stride % vector or x.data_ptr() % VECTOR_BYTES:
        return ready(x), x.shape[-1]
    if stride > x.shape[-1]:
        # the launcher takes what is contiguous: everything from the first number to the last
        x = x.as_strided(((x.numel() // x.shape[-1] - 1) * stride + x.shape[-1],), (1,))
    return x, stride


def _row_stride(x: Tensor) -> int:
    """Numbers from each row to the next; 0 if rows are not contiguous or not evenly spaced."""
    if x.stride(-1) != 1:
        return 0
    stride = following = None
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step  # 0 where one row stands for many: they are copied
        elif step != following:
            return 0
        following = step * size
    return x.shape[-1] if stride is None else stride


def like_output(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    """Output and statistics, uninitialised."""
    statistics = x.new_empty((*x.shape[:-1], 2) if keep else 0, dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), statistics


def like_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    gelu: bool,
    wants_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, uninitialised."""
    channels = x.shape[-1] if wants_parameters else 0
    return x.new_empty(x.shape), weight.new_empty(channels), weight.new_empty(channels)


def register(forward: CustomOp, backward: CustomOp, backend: str) -> None:
    """Make a differentiable operator of a pair that computes layer normalisation.

    Args:
        forward: ``(x, weight, bias, eps, gelu, dtype, keep) -> output, statistics``. Without ``keep`` nothing is kept
            for the backward pass and there is no gradient.
        backward: ``(grad, x, weight, bias, statistics, gelu, wants_parameters) -> gradients of the three``.
        backend: for messages.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, _, ctx.gelu, _, ctx.kept = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def gradients(
        ctx: Any, grad: Tensor | None, _grad_statistics: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if not ctx.kept:
            raise RuntimeError(f"layer_norm ({backend}) ran with keep=False: it has no backward pass")
        if grad is None:
            return (None,) * 7
        wanted = ctx.needs_input_grad[:3]
        found = backward(grad, *ctx.saved_tensors, ctx.gelu, wanted[1] or wanted[2])
        return (*(g if wants else None for g, wants in zip(found, wanted, strict=True)), *(None,) * 4)

    forward.register_fake(like_output)
    backward.register_fake(like_gradients)
    forward.register_autograd(gradients, setup_context=save)
    backward.register_autograd(refuse_second_derivative("layer_norm", backend))
