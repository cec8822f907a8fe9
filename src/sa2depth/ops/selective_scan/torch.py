"""The selective scan in plain torch, for any device; the oracle of the kernels.

The recurrence is scanned block by block: all blocks take the same step at once, and the same scan one level up joins
their end states. Work grows with the number of tokens, the number of Python steps with its logarithm.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from sa2depth.ops.precision import at_least_float32
from sa2depth.ops.registry import Backend

ORDERS = {
    4: ((False, False), (True, False), (False, True), (True, True)),
    2: ((False, False), (False, True)),
    1: ((False, False),),
}
"""Directions by their number: each is a pair (along columns, from the last token to the first)."""

_STEPS = 16  # tokens in a block of the scan

# States held at once: on a CPU they fit into the cache, on a GPU they keep it busy.
_STATES_PER_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 27}


def run(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """``selective_scan_2d`` on any device, with any state size; the result is at least float32."""
    height, rank, states = x.shape[2], dt_weight.shape[-1], a_log.shape[-1]
    x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip = map(
        at_least_float32, (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
    )
    order = ORDERS[len(x_proj_weight)]
    decay_rate = -rearrange(a_log, "(k d) n -> k n d", k=len(order)).exp()
    scanned: dict[bool, Tensor] = {}
    for direction, (by_columns, reverse) in enumerate(order):
        tokens = rearrange(x, "b d h w -> (w h) b d" if by_columns else "b d h w -> (h w) b d")
        projected = F.linear(tokens, x_proj_weight[direction])
        low_rank, b, c = torch.split(projected, [rank, states, states], dim=-1)
        dt = F.softplus(F.linear(low_rank, dt_weight[direction], dt_bias[direction]))
        output = _scan_tokens(tokens, dt, decay_rate[direction], b, c, reverse=reverse)
        scanned[by_columns] = scanned[by_columns] + output if by_columns in scanned else output
    total = rearrange(scanned[False], "(h w) b d -> b d h w", h=height)
    if True in scanned:
        total = total + rearrange(scanned[True], "(w h) b d -> b d h w", h=height)
    return total + x * rearrange(d_skip, "(k d) -> k d 1 1", k=len(order)).sum(dim=0)


def _scan_tokens(x: Tensor, dt: Tensor, decay_rate: Tensor, b: Tensor, c: Tensor, reverse: bool) -> Tensor:
    """Scan ``x (L, B, D)`` in independent blocks of channels."""
    budget = _STATES_PER_BLOCK.get(x.device.type, _STATES_PER_BLOCK["cpu"])
    width = max(1, budget // max(1, b.numel()))
    parts = zip(*(torch.split(t, width, dim=-1) for t in (x, dt, decay_rate)), strict=True)
    scanned: list[Tensor] = [_Scan.apply(*part, b, c, reverse) for part in parts]  # type: ignore[no-untyped-call]
    return torch.cat(scanned, dim=-1)


class _Scan(torch.autograd.Function):
    """One direction of some channels; nothing as large as the states is kept between forward and backward.

    Shapes: ``x, dt (L, B, D)``, ``decay_rate (N, D)``, ``b, c (L, B, N)``; states are ``(L, B, N, D)``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, decay_rate: Tensor, b: Tensor, c: Tensor, reverse: bool
    ) -> Tensor:
        ctx.save_for_backward(x, dt, decay_rate, b, c)
        ctx.reverse = reverse
        _, state = _states(x, dt, decay_rate, b, reverse)
        return torch.einsum("lbnd,lbn->lbd", state, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, decay_rate, b, c = ctx.saved_tensors
        reverse = ctx.reverse
        decay, state = _states(x, dt, decay_rate, b, reverse)
        grad_c = torch.einsum("lbnd,lbd->lbn", state, grad)
        # With g_t = grad_t c_t, the state's gradient is G_t = g_t + P_next: that of this token's output, and that
        # handed back by the next token. P_t = decay_t G_t is a recurrence in the opposite direction.
        handed = linear_recurrence(decay, _outer(grad, c).mul_(decay), reverse=not reverse)
        before, after = _neighbours(reverse)
        product = dt * x
        grad_product = grad * (b * c).sum(dim=-1, keepdim=True)
        grad_product[before] += torch.einsum("lbnd,lbn->lbd", handed[after], b[before])
        grad_b = c * (grad * product).sum(dim=-1, keepdim=True)
        grad_b[before] += torch.einsum("lbnd,lbd->lbn", handed[after], product[before])
        # gradient of the exponent dt * decay_rate; the first token has no state before it
        grad_exponent = handed[after].mul_(state[before])
        grad_dt = grad_product * x
        grad_dt[after] += torch.einsum("lbnd,nd->lbd", grad_exponent, decay_rate)
        grad_rate = torch.einsum("lbnd,lbd->nd", grad_exponent, dt[after])
        return grad_product * dt, grad_dt, grad_rate, grad_b, grad_c, None


def _neighbours(reverse: bool) -> tuple[slice, slice]:
    """Slices of all tokens except the last, and all except the first, in the direction of the scan."""
    head, tail = slice(None, -1), slice(1, None)
    return (tail, head) if reverse else (head, tail)


def _outer(channels: Tensor, states: Tensor) -> Tensor:
    """``(L, B, D)`` and ``(L, B, N)`` to ``(L, B, N, D)``."""
    return channels.unsqueeze(2) * states.unsqueeze(3)


def _states(x: Tensor, dt: Tensor, decay_rate: Tensor, b: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Decays and states, both ``(L, B, N, D)``."""
    decay = (dt.unsqueeze(2) * decay_rate).exp_()
    return decay, linear_recurrence(decay, _outer(dt * x, b), reverse=reverse)


def linear_recurrence(decay: Tensor, drive: Tensor, *, reverse: bool = False) -> Tensor:
    """Solve ``h_t = decay_t * h_{t-1} + drive_t`` along the first dimension, from ``h = 0``.

    Nothing is divided, and products of decays only shrink towards zero, so nothing overflows.

    Args:
        decay: ``(L, ...)``.
        drive: ``(L, ...)``.
        reverse: run from the last token to the first.

    Returns:
        All states, ``(L, ...)``. No gradient is recorded for the scan itself.
    """
    length = len(decay)
    if length <= _STEPS:
        return _walk(decay, drive, torch.zeros_like(drive[0]), _order(length, reverse), dim=0)
    if length % _STEPS:
        # Zeros at the end are harmless: in one direction they follow the last token, in the other they keep h = 0.
        missing = _STEPS - length % _STEPS
        decay, drive = (torch.cat((t, t.new_zeros(missing, *t.shape[1:]))) for t in (decay, drive))
    decay, drive = (rearrange(t, "(block step) ... -> block step ...", step=_STEPS) for t in (decay, drive))
    order = _order(_STEPS, reverse)
    end = drive[:, order[0]]
    for step in order[1:]:
        end = torch.addcmul(drive[:, step], decay[:, step], end)
    ends = linear_recurrence(decay.prod(dim=1), end, reverse=reverse)
    states = _walk(decay, drive, _shift(ends, reverse), order, dim=1)
    return rearrange(states, "block step ... -> (block step) ...")[:length]


def _walk(decay: Tensor, drive: Tensor, state: Tensor, order: Iterable[int], dim: int) -> Tensor:
    """Step through dimension ``dim`` from ``state``, writing each state."""
    if torch.compiler.is_compiling():  # the compiler does not support out=
        found: dict[int, Tensor] = {}
        for step in order:
            state = torch.addcmul(drive.select(dim, step), decay.select(dim, step), state)
            found[step] = state
        return torch.stack([found[step] for step in range(len(found))], dim)
    states = torch.empty_like(drive)
    for step in order:
        out = states.select(dim, step)
        state = torch.addcmul(drive.select(dim, step), decay.select(dim, step), state, out=out)
    return states


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _shift(tensor: Tensor, reverse: bool) -> Tensor:
    """Each token's predecessor in the direction of the scan; zero for the first token."""
    shifted = torch.zeros_like(tensor)
    if reverse:
        shifted[:-1] = tensor[1:]
    else:
        shifted[1:] = tensor[:-1]
    return shifted


BACKEND = Backend("torch", run)
