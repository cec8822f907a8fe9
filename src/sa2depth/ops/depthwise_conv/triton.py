"""Depthwise convolution in Triton: a ``torch.library`` operator around ``triton_kernels.py``.

As on CUDA, no sum uses atomics, and backward takes three launches: the input's gradient (the forward kernel, with
flipped kernels), sums of the weight's gradient by programs that each walk a part of the image, and the total of these
sums. Forward and backward also rearrange the weights into the order in which the kernels read them.
"""

import math

import torch
from torch import Tensor

from sa2depth.ops.depthwise_conv.common import (
    KERNEL_SIZES,
    gradients,
    register,
    rows_of_least_time,
    run_channels_last,
)
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import multiprocessors, ready
from sa2depth.ops.runtime.triton import power_of_two

_INDEX_LIMIT = 2**31  # for 32-bit indices
_MOST_ROWS = 65535  # as on CUDA; limits the search of rows_of_least_time

_SLABS = (64, 32, 16)  # channels of a program: the first that divides all channels, or the last
_WARP = 32

# For the forward kernel. The more channels of a pixel a thread has, the shorter its strip must be.
_TILE = 512  # rows times channels
_STRIPS, _STRIPS_3X3 = (20, 10), (10, 5)
_VECTOR, _VECTOR_3X3 = 2, 4

# For the weight's gradient.
_WEIGHT_STRIP = 8
_WEIGHT_TILE = 256  # threads (groups times units) times channels
_WEIGHT_VECTOR = 2
_WEIGHT_KERNEL_ROWS = 3  # at most, for a thread
_WEIGHT_PROGRAMS = 3  # on a multiprocessor

