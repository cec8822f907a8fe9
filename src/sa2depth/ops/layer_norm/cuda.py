"""Layer normalisation on CUDA: a ``torch.library`` operator around ``csrc/layer_norm``.

No sum uses atomics, so two runs give the same bits on one kind of GPU. Backward takes two launches: one for the input's
gradient and each block's sums of the parameters' gradients, one for the total of these sums.
"""

import ctypes
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
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import nvrtc
from sa2depth.ops.runtime.gpu import multiprocessors, ready
from sa2depth.ops.runtime.nvrtc import TYPES, Source, launch, why_not_on

_CHANNELS = 8  # the number of channels is a multiple of it

# Threads of a team and values of a thread, as in csrc/layer_norm/layer_norm.cuh; a team holds as many as their product.
_TEAMS = (
    *((4, 8), (8, 8), (4, 24), (16, 8), (8, 24), (32, 8)),
    *((16, 24), (32, 16), (32, 24), (32, 32), (64, 32), (256, 32)),
)
_BLOCK_THREADS = 128  # or those of a team
# Blocks on a multiprocessor, by values of a thread, without and with GELU, as in csrc/layer_norm/backward.cu.
_RESIDENT = ({8: 5, 16: 4, 24: 3, 32: 2}, {8: 4, 16: 4, 24: 2, 32: 2})
_FORWARD_VALUES = 32  # of a thread, in all rows that it takes at once
_MOST_CHANNELS = max(lanes * values for lanes, values in _TEAMS)
_SUM_OUTPUTS, _SUM_THREADS = 32, 1024  # for a block of layer_norm_sum_parts


def why_not(x: Tensor, weight: Tensor, bias: Tensor, *others: float) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    if reason := nvrtc.why_not(("input", x), ("weight", weight), ("bias", bias)):
        return reason
    channels = x.shape[-1]
    if not channels or channels % _CHANNELS or channels > _MOST_CHANNELS:
        return f"there are {channels} channels, not a multiple of {_CHANNELS} up to {_MOST_CHANNELS}"
    if x.numel() // channels > MOST_ROWS:
        return f"the input of shape {tuple(x.shape)} is too large"
    return why_not_on("layer_norm", x.device.index)


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> Tensor:
    """``ops.layer_norm`` for arguments that ``why_not`` accepts."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if dtype.itemsize > x.dtype.itemsize:  # the kernels write no type wider than the input's
        x = x.to(dtype)
    return run_directly(_normalise, layer_norm, x, weight, bias, eps, gelu, dtype)


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result in ``dtype``; for the backward pass mean and 1 / deviation of each row, ``(..., 2)`` float32.

    Weight and bias are float32. Without ``keep`` nothing is kept for the backward pass and there is no gradient.
    """
    output, statistics = like_output(x, weight, bias, eps, gelu, dtype, keep)
    if not output.numel():
        return output, statistics
    channels = x.shape[-1]
    rows = x.numel() // channels
    x, stride = rows_in_memory(x)
    lanes, values = _team(channels)
    threads = max(_BLOCK_THREADS, lanes)
    launch(
        _source("forward", x.dtype, dtype, gelu),
        f"layer_norm_forward_{lanes}x{values}",
        (
            *(x, ready(weight), ready(bias), output, statistics if keep else None),
            *(ctypes.c_int64(stride), ctypes.c_int32(rows), ctypes.c_int32(channels)),
            *(ctypes.c_float(1 / channels), ctypes.c_float(eps)),
        ),
        grid=(math.ceil(rows / (threads // lanes * (_FORWARD_VALUES // values))), 1, 1),
        threads=threads,
        device=x.device,
    )
    return output, statistics


layer_norm = torch.library.custom_op("sa2depth::layer_norm_cuda", _normalise, mutates_args=())


@torch.library.custom_op("sa2depth::layer_norm_cuda_backward", mutates_args=())
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
    grad_x, grad_weight, grad_bias = like_gradients(grad, x, weight, bias, statistics, gelu, wants_parameters)
    if not x.numel():
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    channels = x.shape[-1]
    rows = x.numel() // channels
    grad, grad_stride = rows_in_memory(grad)
    x, stride = rows_in_memory(x)
    lanes, values = _team(channels)
    threads = max(_BLOCK_THREADS, lanes)
    blocks = _blocks(rows, lanes, values, gelu, x.device)
    parts = weight.new_empty((blocks, 2, channels)) if wants_parameters else None
    launch(
        _source("backward", x.dtype, grad.dtype, gelu),
        f"layer_norm_backward_{lanes}x{values}",
        (
            *(grad, x, ready(weight), ready(bias), ready(statistics), grad_x, parts),
            *(ctypes.c_int64(grad_stride), ctypes.c_int64(stride)),
            *(ctypes.c_int32(rows), ctypes.c_int32(channels), ctypes.c_float(1 / channels)),
        ),
        grid=(blocks, 1, 1),
        threads=threads,
        device=x.device,
    )
    if wants_parameters:
        launch(
            _source("backward", x.dtype, grad.dtype, gelu),
            "layer_norm_sum_parts",
            (parts, grad_weight, grad_bias, ctypes.c_int32(blocks), ctypes.c_int32(channels)),
            grid=(math.ceil(2 * channels / _SUM_OUTPUTS), 1, 1),
            threads=_SUM_THREADS,
            device=x.device,
        )
    return grad_x, grad_weight, grad_bias


@functools.cache
def _team(channels: int) -> tuple[int, int]:
    """The smallest team that can hold a row: its threads, and values of a thread."""
    return min((team for team in _TEAMS if math.prod(team) >= channels), key=math.prod)


def _blocks(rows: int, lanes: int, values: int, gelu: bool, device: torch.device) -> int:
    """Blocks of the backward pass: as many as run at once, or fewer if that takes no more steps."""
    step = max(_BLOCK_THREADS, lanes) // lanes * (2 if values == 8 else 1)
    sets = math.ceil(rows / step)
    resident = 1 if lanes > _BLOCK_THREADS else _RESIDENT[gelu][values]
    return math.ceil(sets / math.ceil(sets / (resident * multiprocessors(device))))


@functools.cache
def _source(name: str, input: torch.dtype, output: torch.dtype, gelu: bool) -> Source:
    macros = (("INPUT_TYPE", TYPES[input]), ("OUTPUT_TYPE", TYPES[output]), ("GELU", int(gelu)))
    return Source(f"layer_norm/{name}.cu", macros)


register(layer_norm, layer_norm_backward, "cuda")
BACKEND = Backend("cuda", run, why_not, kernel_sources("layer_norm/*", "*.cuh"))
