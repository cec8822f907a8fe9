"""Depthwise convolution on CUDA: a ``torch.library`` operator around ``csrc/depthwise_conv``.

No sum uses atomics, so two runs give the same bits on one kind of GPU. Backward takes three launches: the input's
gradient (the forward kernel, with flipped kernels), sums of the weight's gradient by blocks that each walk a part of
the image, and the total of these sums.
"""

import functools
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
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import nvrtc
from sa2depth.ops.runtime.gpu import multiprocessors, ready, shared_bytes_limit
from sa2depth.ops.runtime.nvrtc import INDEX_LIMIT, LARGEST_GRID, TYPES, Source, int32, launch, why_not_on

_CHANNELS = 8  # the number of channels is a multiple of it

# The same constants as in csrc/depthwise_conv/tile.cuh, forward.cu and backward_weight.cu.
_STRIP = 20
_FORWARD_SLABS = (32, 16, 8)
_FORWARD_OUTPUTS = 512  # rows times channels of a tile: threads own two rows
_WEIGHT_SLABS = (16, 8)
_WEIGHT_ROWS = 16
_WEIGHT_BLOCKS = 2  # on a multiprocessor

# The same constants as in csrc/depthwise_conv/direct.cuh.
_DIRECT_THREADS = 256
_DIRECT_VECTORS = 64
_DIRECT_COLUMNS = 2
_DIRECT_BLOCKS = 2  # on a multiprocessor

_SUM_OUTPUTS, _SUM_THREADS = 32, 256  # for a block of sum_chunks.cu


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    if reason := nvrtc.why_not(("input", x), ("weight", weight), ("bias", bias)):
        return reason
    batch, channels, height, width = x.shape
    kernel_size = weight.shape[-1]
    if kernel_size not in KERNEL_SIZES:
        return f"it takes kernels of {', '.join(f'{k}x{k}' for k in KERNEL_SIZES)}, not {kernel_size}x{kernel_size}"
    if channels % _CHANNELS:
        return f"the input has {channels} channels, which is not a multiple of {_CHANNELS}"
    # 32-bit indices count the values of one image with the margins of its tiles, the weights, and tiles of at least
    # 4x2 outputs; tensors may be larger.
    image = (height + 64) * (width + 64) * channels
    if max(image, channels * (kernel_size**2 + 1), batch * height * width) >= INDEX_LIMIT or (
        max(batch, height) > LARGEST_GRID
    ):
        return f"the input of shape {tuple(x.shape)} is too large"
    return why_not_on("depthwise_conv", x.device.index)


def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``ops.depthwise_conv`` for arguments that ``why_not`` accepts."""
    return run_channels_last(depthwise_conv, x, weight, bias)


@torch.library.custom_op("sa2depth::depthwise_conv_cuda", mutates_args=())
def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``ops.depthwise_conv`` with ``x`` and the result as ``(B, H, W, C)``, weight and bias float32."""
    return _convolve(ready(x), weight, None if bias is None else ready(bias), flipped=False)


