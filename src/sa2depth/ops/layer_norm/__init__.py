"""Layer normalisation over the last dimension, optionally followed by a GELU."""

from torch import Tensor, device, dtype
from torch.compiler import is_compiling

from sa2depth.errors import ShapeError
from sa2depth.ops.dispatch import choose
from sa2depth.ops.layer_norm import cuda, torch, triton
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, gelu: bool = False) -> Tensor:
    """``F.layer_norm(x, (C,), weight, bias, eps)``, faster on GPUs; ``gelu`` applies ``F.gelu`` in the same pass.

    The kernels (CUDA, Triton) compute in float32 and write the dtype of ``x``. Under autocast they write autocast's
    dtype, while torch would write float32: the next layer rounds to that dtype anyway. Under ``torch.compile`` the
    torch path runs with any back end, because the compiler fuses it with its neighbours.

    Args:
        x: ``(..., C)``. The kernels read evenly spaced rows of ``C`` in place, and copy other layouts once.
        weight: ``(C)``.
        bias: ``(C)``.
        eps: added to the variance.
        gelu: apply the exact GELU (with erf) to the result.

    Returns:
        ``(..., C)``; contiguous from the kernels.

    Raises:
        ShapeError: if the shapes do not match.
    """
    _check(x, weight, bias)
    if is_compiling():
        return torch.run(x, weight, bias, eps, gelu)
    return choose(OPERATOR, x, weight, bias, eps, gelu)(x, weight, bias, eps, gelu)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ShapeError(
            "layer_norm takes x (..., C), weight (C) and bias (C), not "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(6, device, dtype)
    x, weight, bias = inputs = as_leaves([draw(2, 13, 17, 40), draw(40), draw(40)])
    return lambda: layer_norm(x, weight, bias, gelu=True), inputs


_BACKENDS = (cuda.BACKEND, triton.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("layer_norm", _BACKENDS, _example))
