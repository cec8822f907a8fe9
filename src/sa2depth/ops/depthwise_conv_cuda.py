"""Depthwise convolution on CUDA: a ``torch.library`` operator around ``csrc/depthwise_conv``.

Nothing is summed with atomics: two runs give the same bits on one kind of GPU. Backward takes three launches: the
input's gradient (the forward kernel, with flipped kernels), sums of the weight's gradient by blocks that each walk a
part of the image, and the sum of those.
"""

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.autograd import refuse_second_derivative
from sa2depth.ops.backends import say_once
from sa2depth.ops.kernels import Source, launch, why_unavailable
from sa2depth.ops.precision import no_autocast

_TYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
}  # as in csrc/depthwise_conv/depthwise_conv.cuh
_KERNEL_SIZES = (3, 5, 7, 9, 11)
_CHANNELS = 8  # their number is a multiple
_VECTOR_BYTES = 16

# As in csrc/depthwise_conv/tile.cuh, forward.cu and backward_weight.cu.
_STRIP = 20
_FORWARD_SLABS = (32, 16, 8)
_FORWARD_OUTPUTS = 512  # rows times channels of a tile: threads own two rows
_WEIGHT_SLABS = (16, 8)
_WEIGHT_ROWS = 16
_WEIGHT_BLOCKS = 2  # of a multiprocessor

# As in csrc/depthwise_conv/direct.cuh.
_DIRECT_THREADS = 256
_DIRECT_VECTORS = 64
_DIRECT_COLUMNS = 2
_DIRECT_BLOCKS = 2  # of a multiprocessor
_DIRECT_START = (
    6  # what a thread does besides its rows, in rows: two rows of margin, and the wait for the first
)

_SUM_OUTPUTS, _SUM_THREADS = 32, 256  # of a block of sum_chunks.cu

_INDEX_LIMIT = 2**31
_LARGEST_GRID = 65535  # along y and z
_EMULATED_MULTIPROCESSORS, _EMULATED_SHARED_BYTES = 3, 227 * 1024  # where there is no GPU to ask


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """Why the kernels cannot take these inputs; empty if they can."""
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not tensor.is_cuda:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in _TYPES:
            return f"the {name} is {tensor.dtype}"
    batch, channels, height, width = x.shape
    kernel_size = weight.shape[-1]
    if kernel_size not in _KERNEL_SIZES:
        return (
            f"the kernels are {', '.join(f'{k}x{k}' for k in _KERNEL_SIZES)}, not {kernel_size}x{kernel_size}"
        )
    if channels % _CHANNELS:
        return f"the input has {channels} channels, which is no multiple of {_CHANNELS}"
    # Tensors may be larger: counted in 32 bits are the numbers of one image with the margins of its tiles, its weights,
    # and tiles of at least 4x2 outputs.
    image = (height + 64) * (width + 64) * channels
    if max(image, channels * (kernel_size**2 + 1), batch * height * width) >= _INDEX_LIMIT or (
        max(batch, height) > _LARGEST_GRID
    ):
        return f"the input has shape {tuple(x.shape)}"
    return _why_unavailable(x.device.index)


@torch.compiler.assume_constant_result
def _why_unavailable(index: int) -> str:
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once("depthwise_conv", reason)
    return reason


