"""DCNv3 with a 3x3 kernel in Triton: a ``torch.library`` operator around ``triton_kernels.py``.

The gradient of the input is summed with floating-point atomics, in no fixed order. Under
``torch.use_deterministic_algorithms`` the atomics are in 64-bit fixed point instead, which gives the same bits in every
run and takes twice the memory. All other results are the same in every run anyway.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.dcnv3.common import KERNEL_SIZE, fixed_point, joined, like_output, register
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import ready

_GROUP_CHANNELS = (4, 8, 16, 32, 64)

_WARPS = 4
_THREADS = 32 * _WARPS
_VECTOR_BYTES = 16

# For the kernel that adds to the input's gradient: a program's pixels, and its window of the input, whose margins allow
# offsets of three pixels along the width and two along the height.
_SCATTER_WIDTH, _SCATTER_HEIGHT = 8, 2
_WINDOW_WIDTH, _WINDOW_HEIGHT = 16, 8
_SCATTER_WARPS = 2

_INDEX_LIMIT = 2**31
_LARGEST_GRID = 65535  # along y and z


def why_not(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *others: float) -> str:
    """The reason why the kernels cannot take these arguments; ``points`` are offset and mask, or both joined."""
    if kernel_size != KERNEL_SIZE:
        return f"it takes kernels of 3x3, not {kernel_size}x{kernel_size}"
    batch, height, width, channels = input.shape
    if channels // groups not in _GROUP_CHANNELS:
        return (
            f"it takes groups of {', '.join(map(str, _GROUP_CHANNELS))}, not of {channels // groups} channels"
        )
    rows, columns = points[0].shape[1:3]
    row = max(sum(tensor.shape[3] for tensor in points), channels)
    if (
        max(height * width * channels, rows * columns * row) >= _INDEX_LIMIT
        or max(batch, rows) > _LARGEST_GRID
    ):
        return f"the input of shape {tuple(input.shape)} is too large"
    names = ("tensor of offsets or masks", "tensor of masks")
    return machine.why_not("dcnv3", input=input, **dict(zip(names, points, strict=False)))


def run(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *options: Any) -> Tensor:
    """``ops.dcnv3`` for arguments that ``why_not`` accepts."""
    return dcnv3(input, joined(points), groups, *options)


@torch.library.custom_op("sa2depth::dcnv3_triton", mutates_args=())
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
    from sa2depth.ops.dcnv3.triton_kernels import forward

    input, points = ready(input), ready(points)
    output = like_output(input, points)
    if output.numel():
        sizes = _sizes(input, points, stride, padding, dilation, offset_scale)
        options = _options(input, points, groups, remove_center, softmax)
        _gather(forward, (input, points, output), sizes, options)
    return output


@torch.library.custom_op("sa2depth::dcnv3_triton_backward", mutates_args=())
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
    from sa2depth.ops.dcnv3.triton_kernels import backward_points

    grad, input, points = ready(grad), ready(input), ready(points)
    grad_points = points.new_empty(points.shape)
    if not grad.numel():
        return input.new_zeros(input.shape), grad_points
    sizes = _sizes(input, points, stride, padding, dilation, offset_scale)
    options = _options(input, points, groups, remove_center, softmax)
    _gather(backward_points, (grad, input, points, grad_points), sizes, options)
    exact = torch.are_deterministic_algorithms_enabled()
    sums = input.new_zeros(input.shape, dtype=torch.int64 if exact else torch.float32)
    unit, value = fixed_point(grad, points, groups, remove_center, softmax) if exact else (None, None)
    _scatter((grad, points, sums, unit), sizes, options)
    grad_input = sums if value is None else sums.to(torch.float32) * value
    return grad_input.to(input.dtype), grad_points


def _gather(
    kernel: Any, tensors: tuple[Tensor, ...], sizes: tuple[int | float, ...], options: dict[str, int]
) -> None:
    """Launch a kernel whose threads each own 16 bytes of channels of a pair, or a whole group."""
    source, points = tensors[0], tensors[-1]
    batch, rows, columns = points.shape[:3]
    groups = options["GROUPS"]
    lanes = max(1, options["GROUP_CHANNELS"] * source.element_size() // _VECTOR_BYTES)
    pairs = _THREADS // lanes
    block_groups = math.gcd(groups, 4)
    pixels = pairs // block_groups
    block_width = 8 if pixels >= 32 else 4 if pixels >= 8 else 2 if pixels >= 4 else 1
    across, down = math.ceil(columns / block_width), math.ceil(rows / (pixels // block_width))
    with machine.launching_on(source.device):
        kernel[groups // block_groups * across, down, batch](
            *tensors,
            *sizes,
            **options,
            PAIRS=pairs,
            BLOCK_WIDTH=block_width,
            BLOCK_GROUPS=block_groups,
            num_warps=_WARPS,
        )


def _scatter(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    sizes: tuple[int | float, ...],
    options: dict[str, int],
) -> None:
    """Launch the kernel that adds to the input's gradient."""
    from sa2depth.ops.dcnv3.triton_kernels import backward_input

    grad, unit = tensors[0], tensors[-1]
    batch, rows, columns = grad.shape[:3]
    stride = sizes[4]
    sides = ((_WINDOW_WIDTH, _SCATTER_WIDTH), (_WINDOW_HEIGHT, _SCATTER_HEIGHT))
    # the window is centred on the program's pixels
    margins = (max(int(window - 1 - (side - 1) * stride) // 2, 0) for window, side in sides)
    across, down = math.ceil(columns / _SCATTER_WIDTH), math.ceil(rows / _SCATTER_HEIGHT)
    with machine.launching_on(grad.device):
        backward_input[options["GROUPS"] * across, down, batch](
            *tensors,
            *sizes,
            *margins,
            **options,
            EXACT=int(unit is not None),
            BLOCK_WIDTH=_SCATTER_WIDTH,
            PIXELS=_SCATTER_WIDTH * _SCATTER_HEIGHT,
            WINDOW_WIDTH=_WINDOW_WIDTH,
            WINDOW_HEIGHT=_WINDOW_HEIGHT,
            PRECISION=machine.float32_precision(grad.device),
            num_warps=_SCATTER_WARPS,
        )


def _sizes(
    input: Tensor, points: Tensor, stride: int, padding: int, dilation: int, offset_scale: float
) -> tuple[int | float, ...]:
    """The kernels' arguments height, width, rows, columns, stride, first, dilation and scale."""
    return (*input.shape[1:3], *points.shape[1:3], stride, dilation - padding, dilation, offset_scale)


def _options(
    input: Tensor, points: Tensor, groups: int, remove_center: bool, softmax: bool
) -> dict[str, int]:
    """The constants that the kernels are compiled with."""
    return {
        "GROUPS": groups,
        "GROUP_CHANNELS": input.shape[3] // groups,
        "ROW": points.shape[3],
        "REMOVE_CENTER": int(remove_center),
        "SOFTMAX": int(softmax),
    }


register(dcnv3, dcnv3_backward, "triton")
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
