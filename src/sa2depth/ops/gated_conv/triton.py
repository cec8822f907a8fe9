"""The gated convolution in Triton: a ``torch.library`` operator around ``triton_kernels.py``.

Only the inputs are kept for the backward pass, which recomputes the convolution. No sum depends on the order in which
programs run, so two runs on one device give the same bits.
"""

import functools
import math

import torch
from einops import rearrange
from torch import Tensor

from sa2depth.ops.gated_conv.common import GROUP, register, run_channels_last
from sa2depth.ops.registry import Backend
from sa2depth.ops.runtime import triton as machine
from sa2depth.ops.runtime.gpu import multiprocessors, ready

# A program is one warp with a thread for each group of each pixel. Rows are loaded STAGES - 1 ahead.
_TILE = {"PIXELS": 4, "GROUPS": 8, "STAGES": 4}

_PROGRAMS_HELD = 8  # on a multiprocessor: the weights of so many fit into its registers
# Fixed costs of a program and of a strip, in rows.
_ROWS_OF_PROGRAM, _ROWS_OF_STRIP = 8, 4
_MOST_SEGMENTS = 8

_INDEX_LIMIT = 2**31


def why_not(x: Tensor, kernel: Tensor, bias: Tensor) -> str:
    """The reason why the kernels cannot take these arguments; empty if they can."""
    batch, channels, _, width = x.shape
    # 32-bit indices count programs, strips and weights; tensors may be larger.
    programs = (batch * width // _TILE["PIXELS"] + 1) * (channels // (GROUP * _TILE["GROUPS"]) + 1)
    if max(programs, batch * width * _MOST_SEGMENTS, channels * 9 * GROUP) >= _INDEX_LIMIT:
        return f"the input of shape {tuple(x.shape)} is too large"
    return machine.why_not("gated_conv", input=x, kernel=kernel, bias=bias)


def run(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` for arguments that ``why_not`` accepts; the result is channels last in memory."""
    return run_channels_last(gated_conv, x, kernel, bias)


@torch.library.custom_op("sa2depth::gated_conv_triton", mutates_args=())
def gated_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` with ``x`` and the result as ``(B, H, W, C)``; kernel and bias are float32."""
    x = ready(x)
    output = x.new_empty(x.shape)
    if output.numel():
        _convolve("FORWARD", x, _by_input_channel(kernel), ready(bias), None, output, None)
    return output


@torch.library.custom_op("sa2depth::gated_conv_triton_backward", mutates_args=())
def gated_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, kernel and bias; ``grad (B, H, W, C)`` is that of the output."""
    grad, x, bias = (ready(t) for t in (grad, x, bias))
    if not x.numel():
        return x.new_zeros(x.shape), kernel.new_zeros(kernel.shape), bias.new_zeros(bias.shape)
    grad_x, grad_c = x.new_empty(x.shape), x.new_empty(x.shape)
    _convolve("BACKWARD_GATE", x, _by_input_channel(kernel), bias, grad, grad_c, grad_x)
    _convolve("BACKWARD_INPUT", grad_c, _by_output_channel(kernel), None, None, None, grad_x)
    return grad_x, *_weight_gradients(x, grad_c)


def _convolve(kind: str, x: Tensor, *others: Tensor | None) -> None:
    """Launch the kernel ``convolve``; ``others`` are its tensors after ``x``, None if this kind does not need one."""
    from sa2depth.ops.gated_conv import triton_kernels as kernels

    batch, height, width, channels = x.shape
    programs = _tiles(batch * width) * _blocks(channels)
    rows = _rows_of_segment(programs, height, _programs_held(x.device))
    sizes = (height, width, batch * width, channels // GROUP, rows)
    kind_number = getattr(kernels, kind).value
    with machine.launching_on(x.device):
        kernels.convolve[programs, math.ceil(height / rows)](
            x, *others, *sizes, KIND=kind_number, num_warps=1, **_TILE
        )


def _weight_gradients(x: Tensor, grad_c: Tensor) -> tuple[Tensor, Tensor]:
    from sa2depth.ops.gated_conv import triton_kernels as kernels

    batch, height, width, channels = x.shape
    tiles, blocks = _tiles(batch * width), _blocks(channels)
    most_parts = math.ceil(_programs_held(x.device) / blocks)
    rows = _rows_of_segment(tiles, height, most_parts)
    strips = tiles * math.ceil(height / rows)
    parts = math.ceil(strips / math.ceil(strips / most_parts))  # the fewest that are as fast
    kernel_parts = x.new_empty((parts, 9 * GROUP, channels), dtype=torch.float32)
    bias_parts = x.new_empty((parts, channels), dtype=torch.float32)
    sizes = (height, width, batch * width, channels // GROUP, rows, strips)
    with machine.launching_on(x.device):
        kernels.weight_gradients[blocks, parts](
            x, grad_c, kernel_parts, bias_parts, *sizes, num_warps=1, **_TILE
        )
    grad_kernel = rearrange(kernel_parts.sum(dim=0), "(o y x) (g i) -> (g o) i y x", o=GROUP, i=GROUP, y=3)
    return grad_kernel.contiguous(), bias_parts.sum(dim=0)


def _by_input_channel(kernel: Tensor) -> Tensor:
    """Weights in the kernels' order: for each input channel of a group and each tap, all output channels."""
    return rearrange(kernel, "c i y x -> (i y x) c").contiguous()


def _by_output_channel(kernel: Tensor) -> Tensor:
    """The same for the backward pass: for each output channel of a group and each tap, all input channels."""
    return rearrange(kernel, "(g o) i y x -> (o y x) (g i)", o=GROUP).contiguous()


@functools.lru_cache(maxsize=256)
def _rows_of_segment(strips: int, height: int, held: int) -> int:
    """Rows of a segment of a column, chosen so that ``held`` programs finish all of them soonest.

    Args:
        strips: number of strips if columns are not cut.
        height: height of the map.
        held: number of programs that run at the same time.
    """

    def rows_in_turn(rows: int) -> int:
        turns = math.ceil(strips * math.ceil(height / rows) / held)
        return turns * (rows + _ROWS_OF_STRIP) + _ROWS_OF_PROGRAM

    most = min(height, _MOST_SEGMENTS)
    return min((math.ceil(height / segments) for segments in range(1, most + 1)), key=rows_in_turn)


def _tiles(columns: int) -> int:
    return math.ceil(columns / _TILE["PIXELS"])


def _blocks(channels: int) -> int:
    return math.ceil(channels / GROUP / _TILE["GROUPS"])


def _programs_held(device: torch.device) -> int:
    return _PROGRAMS_HELD * multiprocessors(device)


register(gated_conv, gated_conv_backward, "triton")
BACKEND = Backend("triton", run, why_not, machine.sources(__file__))
