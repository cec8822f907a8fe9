"""DCNv3 with a 3x3 kernel on CUDA: a ``torch.library`` operator around ``csrc/dcnv3``.

The gradient of the input is summed with floating-point atomics, in no fixed order. While
``torch.use_deterministic_algorithms`` is on it is summed in 64-bit fixed point instead, which gives the same bits in
every run; that takes twice the memory for the sums, two more passes over the output's gradient and the mask, and
atomics of twice the size. All else is the same in every run anyway.
"""

import ctypes
import math

import torch
from torch import Tensor

from sa2depth.ops.autograd import register_dcnv3
from sa2depth.ops.backends import say_once
from sa2depth.ops.kernels import Argument, Source, launch, why_unavailable

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/dcnv3/dcnv3.cuh
_GROUP_CHANNELS = (8, 16, 32, 64)
_KERNEL_SIZE = 3

# As in csrc/dcnv3/gather.cuh and backward_input.cu.
_THREADS = 256
_VECTOR_BYTES = 16
_TILE = 8
_WARP = 32
_NEAR = 3  # offsets up to here shall stay within the window in shared memory: points farther away cost more
_MARGINS = (3, 5)  # of that window; a wider one does not fit into 48 KiB

_INDEX_LIMIT = 2**31
_LARGEST_SIDE = 2**15 - 2  # of an image: its coordinates are packed
_LARGEST_GRID = 65535  # along y and z


def why_not(input: Tensor, offset: Tensor, mask: Tensor, groups: int, kernel_size: int) -> str:
    """Why the kernels cannot take these inputs; empty if they can."""
    for name, tensor in (("input", input), ("offset", offset), ("mask", mask)):
        if not tensor.is_cuda:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in _TYPES:
            return f"the {name} is {tensor.dtype}"
    if kernel_size != _KERNEL_SIZE:
        return f"the kernels are 3x3, not {kernel_size}x{kernel_size}"
    batch, height, width, channels = input.shape
    if channels // groups not in _GROUP_CHANNELS:
        return f"a group has {channels // groups} channels, the kernels take {', '.join(map(str, _GROUP_CHANNELS))}"
    rows, columns = offset.shape[1:3]
    # Tensors may be larger: counted in 32 bits are the numbers of 32 rows, and blocks, of which each has at least one
    # half of a group of one pixel.
    counted = (32 * columns * groups * 2 * _KERNEL_SIZE**2, 2 * batch * rows * columns * groups)
    if max(counted) >= _INDEX_LIMIT or max(batch, rows) > _LARGEST_GRID or max(height, width) > _LARGEST_SIDE:
        return f"the input has shape {tuple(input.shape)}"
    return _why_unavailable(input.device.index)


@torch.compiler.assume_constant_result
def _why_unavailable(index: int) -> str:
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once("dcnv3", reason)
    return reason


