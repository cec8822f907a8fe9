"""Shared by the fast back ends of layer normalisation: rows in memory, fake kernels and the gradient formula."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import CustomOp, refuse_second_derivative, wants_gradient
from sa2depth.ops.runtime.gpu import VECTOR_BYTES, ready

MOST_ROWS = 2**31 - 2**24
"""Rows are counted in 32 bits; the margin is for blocks that step beyond the last row."""


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
    """Call ``function`` directly, or through PyTorch's dispatcher as ``operator`` if that is needed.

    For a small input the dispatcher takes longer than the kernel.
    """
    keep = wants_gradient(x, weight, bias)
    direct = not keep and not torch.compiler.is_compiling() and type(x) is Tensor and not _watched()
    return (function if direct else operator)(x, weight.float(), bias.float(), eps, gelu, dtype, keep)[0]


def _watched() -> bool:
    """True if something must see operators in the dispatcher: a trace, a dispatch mode or a function transform."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def rows_in_memory(x: Tensor) -> tuple[Tensor, int]:
    """Memory from the first row on, and the stride of its rows; copied if rows are not aligned or evenly spaced."""
    stride = x.shape[-1] if x.is_contiguous() else _row_stride(x)
    vector = VECTOR_BYTES // x.element_size()
    if stride < x.shape[-1] or stride % vector or x.data_ptr() % VECTOR_BYTES:
        return ready(x), x.shape[-1]
    if stride > x.shape[-1]:
        # a contiguous view from the first value to the last, as the launcher needs
        x = x.as_strided(((x.numel() // x.shape[-1] - 1) * stride + x.shape[-1],), (1,))
    return x, stride


def _row_stride(x: Tensor) -> int:
    """Stride of the rows; 0 if they are not contiguous or not evenly spaced."""
    if x.stride(-1) != 1:
        return 0
    stride = following = None
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step  # 0 for an expanded row, which is then copied
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
    """Register the backward operator of layer normalisation as the gradient of the forward operator.

    Args:
        forward: ``(x, weight, bias, eps, gelu, dtype, keep) -> output, statistics``. Without ``keep`` nothing is kept
            for the backward pass and there is no gradient.
        backward: ``(grad, x, weight, bias, statistics, gelu, wants_parameters) -> gradients of the three``.
        backend: name for messages.
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
