"""The four-direction selective scan on the CPU: a ``torch.library`` operator around ``csrc/cpu/selective_scan.h``.

The projections of a token for all four directions are one matrix product in torch, everything after it is in C++. They
belong to the operator, so that their gradients are float32 where the backward pass runs inside autocast, too.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sa2depth.ops.autograd import wants_gradient
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import cpp
from sa2depth.ops.runtime.cpp.library import ScanShape, call
from sa2depth.ops.selective_scan.common import CHUNK, DIRECTIONS, chunks, register, why_not_ways

_CHANNEL_PAD = 16  # as kChannelPad in csrc/cpu/selective_scan.h
_LARGEST = 64  # rank and state size


def why_not(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> str:
    """Why the library cannot take these arguments; empty if it can."""
    states, rank = a_log.shape[-1], dt_weight.shape[-1]
    if states > _LARGEST or rank > _LARGEST:
        return f"it has state sizes and ranks up to {_LARGEST}, not {states} and {rank}"
    return why_not_ways(x_proj_weight) or cpp.why_not("selective_scan_2d", x)


def run(
    x: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, a_log: Tensor, d_skip: Tensor
) -> Tensor:
    """``selective_scan_2d`` for arguments that ``why_not`` has nothing against; the result is channels last."""
    height = x.shape[2]
    inputs = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
    keep_states = wants_gradient(*inputs)
    tokens = rearrange(x, "b d h w -> b (h w) d").contiguous().float()
    y, _, _ = selective_scan(tokens, *(t.float() for t in inputs[1:]), height, keep_states)
    return rearrange(y, "b (h w) d -> b d h w", h=height)


@torch.library.custom_op("sa2depth::selective_scan_cpu", mutates_args=(), device_types="cpu")
def selective_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    height: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the four scans and the skips, as ``common.register`` describes it, in float32.

    ``x_proj_weight`` is ``(4, R + 2N, D)``. Kept are ``(B, L, 4 * (R + 2N))``, for each direction the low-rank dt, B
    and C, and ``(B, chunks, 4, N, D')``, the states before each chunk, ``D'`` being ``D`` rounded up to 16.
    """
    outputs = _like_outputs(x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip, height, keep_states)
    if x.numel() == 0:
        return outputs
    output, projected, states = outputs
    with no_autocast(x):
        rows = F.linear(x, _matrix(x_proj_weight))
    tensors = _contiguous(x, rows, dt_weight, dt_bias, a_log, d_skip)
    shape = _shape(x, dt_weight, a_log, height)
    call("scan_forward", shape, *tensors, output, states if keep_states else None)
    return output, rows if keep_states else projected, states


@torch.library.custom_op("sa2depth::selective_scan_cpu_backward", mutates_args=(), device_types="cpu")
def selective_scan_backward(
    grad: Tensor,
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    projected: Tensor,
    states: Tensor,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first six arguments of ``selective_scan``; ``grad (B, L, D)`` is that of its result."""
    if x.numel() == 0:
        parameters = (x, x_proj_weight, dt_weight, dt_bias, a_log, d_skip)
        return tuple(t.new_zeros(t.shape) for t in parameters)  # type: ignore[return-value]
    inputs = _contiguous(x, projected, dt_weight, dt_bias, a_log, d_skip)
    grad_x, grad_rows, *gradients = (t.new_zeros(t.shape) for t in inputs)
    shape = _shape(x, dt_weight, a_log, height)
    call("scan_backward", shape, *inputs, *_contiguous(states, grad), grad_x, grad_rows, *gradients)
    with no_autocast(x):  # which the backward pass may run in
        grad_weight = grad_rows.flatten(0, 1).T @ x.flatten(0, 1)
        grad_x += grad_rows @ _matrix(x_proj_weight)
    return grad_x, grad_weight.view(x_proj_weight.shape), *gradients  # type: ignore[return-value]


def _matrix(x_proj_weight: Tensor) -> Tensor:
    """The directions' projections in one matrix."""
    return rearrange(x_proj_weight, "k r d -> (k r) d")


def _shape(x: Tensor, dt_weight: Tensor, a_log: Tensor, height: int) -> ScanShape:
    batch, length, channels = x.shape
    return ScanShape(batch, height, length // height, channels, dt_weight.shape[-1], a_log.shape[-1], CHUNK)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _like_outputs(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
    height: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = x.shape
    saved, columns = (chunks(length), x_proj_weight.shape[:2].numel()) if keep_states else (0, 0)
    padded = -(-channels // _CHANNEL_PAD) * _CHANNEL_PAD
    projected = x.new_empty((batch, length, columns))
    states = x.new_empty((batch, saved, DIRECTIONS, a_log.shape[-1], padded))
    return x.new_empty(x.shape), projected, states


register(selective_scan, selective_scan_backward, "cpu", _like_outputs)
BACKEND = Backend("cpu", run, why_not, kernel_sources("cpu/*"))
