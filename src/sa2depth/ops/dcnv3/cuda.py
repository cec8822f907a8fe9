"""DCNv3 with a 3x3 kernel on CUDA: a ``torch.library`` operator around ``csrc/dcnv3``.

The gradient of the input is summed with floating-point atomics, in no fixed order. Under
``torch.use_deterministic_algorithms`` it is summed in 64-bit fixed point instead, which gives the same bits in every
run but takes twice the memory for the sums, one more pass over the output's gradient (and the mask), and atomics of
twice the size. All other results are the same in every run anyway.
"""

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.dcnv3.common import KERNEL_SIZE, fixed_point, joined, like_output, register
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import nvrtc
from sa2depth.ops.runtime.gpu import multiprocessors, ready
from sa2depth.ops.runtime.nvrtc import TYPES, Argument, Source, int32, launch, why_not_on

_GROUP_CHANNELS = (8, 16, 32, 64)

# The same constants as in csrc/dcnv3/gather.cuh and backward_input.cu.
_THREADS = 256
_VECTOR_BYTES = 16
_STRIP_WIDTH = 8
_STRIP_CHANNELS = 16
_STRIP_OVERHEAD = 4  # cost of a strip's start and end, in rows
_WARP = 32
_WARPS = 12  # on a multiprocessor
_EMULATED_WARPS = 4

_LARGEST_SIDE = 2**15 - 2  # of an image, because its coordinates are packed


def why_not(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *others: float) -> str:
    """The reason why the kernels cannot take these arguments; ``points`` are offset and mask, or both joined."""
    reason = nvrtc.why_not(("input", input), *(("tensor of offsets or masks", tensor) for tensor in points))
    if reason:
        return reason
    if kernel_size != KERNEL_SIZE:
        return f"it takes kernels of 3x3, not {kernel_size}x{kernel_size}"
    batch, height, width, channels = input.shape
    if channels // groups not in _GROUP_CHANNELS:
        return (
            f"it takes groups of {', '.join(map(str, _GROUP_CHANNELS))}, not of {channels // groups} channels"
        )
    rows, columns = points[0].shape[1:3]
    row = max(sum(tensor.shape[3] for tensor in points), channels)
    # 32-bit indices count the values of 32 rows, and blocks, each of which has at least half a group of one pixel;
    # tensors may be larger.
    counted = (32 * max(columns, width) * row, 2 * batch * rows * columns * groups)
    if (
        max(counted) >= nvrtc.INDEX_LIMIT
        or max(batch, rows) > nvrtc.LARGEST_GRID
        or max(height, width) > _LARGEST_SIDE
    ):
        return f"the input of shape {tuple(input.shape)} is too large"
    return why_not_on("dcnv3", input.device.index)


def run(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *options: Any) -> Tensor:
    """``ops.dcnv3`` for arguments that ``why_not`` accepts."""
    return dcnv3(input, joined(points), groups, *options)


