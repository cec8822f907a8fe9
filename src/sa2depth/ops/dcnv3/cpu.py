"""DCNv3 on the CPU: a ``torch.library`` operator around ``csrc/cpu/dcnv3.h``."""

from typing import Any

import torch
from torch import Tensor

from sa2depth.ops.dcnv3.common import joined, like_output, register
from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import cpp
from sa2depth.ops.runtime.cpp.library import Dcnv3Shape, call

_MOST_POINTS = 64


def why_not(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *others: float) -> str:
    """The reason why the library cannot take these arguments; ``points`` are offset and mask, or both joined."""
    if kernel_size * kernel_size > _MOST_POINTS:
        return f"the kernel has {kernel_size} x {kernel_size} points, more than {_MOST_POINTS}"
    return cpp.why_not("dcnv3", input, *points)


def run(input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int, *options: Any) -> Tensor:
    """``ops.dcnv3`` for arguments that ``why_not`` accepts."""
    return dcnv3(input.float(), joined(points).float(), groups, kernel_size, *options).to(input.dtype)


@torch.library.custom_op("sa2depth::dcnv3_cpu", mutates_args=(), device_types="cpu")
def dcnv3(
    input: Tensor,
    points: Tensor,
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> Tensor:
    """``ops.dcnv3`` for float32 tensors.

    ``points`` is ``(B, Ho, Wo, R)``: the offsets of all groups, their masks (or logits, with ``softmax``), and padding,
    whose gradient is zero.
    """
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    output = like_output(input, points)
    call("dcnv3_forward", _shape(input, points, *options), input.contiguous(), points.contiguous(), output)
    return output


@torch.library.custom_op("sa2depth::dcnv3_cpu_backward", mutates_args=(), device_types="cpu")
def dcnv3_backward(
    grad: Tensor,
    input: Tensor,
    points: Tensor,
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of input and points; ``grad`` is that of the output."""
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    # zeros, because samples are added to it
    grad_input = input.new_zeros(input.shape)
    grad_points = points.new_empty(points.shape)
    tensors = (input.contiguous(), points.contiguous(), grad.contiguous(), grad_input, grad_points)
    call("dcnv3_backward", _shape(input, points, *options), *tensors)
    return grad_input, grad_points


def _shape(input: Tensor, points: Tensor, groups: int, *options: Any) -> Dcnv3Shape:
    kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax = options
    batch, height, width, channels = input.shape
    sizes = (batch, height, width, *points.shape[1:3], groups, channels // groups)
    flags = (int(remove_center), int(softmax))
    return Dcnv3Shape(*sizes, kernel_size, stride, padding, dilation, *flags, points.shape[3], offset_scale)


register(dcnv3, dcnv3_backward, "cpu")
BACKEND = Backend("cpu", run, why_not, kernel_sources("cpu/*"))
