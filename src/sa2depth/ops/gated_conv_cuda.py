"""The gated convolution on CUDA: a ``torch.library`` operator around ``csrc/gated_conv``.

Nothing but the inputs is kept for the backward pass; it computes the convolution again. No sum depends on the order in
which threads run, so two runs on one device give the same bits.
"""

import ctypes
import functools
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sa2depth.ops.autograd import refuse_second_derivative
from sa2depth.ops.backends import say_once
from sa2depth.ops.kernels import Argument, Source, launch, why_unavailable

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/gated_conv/gated_conv.cuh

# As in csrc/gated_conv/*.
_GROUP = 4
_BLOCK_GROUPS = 16
_STRIP = 2
_THREADS = 128
_SETS = {"forward": 8, "backward_gate": 8, "backward_conv": 4}  # strips that a block walks at the same time
_VECTOR_BYTES = 16

_BLOCKS_HELD = 2  # by a multiprocessor
# Rows of a strip that take as long as what a block, and what a strip, does once.
_ROWS_OF_BLOCK, _ROWS_OF_STRIP = 8, 2
_MOST_PARTS, _MOST_SEGMENTS = 128, 8

_INDEX_LIMIT = 2**31


def why_not(x: Tensor, kernel: Tensor, bias: Tensor) -> str:
    """Why the kernels cannot take these inputs; empty if they can."""
    for name, tensor in (("input", x), ("kernel", kernel), ("bias", bias)):
        if not tensor.is_cuda:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in _TYPES:
            return f"the {name} is {tensor.dtype}"
    batch, channels, height, width = x.shape
    # Tensors may be larger: counted in 32 bits are strips, and channels with their weights.
    if max(batch * (height + _MOST_SEGMENTS) * (width + 1), channels * 9 * _GROUP) >= _INDEX_LIMIT:
        return f"the input has shape {tuple(x.shape)}"
    return _why_unavailable(x.device.index)


@torch.compiler.assume_constant_result
def _why_unavailable(index: int) -> str:
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once("gated_conv", reason)
    return reason


def gated_conv_cuda(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` for inputs that ``why_not`` has nothing against.

    The result is channels last in memory; an ``x`` that is so too is not copied. Inside autocast ``x`` is converted
    to autocast's type, as the convolution would do with it; kernel and bias stay float32 there and elsewhere.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    output = gated_conv(rearrange(x, "b c h w -> b h w c"), kernel.float(), bias.float())
    return rearrange(output, "b h w c -> b c h w")


@torch.library.custom_op("sa2depth::gated_conv_cuda", mutates_args=())
def gated_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """As ``ops.gated_conv`` with ``x`` and the result ``(B, H, W, C)``; kernel and bias float32."""
    x, kernel, bias = (_ready(t) for t in (x, kernel, bias))
    output = x.new_empty(x.shape)
    if output.numel():
        _launch("forward", x, (x, kernel, bias, output))
    return output


@torch.library.custom_op("sa2depth::gated_conv_cuda_backward", mutates_args=())
def gated_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, kernel and bias; ``grad (B, H, W, C)`` is that of the output."""
    grad, x, kernel, bias = (_ready(t) for t in (grad, x, kernel, bias))
    if not x.numel():
        return x.new_zeros(x.shape), kernel.new_zeros(kernel.shape), bias.new_zeros(bias.shape)
    grad_x, grad_c = x.new_empty(x.shape), x.new_empty(x.shape)
    _launch("backward_gate", x, (x, kernel, bias, grad, grad_c, grad_x))
    parts = _cut("backward_conv", x)[1]
    kernel_parts = kernel.new_empty((parts, *kernel.shape))
    bias_parts = bias.new_empty((parts, *bias.shape))
    _launch("backward_conv", x, (x, kernel, grad_c, grad_x, kernel_parts, bias_parts))
    return grad_x, kernel_parts.sum(dim=0), bias_parts.sum(dim=0)


def _launch(name: str, x: Tensor, arguments: tuple[Argument, ...]) -> None:
    """Launch the kernel of one file; ``arguments`` are its tensors."""
    batch, height, width, channels = x.shape
    segments, parts = _cut(name, x)
    strips = batch * segments * math.ceil(width / _STRIP)
    numbers = (height, width, channels, segments, math.ceil(height / segments), strips)
    launch(
        Source(f"gated_conv/{name}.cu", (("VALUE_TYPE", _TYPES[x.dtype]),)),
        f"gated_conv_{name}",
        (*arguments, *(ctypes.c_int32(number) for number in numbers)),
        grid=(_slabs(channels), parts, 1),
        threads=_THREADS,
        device=x.device,
    )


def _cut(name: str, x: Tensor) -> tuple[int, int]:
    """Into how many segments each column of an image is cut, and how many blocks share a slab of channels."""
    return _fastest_cut(_SETS[name], *x.shape, _BLOCKS_HELD * _multiprocessors(x.device))


@functools.lru_cache(maxsize=256)
def _fastest_cut(
    sets: int, batch: int, height: int, width: int, channels: int, blocks_held: int
) -> tuple[int, int]:
    """The pair that ``_cut`` returns, by the rows that a multiprocessor walks one after the other."""

    def rows_in_turn(cut: tuple[int, int]) -> int:
        segments, parts = cut
        turns = math.ceil(batch * segments * math.ceil(width / _STRIP) / (sets * parts))
        rounds = math.ceil(_slabs(channels) * parts / blocks_held)
        return rounds * (turns * (math.ceil(height / segments) + _ROWS_OF_STRIP) + _ROWS_OF_BLOCK)

    most_segments = min(height, _MOST_SEGMENTS)
    # the first of equals: few parts, which are to be written and added up, and few segments
    cuts = ((s, p) for p in range(1, _MOST_PARTS + 1) for s in range(1, most_segments + 1))
    segments, parts = min(cuts, key=rows_in_turn)
    # without segments that are empty
    return math.ceil(height / math.ceil(height / segments)), parts


def _slabs(channels: int) -> int:
    """Groups of the map, in blocks of them."""
    return math.ceil(channels / _GROUP / _BLOCK_GROUPS)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned to the kernels' widest loads."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _VECTOR_BYTES == 0 else tensor.clone()


@gated_conv.register_fake
def _(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@gated_conv_backward.register_fake
def _(grad: Tensor, x: Tensor, kernel: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, kernel, bias))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = gated_conv_backward(grad, *ctx.saved_tensors)
    return gradients


gated_conv.register_autograd(_gradients, setup_context=_save)
gated_conv_backward.register_autograd(refuse_second_derivative("gated_conv", "cuda"))