def depthwise_conv_cuda(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``ops.depthwise_conv`` for inputs that ``why_not`` has nothing against."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with no_autocast(x):
        pixels = x.permute(0, 2, 3, 1).contiguous()  # here, so that backward has the copy too, if it is one
        output = depthwise_conv(pixels, weight.float(), None if bias is None else bias.float())
    return output.permute(0, 3, 1, 2)


@torch.library.custom_op("sa2depth::depthwise_conv_cuda", mutates_args=())
def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As ``ops.depthwise_conv`` with ``x`` and the result ``(B, H, W, C)``, weight and bias float32."""
    return _convolve(_ready(x), _ready(weight), None if bias is None else _ready(bias), flipped=False)


@torch.library.custom_op("sa2depth::depthwise_conv_cuda_backward", mutates_args=())
def depthwise_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias; empty where not wanted. ``grad`` is that of the output."""
    grad = _ready(grad)
    grad_x = x.new_empty(0)
    if wants_input:
        grad_x = _convolve(grad, _ready(weight), None, flipped=True)
    if not wants_weight and not wants_bias:
        return grad_x, weight.new_empty(0), weight.new_empty(0)
    # The kernels sum both.
    grad_weight = weight.new_empty(weight.shape)
    grad_bias = weight.new_empty(weight.shape[0] if wants_bias else 0)
    if grad.numel():
        _sum_chunks(_weight_parts(grad, _ready(x), weight.shape[-1]), grad_weight, grad_bias)
    else:
        grad_weight.zero_()
        grad_bias.zero_()
    return grad_x, grad_weight if wants_weight else weight.new_empty(0), grad_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    output = x.new_empty(x.shape)
    if not output.numel():
        return output
    batch, height, width, channels = x.shape
    kernel_size = weight.shape[-1]
    tensors = (x, weight, bias, output)
    if kernel_size == 3:
        vectors, tiles = _direct_tiles(x)
        rows = _direct_rows(x, tiles * batch)
        launch(
            _source("forward_3x3", x),
            "depthwise_conv_forward_3x3",
            (*tensors, *_int32(height, width, channels, vectors, rows, flipped)),
            grid=(tiles, math.ceil(height / rows), batch),
            threads=_DIRECT_THREADS,
            device=x.device,
        )
        return output
    slab = next(slab for slab in _FORWARD_SLABS if channels % slab == 0)
    wide = _STRIP + kernel_size - 1
    weights = slab * kernel_size**2
    pitch = _pitch(wide, slab)
    fitting = (_shared_limit(x.device) // 4 - weights) // pitch - kernel_size + 1
    step = 64 // slab  # rows of whole warps
    rows = _even_rows(height, min(_FORWARD_OUTPUTS // slab, fitting // step * step), step)
    launch(
        _source("forward", x, KERNEL_SIZE=kernel_size, SLAB=slab),
        "depthwise_conv_forward",
        (*tensors, *_int32(height, width, channels, rows, flipped)),
        grid=(channels // slab * math.ceil(width / _STRIP), math.ceil(height / rows), batch),
        threads=slab * rows // 2,
        device=x.device,
        shared_bytes=4 * (weights + (rows + kernel_size - 1) * pitch),
    )
    return output


def _weight_parts(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    """``(chunks, k * k + 1, C)`` float32: sums of the weight's gradient, and the bias's, by parts of the image."""
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
            (grad, x, parts, *_int32(batch, height, width, channels, vectors, *tiles, rows, len(parts))),
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
        (grad, x, parts, *_int32(batch, height, width, channels, rows, len(parts))),
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
        (parts, grad_weight, grad_bias if grad_bias.numel() else None, *_int32(chunks, slots - 1, channels)),
        grid=(math.ceil(slots * channels / _SUM_OUTPUTS), 1, 1),
        threads=_SUM_THREADS,
        device=parts.device,
    )


def _new_parts(x: Tensor, kernel_size: int, tiles: int, per_multiprocessor: float) -> Tensor:
    """Memory for the sums: a chunk for each block of a slab, so many that all blocks run at once."""
    most = max(1, int(_multiprocessors(x.device) * per_multiprocessor))
    rounds = math.ceil(tiles / most)
    return x.new_empty((math.ceil(tiles / rounds), kernel_size**2 + 1, x.shape[3]), dtype=torch.float32)


def _direct_tiles(x: Tensor) -> tuple[int, int]:
    """Vectors of four channels in a slab, and the number of slabs times tiles across the image."""
    vectors = _divisor(x.shape[3] // 4, _DIRECT_VECTORS)
    columns = _DIRECT_THREADS // vectors * _DIRECT_COLUMNS
    return vectors, x.shape[3] // 4 // vectors * math.ceil(x.shape[2] / columns)


def _direct_rows(x: Tensor, columns: int) -> int:
    """Rows that a thread of a 3x3 kernel walks where ``columns`` blocks lie side by side, in all images."""
    return _rows_of_least_time(x.shape[1], columns, _DIRECT_BLOCKS * _multiprocessors(x.device))


@functools.lru_cache(maxsize=1024)
def _rows_of_least_time(height: int, columns: int, places: int) -> int:
    """Few rows, and margins are read again and again; many, and multiprocessors have nothing to do in the end."""

    def time(rows: int) -> int:
        return math.ceil(columns * math.ceil(height / rows) / places) * (rows + _DIRECT_START)

    return min((math.ceil(height / count) for count in range(1, height + 1)), key=time)


def _even_rows(height: int, most: int, step: int) -> int:
    """Rows of a tile: a multiple of ``step`` up to ``most`` that leaves few rows of the last tile empty."""
    return math.ceil(height / math.ceil(height / most) / step) * step


def _pitch(columns: int, slab: int) -> int:
    """Floats between rows of a tile."""
    return columns * slab + (slab // 2 if slab < 32 else 0)


@functools.cache
def _divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _EMULATED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block can ask for."""
    if device.type != "cuda":
        return _EMULATED_SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def _source(name: str, x: Tensor, **macros: int) -> Source:
    macros["VALUE_TYPE"] = _TYPES[x.dtype]
    return Source(f"depthwise_conv/{name}.cu", tuple(macros.items()))


def _int32(*numbers: int) -> tuple[ctypes.c_int32, ...]:
    return tuple(ctypes.c_int32(number) for number in numbers)


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned to the kernels' widest loads."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _VECTOR_BYTES == 0 else tensor.clone()


def _like_output(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _like_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if wants_input else 0),
        weight.new_empty(weight.shape if wants_weight else 0),
        weight.new_empty(weight.shape[0] if wants_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    gradients = depthwise_conv_backward(grad, *ctx.saved_tensors, *wanted)
    return tuple(gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True))


depthwise_conv.register_fake(_like_output)
depthwise_conv_backward.register_fake(_like_gradients)
depthwise_conv.register_autograd(_gradients, setup_context=_save)
depthwise_conv_backward.register_autograd(refuse_second_derivative("depthwise_conv", "cuda"))
