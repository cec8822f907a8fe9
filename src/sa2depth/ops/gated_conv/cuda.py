"""The gated convolution on CUDA: a ``torch.library`` operator around ``csrc/gated_conv``.

Only the inputs are kept for the backward pass, which recomputes the convolution. No sum depends on the order in which
threads run, so two runs on one device give the same bits.
"""

import functools
import math

import torch
from torch import Tensor

from sa2depth.ops.gated_conv.common import GROUP, register, run_channels_last
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import nvrtc
from sa2depth.ops.runtime.gpu import multiprocessors, ready
from sa2depth.ops.runtime.nvrtc import INDEX_LIMIT, TYPES, Argument, Source, int32, launch, why_not_on

# The same constants as in csrc/gated_conv/*.
_BLOCK_GROUPS = 16
_STRIP = 2
_THREADS = 128
_SETS = {"forward": 8, "backward_gate": 8, "backward_conv": 4}  # strips that a block walks at the same time

_BLOCKS_HELD = 2  # on a multiprocessor
# Fixed costs of a block and of a strip, in rows.
_ROWS_OF_BLOCK, _ROWS_OF_STRIP = 8, 2
_MOST_PARTS, _MOST_SEGMENTS = 128, 8


def why_not(x: Tensor, kernel: Tensor, bias: Tensor) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    if reason := nvrtc.why_not(("input", x), ("kernel", kernel), ("bias", bias)):
        return reason
    batch, channels, height, width = x.shape
    # 32-bit indices count strips, and channels with their weights; tensors may be larger.
    if max(batch * (height + _MOST_SEGMENTS) * (width + 1), channels * 9 * GROUP) >= INDEX_LIMIT:
        return f"the input of shape {tuple(x.shape)} is too large"
    return why_not_on("gated_conv", x.device.index)


def run(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` for arguments that ``why_not`` accepts; the result is channels last in memory."""
    return run_channels_last(gated_conv, x, kernel, bias)


@torch.library.custom_op("sa2depth::gated_conv_cuda", mutates_args=())
def gated_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` with ``x`` and the result as ``(B, H, W, C)``; kernel and bias are float32."""
    x, kernel, bias = (ready(t) for t in (x, kernel, bias))
    output = x.new_empty(x.shape)
    if output.numel():
        _launch("forward", x, (x, kernel, bias, output))
    return output


@torch.library.custom_op("sa2depth::gated_conv_cuda_backward", mutates_args=())
def gated_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, kernel and bias; ``grad (B, H, W, C)`` is that of the output."""
    grad, x, kernel, bias = (ready(t) for t in (grad, x, kernel, bias))
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
        Source(f"gated_conv/{name}.cu", (("VALUE_TYPE", TYPES[x.dtype]),)),
        f"gated_conv_{name}",
        (*arguments, *int32(*numbers)),
        grid=(_slabs(channels), parts, 1),
        threads=_THREADS,
        device=x.device,
    )


def _cut(name: str, x: Tensor) -> tuple[int, int]:
    """The number of segments of each image column, and the number of blocks that share a slab of channels."""
    return _fastest_cut(_SETS[name], *x.shape, _BLOCKS_HELD * multiprocessors(x.device))


@functools.lru_cache(maxsize=256)
def _fastest_cut(
    sets: int, batch: int, height: int, width: int, channels: int, blocks_held: int
) -> tuple[int, int]:
    """The pair for ``_cut`` with the fewest rows that a multiprocessor walks one after the other."""

    def rows_in_turn(cut: tuple[int, int]) -> int:
        segments, parts = cut
        turns = math.ceil(batch * segments * math.ceil(width / _STRIP) / (sets * parts))
        rounds = math.ceil(_slabs(channels) * parts / blocks_held)
        return rounds * (turns * (math.ceil(height / segments) + _ROWS_OF_STRIP) + _ROWS_OF_BLOCK)

    most_segments = min(height, _MOST_SEGMENTS)
    # among equals the first: few parts, because they must be written and added up, and few segments
    cuts = ((s, p) for p in range(1, _MOST_PARTS + 1) for s in range(1, most_segments + 1))
    segments, parts = min(cuts, key=rows_in_turn)
    # drops empty segments
    return math.ceil(height / math.ceil(height / segments)), parts


def _slabs(channels: int) -> int:
    """Number of blocks of groups."""
    return math.ceil(channels / GROUP / _BLOCK_GROUPS)


register(gated_conv, gated_conv_backward, "cuda")
BACKEND = Backend("cuda", run, why_not, kernel_sources("gated_conv/*", "*.cuh"))
