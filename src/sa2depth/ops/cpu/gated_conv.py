"""The gate of the feed-forward layer on the CPU, for inference: an operator around ``csrc/cpu/gated_conv.h``."""

import torch
from torch import Tensor

from sa2depth.ops.cpu.inputs import why_not as why_not_these
from sa2depth.ops.cpu.library import GatedConvShape, call


def why_not(x: Tensor, kernel: Tensor, bias: Tensor) -> str:
    """Why the library cannot take these inputs; empty if it can."""
    if any(t.dtype != torch.float32 for t in (x, kernel, bias)):
        return f"the input is {x.dtype}"
    return why_not_these("gated_conv", x, kernel, bias)


@torch.library.custom_op("sa2depth::gated_conv_cpu", mutates_args=(), device_types="cpu")
def gated_conv_cpu(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` for inputs that ``why_not`` has nothing against."""
    output = x.new_empty(x.shape)
    call(
        "gated_conv", GatedConvShape(*x.shape), x.contiguous(), kernel.contiguous(), bias.contiguous(), output
    )
    return output


@gated_conv_cpu.register_fake
def _(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)
