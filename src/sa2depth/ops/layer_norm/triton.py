"""Layer normalisation in Triton: a ``torch.library`` operator around ``triton_kernels.py``.

No sum uses atomics, so two runs give the same bits on one kind of GPU. Backward takes two launches: one for the input's
gradient and each program's sums of the parameters' gradients, one for the total of these sums.
"""

import functools
import math

import torch
from torch import Tensor

from sa2depth.ops.layer_norm.common import (
    MOST_ROWS,
    like_gradients,
    like_output,
    register,
    rows_in_memory,
    run_directly,
)
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import VECTOR_BYTES, multiprocessors, ready
from sa2depth.ops.runtime.triton import launching_on

_MOST_CHANNELS = 8192
_MOST_CHUNKS = 10
_FORWARD_VALUES = 40  # of a lane
_BACKWARD_VALUES = 12, 24  # of a lane: enough, and at most, with at least one row for each warp
_BACKWARD_WARPS = 32, 16  # on a multiprocessor, with few or many values of a lane
_SUM_PARTS, _SUM_COLUMNS, _SUM_WARPS = 256, 16, 8


def why_not(x: Tensor, weight: Tensor, bias: Tensor, *others: float) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    channels = x.shape[-1]
    if not 0 < channels <= _MOST_CHANNELS:
        return f"there are {channels} channels, not 1 to {_MOST_CHANNELS}"
    if x.numel() // channels > MOST_ROWS:
        return f"the input of shape {tuple(x.shape)} is too large"
    tensors = {"input": x, "weight": weight, "bias": bias}
    if (dtype := _output_dtype(x)) != x.dtype:
        tensors["output"] = x.new_empty(0, dtype=dtype)
    return machine.why_not("layer_norm", **tensors)


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """``ops.layer_norm`` for arguments that ``why_not`` accepts."""
    return run_directly(_normalise, layer_norm, x, weight, bias, eps, gelu, _output_dtype(x))


def _output_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result in ``dtype``; for the backward pass mean and 1 / deviation of each row, ``(..., 2)`` float32.

    Weight and bias are float32. Without ``keep`` nothing is kept for the backward pass and there is no gradient.
    """
    from sa2depth.ops.layer_norm import triton_kernels as kernels

    output, statistics = like_output(x, weight, bias, eps, gelu, dtype, keep)
    if not output.numel():
        return output, statistics
    channels = x.shape[-1]
    rows = x.numel() // channels
    x, stride = rows_in_memory(x)
    granule = _granule(stride)
    tile_rows, chunks, block, warps = _forward_tile(channels, min(x.itemsize, dtype.itemsize))
    with launching_on(x.device):
        kernels.forward[(math.ceil(rows / tile_rows),)](
            *(x, ready(weight), ready(bias), output, statistics, rows, stride // granule, eps),
            *(granule, channels, gelu, keep, tile_rows, chunks, block),
            num_warps=warps,
        )
    return output, statistics


layer_norm = torch.library.custom_op("sa2depth::layer_norm_triton", _normalise, mutates_args=())


@torch.library.custom_op("sa2depth::layer_norm_triton_backward", mutates_args=())
def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    gelu: bool,
    wants_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias, the last two empty if not wanted; ``grad`` is that of the output."""
    from sa2depth.ops.layer_norm import triton_kernels as kernels

    grad_x, grad_weight, grad_bias = like_gradients(grad, x, weight, bias, statistics, gelu, wants_parameters)
    if not x.numel():
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    channels = x.shape[-1]
    rows = x.numel() // channels
    grad, grad_stride = rows_in_memory(grad)
    x, stride = rows_in_memory(x)
    grad_granule, granule = _granule(grad_stride), _granule(stride)
    tile_rows, chunks, block, warps = _backward_tile(channels, min(x.itemsize, grad.itemsize))
    many = tile_rows * chunks * block > 32 * warps * _BACKWARD_VALUES[0]
    programs = _programs(rows, tile_rows, _BACKWARD_WARPS[many] // warps, x.device)
    parts = weight.new_empty((programs, 2, channels) if wants_parameters else 0)
    with launching_on(x.device):
        kernels.backward[(programs,)](
            *(grad, x, ready(weight), ready(bias), ready(statistics), grad_x, parts),
            *(rows, grad_stride // grad_granule, stride // granule),
            *(grad_granule, granule, channels, gelu, wants_parameters, tile_rows, chunks, block),
            num_warps=warps,
        )
        if wants_parameters:
            kernels.sum_parts[(math.ceil(2 * channels / _SUM_COLUMNS),)](
                *(parts, grad_weight, grad_bias, programs, channels, _SUM_PARTS, _SUM_COLUMNS),
                num_warps=_SUM_WARPS,
            )
    return grad_x, grad_weight, grad_bias


def _granule(stride: int) -> int:
    """A power of two that divides a stride; compiled in, it tells Triton how wide loads can be."""
    return math.gcd(stride, VECTOR_BYTES)


@functools.cache
def _forward_tile(channels: int, itemsize: int) -> tuple[int, int, int, int]:
    """Rows of a program, chunks of a row, channels of a chunk, warps."""
    chunks, block = _chunks(channels, itemsize)
    rows, warps = _power_below(128 * _FORWARD_VALUES / (chunks * block)), 4
    while chunks * block > 32 * warps * _FORWARD_VALUES:
        warps *= 2
    return rows, chunks, block, warps


@functools.cache
def _backward_tile(channels: int, itemsize: int) -> tuple[int, int, int, int]:
    """``_forward_tile`` for the backward pass: fewer values for each lane, which keeps two sums for each of them."""
    enough, most = _BACKWARD_VALUES
    chunks, block = _chunks(channels, itemsize)
    rows, warps = _power_below(128 * most / (chunks * block)), 4
    rows = max(_power_below(128 * enough / (chunks * block)), min(rows, warps))
    while chunks * block > 32 * warps * most:
        warps *= 2
    return rows, chunks, block, warps


def _chunks(channels: int, itemsize: int) -> tuple[int, int]:
    """Chunks of a power of two that cover a row with the least waste; a warp's loads span one chunk."""
    blocks = {n: max(16, 2 ** math.ceil(math.log2(channels / n))) for n in range(1, 9)}
    chunks = min(blocks, key=lambda n: (n * blocks[n], n))
    block = blocks[chunks]
    while block > 32 * (VECTOR_BYTES // itemsize) and 2 * chunks <= _MOST_CHUNKS:
        chunks, block = 2 * chunks, block // 2
    return chunks, block


def _power_below(number: float) -> int:
    """The largest power of two that is at most ``number``, but at least 1."""
    return 2 ** max(0, math.floor(math.log2(number)))


def _programs(rows: int, tile_rows: int, resident: int, device: torch.device) -> int:
    """Programs of the backward pass: as many as run at once, or fewer if that takes no more steps."""
    steps = math.ceil(rows / tile_rows)
    return math.ceil(steps / math.ceil(steps / (resident * multiprocessors(device))))


register(layer_norm, layer_norm_backward, "triton")
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