def dcnv3_cuda(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """``ops.dcnv3`` for inputs that ``why_not`` has nothing against."""
    if offset.dtype != mask.dtype:
        offset, mask = offset.float(), mask.float()
    options = (groups, stride, padding, dilation, float(offset_scale), remove_center)
    return dcnv3(input, offset, mask, *options)


@torch.library.custom_op("sa2depth::dcnv3_cuda", mutates_args=())
def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """As ``ops.dcnv3`` with a 3x3 kernel; offset and mask have one dtype."""
    input, offset, mask = (_ready(t) for t in (input, offset, mask))
    output = _like_output(input, mask)
    if output.numel():
        sizes = _sizes(input, mask, stride, padding, dilation, offset_scale)
        _gather("forward", input, mask, groups, remove_center, (input, offset, mask, output, *sizes))
    return output


@torch.library.custom_op("sa2depth::dcnv3_cuda_backward", mutates_args=())
def dcnv3_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    groups: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, offset and mask; ``grad`` is that of the output."""
    grad, input, offset, mask = (_ready(t) for t in (grad, input, offset, mask))
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    if not grad.numel():
        return input.new_zeros(input.shape), grad_offset, grad_mask
    sizes = _sizes(input, mask, stride, padding, dilation, offset_scale)
    tensors = (grad, input, offset, mask, grad_offset, grad_mask)
    _gather("backward_points", input, mask, groups, remove_center, (*tensors, *sizes))
    margin = min(max(math.ceil((dilation + _NEAR) * abs(offset_scale)), _MARGINS[0]), _MARGINS[1])
    if torch.are_deterministic_algorithms_enabled():
        unit, value = _fixed_point(grad, mask)
        total = input.new_zeros(input.shape, dtype=torch.int64)
        _scatter((grad, offset, mask, total, unit, *sizes), groups, remove_center, margin)
        return (total.to(torch.float32) * value).to(input.dtype), grad_offset, grad_mask
    total = input.new_zeros(input.shape, dtype=torch.float32)
    _scatter((grad, offset, mask, total, None, *sizes), groups, remove_center, margin)
    return total.to(input.dtype), grad_offset, grad_mask


def _fixed_point(grad: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Units in 1, and the value of one unit, both float32 on the device: as fine as no overflow allows.

    No pixel of the input gets more than each point's largest share once. The unit is then 2**-44 of the largest
    product of gradient and mask for a map of 120x160, far below float32's own rounding of it.
    """
    largest = grad.abs().amax().double() * mask.abs().amax().double()
    points = mask.shape[1] * mask.shape[2] * _KERNEL_SIZE**2
    exponent = torch.frexp(largest * points).exponent
    # 2**62 with a bit to spare for rounding; beyond 2**126 float32 has no such unit
    one = torch.ones((), dtype=torch.float64, device=grad.device)
    unit = torch.ldexp(one, (61 - exponent).clamp(-126, 126)).float()
    # a gradient that is not finite has no fixed point: it shows in all of the result
    return unit, torch.where(largest.isfinite(), 1 / unit, math.nan)


def _gather(
    name: str, input: Tensor, mask: Tensor, groups: int, remove_center: bool, arguments: tuple[Argument, ...]
) -> None:
    """Launch a kernel of ``gather.cuh``."""
    batch, rows, columns = mask.shape[:3]
    lanes = input.shape[3] // groups * input.element_size() // _VECTOR_BYTES
    block_groups = math.gcd(groups, 4)
    pixels = _THREADS // lanes // block_groups
    tile_width = 8 if pixels >= 32 else 4 if pixels >= 8 else 2 if pixels >= 4 else 1
    across, down = math.ceil(columns / tile_width), math.ceil(rows / (pixels // tile_width))
    launch(
        _source(name, input, mask, groups, remove_center, GROUPS_PER_BLOCK=block_groups),
        f"dcnv3_{name}",
        arguments,
        grid=(groups // block_groups * across, down, batch),
        threads=_THREADS,
        device=input.device,
    )


def _scatter(arguments: tuple[Argument, ...], groups: int, remove_center: bool, margin: int) -> None:
    """Launch the kernel of ``backward_input.cu``; ``arguments`` are its own but for the number of images."""
    grad, offset, mask, total, unit, *sizes = arguments
    assert isinstance(grad, Tensor)
    assert isinstance(mask, Tensor)
    batch, rows, columns, channels = grad.shape
    team = min(channels // groups, _WARP)
    teams = batch * math.ceil(rows / _TILE) * math.ceil(columns / _TILE) * (channels // team)
    macros = {"MARGIN": margin, "DETERMINISTIC": int(unit is not None)}
    launch(
        _source("backward_input", grad, mask, groups, remove_center, **macros),
        "dcnv3_backward_input",
        (grad, offset, mask, total, unit, ctypes.c_int32(batch), *sizes),
        grid=(math.ceil(teams * team / _WARP), 1, 1),
        threads=_WARP,
        device=grad.device,
    )


def _source(
    name: str, input: Tensor, mask: Tensor, groups: int, remove_center: bool, **macros: int
) -> Source:
    macros |= {
        "VALUE_TYPE": _TYPES[input.dtype],
        "POINT_TYPE": _TYPES[mask.dtype],
        "GROUP_CHANNELS": input.shape[3] // groups,
        "GROUPS": groups,
        "REMOVE_CENTER": int(remove_center),
    }
    return Source(f"dcnv3/{name}.cu", tuple(macros.items()))


def _sizes(
    input: Tensor, mask: Tensor, stride: int, padding: int, dilation: int, offset_scale: float
) -> tuple[Argument, ...]:
    """What the kernels call height, width, rows, columns, stride, first, dilation and scale."""
    numbers = (*input.shape[1:3], *mask.shape[1:3], stride, dilation - padding, dilation)
    return (*(ctypes.c_int32(number) for number in numbers), ctypes.c_float(offset_scale))


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned to the kernels' widest loads."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _VECTOR_BYTES == 0 else tensor.clone()


def _like_output(input: Tensor, mask: Tensor) -> Tensor:
    return input.new_empty((*mask.shape[:3], input.shape[3]))


register_dcnv3(dcnv3, dcnv3_backward, "cuda")
