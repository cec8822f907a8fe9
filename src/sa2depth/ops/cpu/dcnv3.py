"""DCNv3 on the CPU: a ``torch.library`` operator around ``csrc/cpu/dcnv3.h``."""

import torch
from torch import Tensor

from sa2depth.ops.autograd import register_dcnv3
from sa2depth.ops.cpu.inputs import why_not as why_not_these
from sa2depth.ops.cpu.library import Dcnv3Shape, call

_MOST_POINTS = 64


def why_not(input: Tensor, offset: Tensor, mask: Tensor, kernel_size: int) -> str:
    """Why the library cannot take these inputs; empty if it can."""
    if kernel_size * kernel_size > _MOST_POINTS:
        return f"the kernel has {kernel_size} x {kernel_size} points, more than {_MOST_POINTS}"
    return why_not_these("dcnv3", input, offset, mask)


def dcnv3_cpu(
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
    tensors = (input.float(), offset.float(), mask.float())
    options = (groups, kernel_size, stride, padding, dilation, float(offset_scale), remove_center)
    return dcnv3(*tensors, *options).to(input.dtype)


@torch.library.custom_op("sa2depth::dcnv3_cpu", mutates_args=(), device_types="cpu")
def dcnv3(
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
    """As ``ops.dcnv3``; float32 tensors."""
    shape = _shape(input, mask, groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    output = _like_output(input, mask)
    call("dcnv3_forward", shape, *_contiguous(input, offset, mask), output)
    return output


@torch.library.custom_op("sa2depth::dcnv3_cpu_backward", mutates_args=(), device_types="cpu")
def dcnv3_backward(
    grad: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, offset and mask; ``grad`` is that of the output."""
    shape = _shape(input, mask, groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    # sums of scattered samples
    grad_input = input.new_zeros(input.shape)
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    call(
        "dcnv3_backward",
        shape,
        *_contiguous(input, offset, mask, grad),
        grad_input,
        grad_offset,
        grad_mask,
    )
    return grad_input, grad_offset, grad_mask


def _shape(
    input: Tensor,
    mask: Tensor,
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
) -> Dcnv3Shape:
    batch, height, width, channels = input.shape
    sizes = (batch, height, width, *mask.shape[1:3], groups, channels // groups)
    return Dcnv3Shape(*sizes, kernel_size, stride, padding, dilation, int(remove_center), offset_scale)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _like_output(input: Tensor, mask: Tensor) -> Tensor:
    return input.new_empty((*mask.shape[:3], input.shape[3]))


register_dcnv3(dcnv3, dcnv3_backward, "cpu")