@torch.library.custom_op("sa2depth::dcnv3_cuda", mutates_args=())
def dcnv3(
    input: Tensor,
    points: Tensor,
    groups: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> Tensor:
    """``ops.dcnv3`` with a 3x3 kernel.

    ``points`` is ``(B, Ho, Wo, R)``: the offsets of all groups, their masks (or logits, with ``softmax``), and padding,
    whose gradient is zero.
    """
    input, points = ready(input), ready(points)
    output = like_output(input, points)
    if output.numel():
        sizes = _sizes(input, points, stride, padding, dilation, offset_scale)
        _gather("forward", input, points, groups, remove_center, softmax, (input, points, output, *sizes))
    return output


@torch.library.custom_op("sa2depth::dcnv3_cuda_backward", mutates_args=())
def dcnv3_backward(
    grad: Tensor,
    input: Tensor,
    points: Tensor,
    groups: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of input and points; ``grad`` is that of the output."""
    grad, input, points = ready(grad), ready(input), ready(points)
    grad_points = points.new_empty(points.shape)
    if not grad.numel():
        return input.new_zeros(input.shape), grad_points
    sizes = _sizes(input, points, stride, padding, dilation, offset_scale)
    exact = torch.are_deterministic_algorithms_enabled()
    # sums of the input's gradient: the first kernel clears them, the second adds to them
    sums = input.new_empty(input.shape, dtype=torch.int64 if exact else torch.float32)
    clearing = ctypes.c_int64(sums.numel() * sums.element_size() // _VECTOR_BYTES)
    arguments = (grad, input, points, grad_points, sums, clearing, *sizes)
    _gather("backward_points", input, points, groups, remove_center, softmax, arguments)
    unit, value = fixed_point(grad, points, groups, remove_center, softmax) if exact else (None, None)
    _scatter(grad, points, sums, unit, sizes, groups, remove_center, softmax)
    grad_input = sums if value is None else sums.to(torch.float32) * value
    return grad_input.to(input.dtype), grad_points


def _gather(
    name: str,
    input: Tensor,
    points: Tensor,
    groups: int,
    remove_center: bool,
    softmax: bool,
    arguments: tuple[Argument, ...],
) -> None:
    """Launch a kernel of ``gather.cuh``."""
    batch, rows, columns = points.shape[:3]
    lanes = input.shape[3] // groups * input.element_size() // _VECTOR_BYTES
    block_groups = math.gcd(groups, 4)
    pixels = _THREADS // lanes // block_groups
    tile_width = 8 if pixels >= 32 else 4 if pixels >= 8 else 2 if pixels >= 4 else 1
    across, down = math.ceil(columns / tile_width), math.ceil(rows / (pixels // tile_width))
    launch(
        _source(name, input, points, groups, remove_center, softmax, GROUPS_PER_BLOCK=block_groups),
        f"dcnv3_{name}",
        arguments,
        grid=(groups // block_groups * across, down, batch),
        threads=_THREADS,
        device=input.device,
    )


def _scatter(
    grad: Tensor,
    points: Tensor,
    sums: Tensor,
    unit: Tensor | None,
    sizes: tuple[Argument, ...],
    groups: int,
    remove_center: bool,
    softmax: bool,
) -> None:
    """Launch the kernel of ``backward_input.cu``."""
    batch, rows, columns, channels = grad.shape
    slabs = channels // min(channels // groups, _STRIP_CHANNELS)
    warps = math.gcd(slabs, 4)
    side_by_side = batch * math.ceil(columns / _STRIP_WIDTH) * slabs
    strip_rows = _strip_rows(rows, side_by_side, _warps(grad.device))
    launch(
        _source(
            "backward_input",
            grad,
            points,
            groups,
            remove_center,
            softmax,
            DETERMINISTIC=int(unit is not None),
        ),
        "dcnv3_backward_input",
        (grad, points, sums, unit, ctypes.c_int32(batch), ctypes.c_int32(strip_rows), *sizes),
        grid=(math.ceil(side_by_side * math.ceil(rows / strip_rows) / warps), 1, 1),
        threads=_WARP * warps,
        device=grad.device,
    )


@functools.lru_cache(maxsize=256)
def _strip_rows(rows: int, side_by_side: int, warps: int) -> int:
    """Rows of a strip: as many as possible while all warps of the device stay busy until the end."""

    def duration(strips: int) -> int:
        return math.ceil(side_by_side * strips / warps) * (math.ceil(rows / strips) + _STRIP_OVERHEAD)

    return math.ceil(rows / min(range(1, rows + 1), key=duration))


@functools.cache
def _warps(device: torch.device) -> int:
    if device.type != "cuda":
        return _EMULATED_WARPS
    return _WARPS * multiprocessors(device)


def _source(
    name: str, input: Tensor, points: Tensor, groups: int, remove_center: bool, softmax: bool, **macros: int
) -> Source:
    macros |= {
        "VALUE_TYPE": TYPES[input.dtype],
        "POINT_TYPE": TYPES[points.dtype],
        "POINT_ROW": points.shape[3],
        "GROUP_CHANNELS": input.shape[3] // groups,
        "GROUPS": groups,
        "REMOVE_CENTER": int(remove_center),
        "SOFTMAX": int(softmax),
    }
    return Source(f"dcnv3/{name}.cu", tuple(macros.items()))


def _sizes(
    input: Tensor, points: Tensor, stride: int, padding: int, dilation: int, offset_scale: float
) -> tuple[Argument, ...]:
    """The kernels' arguments height, width, rows, columns, stride, first, dilation and scale."""
    numbers = (*input.shape[1:3], *points.shape[1:3], stride, dilation - padding, dilation)
    return (*int32(*numbers), ctypes.c_float(offset_scale))


register(dcnv3, dcnv3_backward, "cuda")
BACKEND = Backend("cuda", run, why_not, kernel_sources("dcnv3/*", "*.cuh"))