_SUM_NUMBERS, _SUM_DEEP = 32, 64  # numbers and chunks that a program reads at a time


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    kernel_size = weight.shape[-1]
    if kernel_size not in KERNEL_SIZES:
        return f"it takes kernels of {', '.join(f'{k}x{k}' for k in KERNEL_SIZES)}, not {kernel_size}x{kernel_size}"
    # 32-bit indices count the values of one image with the margins of its tiles, the weights, and tiles; tensors may be
    # larger.
    batch, channels, height, width = x.shape
    image = (height + 64) * (width + 64) * channels
    numbers = max(image, channels * (kernel_size**2 + 1), batch * height * width)
    if numbers >= _INDEX_LIMIT or height > _MOST_ROWS:
        return f"the input of shape {tuple(x.shape)} is too large"
    tensors = {"input": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    reason = machine.why_not("depthwise_conv", **tensors)
    kind = x.device.type
    if not reason and torch.is_autocast_enabled(kind):
        # the device may lack the dtype to which autocast rounds the input
        rounded = torch.empty(0, dtype=torch.get_autocast_dtype(kind), device=x.device)
        reason = machine.why_not("depthwise_conv", input=rounded)
    return reason


def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``ops.depthwise_conv`` for arguments that ``why_not`` accepts."""
    return run_channels_last(depthwise_conv, x, weight, bias)


@torch.library.custom_op("sa2depth::depthwise_conv_triton", mutates_args=())
def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``ops.depthwise_conv`` with ``x`` and the result as ``(B, H, W, C)``, weight and bias float32."""
    return _convolve(ready(x), weight, None if bias is None else ready(bias), flipped=False)


@torch.library.custom_op("sa2depth::depthwise_conv_triton_backward", mutates_args=())
def depthwise_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias, empty if not wanted; ``grad`` is that of the output."""
    kernels = (_convolve, _weight_parts, _sum_chunks)
    return gradients(kernels, grad, x, weight, wants_input, wants_weight, wants_bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    from sa2depth.ops.depthwise_conv import triton_kernels as kernels

    output = x.new_empty(x.shape)
    if not output.numel():
        return output
    batch, height, width, channels = x.shape
    kernel_size = weight.shape[-1]
    strips, vector = (_STRIPS_3X3, _VECTOR_3X3) if kernel_size == 3 else (_STRIPS, _VECTOR)
    slab = _slab(channels)
    rows = min(_TILE // slab, max(power_of_two(height), _WARP * vector // slab))
    programs = batch * math.ceil(height / rows) * math.ceil(channels / slab)
    strip = _strip_of_least_time(width, kernel_size, strips, programs / multiprocessors(x.device))
    with machine.launching_on(x.device):
        kernels.convolve[(programs * math.ceil(width / strip),)](
            x,
            weight.reshape(channels, kernel_size**2).t().contiguous(),
            bias,
            output,
            height,
            width,
            CHANNELS=channels,
            KERNEL_SIZE=kernel_size,
            FLIPPED=flipped,
            STRIP=strip,
            ROWS=rows,
            SLAB=slab,
            num_warps=max(1, rows * slab // (_WARP * vector)),
        )
    return output


def _weight_parts(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    """``(chunks, k * k + 1, C)`` float32: gradients of weight and bias, each summed over a part of the image."""
    from sa2depth.ops.depthwise_conv import triton_kernels as kernels

    batch, height, width, channels = x.shape
    slab = _slab(channels)
    slabs = math.ceil(channels / slab)
    groups = power_of_two(math.ceil(kernel_size / _WEIGHT_KERNEL_ROWS))
    units = max(1, _WEIGHT_TILE // slab // groups)
    places = _WEIGHT_PROGRAMS * multiprocessors(x.device)
    strips = batch * math.ceil(width / _WEIGHT_STRIP)
    rows = rows_of_least_time(height, math.ceil(strips / units) * slabs, places)
    tiles = math.ceil(strips * math.ceil(height / rows) / units)
    rounds = math.ceil(tiles / max(1, places // slabs))  # with as many programs as run at once
    chunks = math.ceil(tiles / rounds)
    parts = x.new_empty((chunks, kernel_size**2 + 1, channels), dtype=torch.float32)
    with machine.launching_on(x.device):
        kernels.weight_gradient[(slabs * chunks,)](
            grad,
            x,
            parts,
            batch,
            height,
            width,
            rows,
            chunks,
            CHANNELS=channels,
            KERNEL_SIZE=kernel_size,
            STRIP=_WEIGHT_STRIP,
            GROUPS=groups,
            UNITS=units,
            SLAB=slab,
            num_warps=groups * units * slab // (_WARP * _WEIGHT_VECTOR),
        )
    return parts


def _sum_chunks(parts: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    from sa2depth.ops.depthwise_conv import triton_kernels as kernels

    chunks, slots, channels = parts.shape
    with machine.launching_on(parts.device):
        kernels.sum_chunks[(math.ceil(slots * channels / _SUM_NUMBERS),)](
            parts,
            grad_weight,
            grad_bias if grad_bias.numel() else None,
            chunks,
            CHANNELS=channels,
            TAPS=slots - 1,
            NUMBERS=_SUM_NUMBERS,
            DEEP=_SUM_DEEP,
            num_warps=4,
        )


def _slab(channels: int) -> int:
    return next((slab for slab in _SLABS if channels % slab == 0), _SLABS[-1])


def _strip_of_least_time(width: int, kernel_size: int, strips: tuple[int, ...], programs: float) -> int:
    """The best strip: long ones take fewer instructions, but too few programs leave multiprocessors idle.

    Args:
        width: width of the image.
        kernel_size: rows of the kernel.
        strips: lengths to choose from.
        programs: programs for each multiprocessor on one strip of columns.
    """

    def time(strip: int) -> int:
        pixels = strip + kernel_size - 1  # each takes about three instructions besides multiplications
        return math.ceil(programs * math.ceil(width / strip)) * (
            strip * kernel_size + 3 * pixels + kernel_size
        )

    return min(strips, key=time)


register(depthwise_conv, depthwise_conv_backward, "triton")
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
