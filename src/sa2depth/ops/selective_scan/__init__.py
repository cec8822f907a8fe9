"""Selective scan of an image along rows and columns, in both directions (SS2D of VMamba, Liu et al. 2024)."""

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
    ``A = -exp(a_log)``; ``dt, B, C`` are projections of the token, ``dt`` through a softplus. All is computed in
    float32 (float64 for float64 input), even under autocast; on torch and mamba_ssm, the backward pass must be called
    outside of autocast, as PyTorch asks. The back ends cuda and triton project a 16-bit ``x`` with weights of its dtype
    and float32 sums, and round each direction's result to 16 bits before the sum over directions, which is float32.

    Args:
        x: ``(B, D, H, W)``; the back ends cuda and triton read channels-last memory without a copy.
        x_proj_weight: ``(K, R + 2N, D)``, projections to the rank of dt, B and C for ``K`` directions: 4 are row,
            column, reversed row, reversed column; 2 are row, reversed row; 1 is row. The kernels take four only. ``N``
            is the state size.
        dt_weight: ``(K, D, R)``.
        dt_bias: ``(K, D)``.
        a_log: ``(K * D, N)``, direction major.
        d_skip: ``(K * D)``, direction major.

    Returns:
        ``(B, D, H, W)`` in the dtype of ``x``; from the back ends cuda, triton and cpu in channels-last memory.

    Raises:
        ShapeError: if the parameters do not fit ``D`` channels.
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
            f"selective_scan_2d on {channels} channels takes parameters of shapes {expected}, not {shapes}"
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
