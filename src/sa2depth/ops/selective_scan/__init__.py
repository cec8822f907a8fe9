"""Selective scan of an image along rows and columns, both ways (SS2D of VMamba, Liu et al. 2024)."""

from torch import Tensor, arange, device, dtype

from sa2depth.errors import ShapeError
from sa2depth.ops.dispatch import choose
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register
from sa2depth.ops.selective_scan import cpu, cuda, mamba, torch, triton


def selective_scan_2d(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """Sum of selective scans: row by row, column by column, and both from the last token to the first.

    Each scan follows ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t`` and ``y_t = C_t h_t + D x_t`` with
    ``A = -exp(a_log)``; ``dt, B, C`` are projections of the token, ``dt`` through a softplus. Computed in
    float32 (float64 for float64 input) whatever the autocast state; the backward pass of torch and mamba_ssm only if it
    is called outside of autocast, as PyTorch asks. On the back ends cuda and triton, 16-bit ``x`` is projected with
    weights of its own type and float32 sums, and what each direction adds to a token is rounded to 16 bits before the
    sum over directions, which is float32.

    Args:
        x: ``(B, D, H, W)``; in channels-last memory it is read as it is on the back ends cuda and triton.
        x_proj_weight: ``(K, R + 2N, D)``, projections to the rank of dt, B and C for ``K`` directions: 4 are row,
            column, reversed row, reversed column; 2 are row, reversed row; 1 is row. The kernels have four. ``N`` is
            the state size.
        dt_weight: ``(K, D, R)``.
        dt_bias: ``(K, D)``.
        a_log: ``(K * D, N)``, direction major.
        d_skip: ``(K * D)``, direction major.

    Returns:
        ``(B, D, H, W)``, of the type of ``x``. On the back ends cuda, triton and cpu, in channels-last memory.

    Raises:
        ShapeError: if the parameters do not belong to ``D`` channels.
    """
    channels, ways = x.shape[1], len(x_proj_weight) if len(x_proj_weight) in torch.ORDERS else 4
    states, rank = a_log.shape[-1], dt_weight.shape[-1]
    shapes = [tuple(p.shape) for p in (x_proj_weight, dt_weight, dt_bias, a_log, d_skip)]
    expected = [
        (ways, rank + 2 * states, channels),
        (ways, channels, rank),
        (ways, channels),
        (ways * channels, states),
        (ways * channels,),
    ]
    if shapes != expected:
        raise ShapeError(
            f"selective_scan_2d on {channels} channels wants parameters {expected}, got {shapes}"
        )
    inputs = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
    run = choose(OPERATOR, *inputs)
    with no_autocast(x):
        return run(*inputs).to(x.dtype)


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(3, device, dtype)
    a_log = arange(1.0, 17, device=device, dtype=dtype).log().repeat(4 * 40, 1)
    parameters = [draw(4, 36, 40) * 0.15, draw(4, 40, 4) * 0.5, draw(4, 40) - 3, a_log, draw(160)]
    inputs = as_leaves([draw(2, 40, 9, 13), *parameters])
    return lambda: selective_scan_2d(*inputs), inputs


_BACKENDS = (cuda.BACKEND, triton.BACKEND, cpu.BACKEND, mamba.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("selective_scan_2d", _BACKENDS, _example))