@torch.library.custom_op("sa2depth::depthwise_conv_cuda_backward", mutates_args=())
def depthwise_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias, empty if not wanted; ``grad`` is that of the output."""
    kernels = (_convolve, _weight_parts, _sum_chunks)
    return gradients(kernels, grad, x, weight, wants_input, wants_weight, wants_bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    output = x.new_empty(x.shape)
    if not output.numel():
        return output
    batch, height, width, channels = x.shape
    kernel_size = weight.shape[-1]
    tensors = (x, ready(weight), bias, output)
    if kernel_size == 3:
        vectors, tiles = _direct_tiles(x)
        rows = _direct_rows(x, tiles * batch)
        launch(
            _source("forward_3x3", x),
            "depthwise_conv_forward_3x3",
            (*tensors, *int32(height, width, channels, vectors, rows, flipped)),
            grid=(tiles, math.ceil(height / rows), batch),
            threads=_DIRECT_THREADS,
            device=x.device,
        )
        return output
    slab = next(slab for slab in _FORWARD_SLABS if channels % slab == 0)
    wide = _STRIP + kernel_size - 1
    weights = slab * kernel_size**2
    pitch = _pitch(wide, slab)
    fitting = (shared_bytes_limit(x.device) // 4 - weights) // pitch - kernel_size + 1
    step = 64 // slab  # rows that fill whole warps
    rows = _even_rows(height, min(_FORWARD_OUTPUTS // slab, fitting // step * step), step)
    launch(
        _source("forward", x, KERNEL_SIZE=kernel_size, SLAB=slab),
        "depthwise_conv_forward",
        (*tensors, *int32(height, width, channels, rows, flipped)),
        grid=(channels // slab * math.ceil(width / _STRIP), math.ceil(height / rows), batch),
        threads=slab * rows // 2,
        device=x.device,
        shared_bytes=4 * (weights + (rows + kernel_size - 1) * pitch),
    )
    return output


def _weight_parts(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    """``(chunks, k * k + 1, C)`` float32: gradients of weight and bias, each summed over a part of the image."""
    batch, height, width, channels = x.shape
    if kernel_size == 3:
        vectors, columns = _direct_tiles(x)
        rows = _direct_rows(x, columns * batch)
        slabs = channels // 4 // vectors
        tiles = columns // slabs, math.ceil(height / rows)
        parts = _new_parts(x, kernel_size, math.prod(tiles) * batch, _DIRECT_BLOCKS / slabs)
        launch(
            _source("backward_weight_3x3", x),
            "depthwise_conv_backward_weight_3x3",
            (grad, x, parts, *int32(batch, height, width, channels, vectors, *tiles, rows, len(parts))),
            grid=(slabs * len(parts), 1, 1),
            threads=_DIRECT_THREADS,
            device=x.device,
        )
        return parts
    slab = next(slab for slab in _WEIGHT_SLABS if channels % slab == 0)
    rows = _even_rows(height, _WEIGHT_ROWS, 2)
    parts = _new_parts(
        x,
        kernel_size,
        batch * math.ceil(height / rows) * math.ceil(width / _STRIP),
        _WEIGHT_BLOCKS * slab / channels,
    )
    units, groups = 64 // slab, 4 if kernel_size in (7, 11) else 2
    input_pitch = _pitch(_STRIP + kernel_size - 1, slab)
    tile = (rows + kernel_size - 1) * input_pitch + rows * _pitch(_STRIP, slab)
    launch(
        _source("backward_weight", x, KERNEL_SIZE=kernel_size, SLAB=slab),
        "depthwise_conv_backward_weight",
        (grad, x, parts, *int32(batch, height, width, channels, rows, len(parts))),
        grid=(channels // slab * len(parts), 1, 1),
        threads=slab * units * groups,
        device=x.device,
        shared_bytes=4 * max(tile, units * slab * kernel_size * (kernel_size + 1)),
    )
    return parts


def _sum_chunks(parts: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    chunks, slots, channels = parts.shape
    launch(
        Source("depthwise_conv/sum_chunks.cu"),
        "depthwise_conv_sum_chunks",
        (parts, grad_weight, grad_bias if grad_bias.numel() else None, *int32(chunks, slots - 1, channels)),
        grid=(math.ceil(slots * channels / _SUM_OUTPUTS), 1, 1),
        threads=_SUM_THREADS,
        device=parts.device,
    )


def _new_parts(x: Tensor, kernel_size: int, tiles: int, per_multiprocessor: float) -> Tensor:
    """Memory for the sums: a chunk for each block of a slab, with as many blocks as run at once."""
    most = max(1, int(multiprocessors(x.device) * per_multiprocessor))
    rounds = math.ceil(tiles / most)
    return x.new_empty((math.ceil(tiles / rounds), kernel_size**2 + 1, x.shape[3]), dtype=torch.float32)


def _direct_tiles(x: Tensor) -> tuple[int, int]:
    """Vectors of four channels in a slab, and the number of slabs times tiles across the image."""
    vectors = _divisor(x.shape[3] // 4, _DIRECT_VECTORS)
    columns = _DIRECT_THREADS // vectors * _DIRECT_COLUMNS
    return vectors, x.shape[3] // 4 // vectors * math.ceil(x.shape[2] / columns)


def _direct_rows(x: Tensor, columns: int) -> int:
    """Rows that a thread of a 3x3 kernel walks if all images together are ``columns`` blocks wide."""
    return rows_of_least_time(x.shape[1], columns, _DIRECT_BLOCKS * multiprocessors(x.device))


def _even_rows(height: int, most: int, step: int) -> int:
    """Rows of a tile: a multiple of ``step``, at most ``most``, that leaves few rows of the last tile empty."""
    return math.ceil(height / math.ceil(height / most) / step) * step


def _pitch(columns: int, slab: int) -> int:
    """Floats between rows of a tile."""
    return columns * slab + (slab // 2 if slab < 32 else 0)


@functools.cache
def _divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def _source(name: str, x: Tensor, **macros: int) -> Source:
    macros["VALUE_TYPE"] = TYPES[x.dtype]
    return Source(f"depthwise_conv/{name}.cu", tuple(macros.items()))


register(depthwise_conv, depthwise_conv_backward, "cuda")
BACKEND = Backend("cuda", run, why_not, kernel_sources("depthwise_conv/*", "*.cuh"))
