"""Layer normalisation over the last dimension, and a GELU after it where there is one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.ops.backends import choose
from sa2depth.ops.layer_norm_cuda import layer_norm_cuda
from sa2depth.ops.layer_norm_cuda import why_not as why_not_cuda
from sa2depth.ops.triton.layer_norm import layer_norm_triton
from sa2depth.ops.triton.layer_norm import why_not as why_not_triton


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, gelu: bool = False) -> Tensor:
    """``F.layer_norm(x, (C,), weight, bias, eps)``, faster on GPUs; with ``gelu``, ``F.gelu`` of that in one pass.

    The kernels (CUDA, Triton) compute in float32 and write the dtype of ``x``. Inside autocast they write autocast's
    dtype, where torch would write float32: the layer that comes next rounds to that dtype anyway. While
    ``torch.compile`` traces, this is the torch path whatever the back end, because the compiler fuses it with its
    neighbours.

    Args:
        x: ``(..., C)``. The kernels read rows of ``C`` that lie evenly spaced, and copy other layouts once.
        weight: ``(C)``.
        bias: ``(C)``.
        eps: what is added to the variance.
        gelu: whether to apply the exact GELU (with erf) to the result.

    Returns:
        ``(..., C)``; contiguous from the kernels.

    Raises:
        ShapeError: if the shapes do not belong together.
    """
    _check(x, weight, bias)
    if torch.compiler.is_compiling():
        return layer_norm_torch(x, weight, bias, eps, gelu)
    why_not = {
        "cuda": lambda: why_not_cuda(x, weight, bias),
        "triton": lambda: why_not_triton(x, weight, bias),
    }
    return choose("layer_norm", _IMPLEMENTATIONS, why_not, x.device)(x, weight, bias, eps, gelu)


def layer_norm_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """``layer_norm`` in plain torch: any device, the oracle of the kernels."""
    output = F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.gelu(output) if gelu else output


_IMPLEMENTATIONS = {"cuda": layer_norm_cuda, "triton": layer_norm_triton, "torch": layer_norm_torch}


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ShapeError(
            "layer_norm wants x (..., C), weight (C) and bias (C), got "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
