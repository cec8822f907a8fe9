"""The gate of the feed-forward layer on the CPU, for inference: an operator around ``csrc/cpu/gated_conv.h``."""

import torch
from torch import Tensor

from sa2depth.ops.registry import Backend, kernel_sources
from sa2depth.ops.runtime import cpp
from sa2depth.ops.runtime.cpp.library import GatedConvShape, call


def why_not(x: Tensor, kernel: Tensor, bias: Tensor) -> str:
    """The reason why the library cannot take these arguments; empty if it can."""
    if any(t.dtype != torch.float32 for t in (x, kernel, bias)):
        return f"the input is {x.dtype}"
    return cpp.why_not("gated_conv", x, kernel, bias)


@torch.library.custom_op("sa2depth::gated_conv_cpu", mutates_args=(), device_types="cpu")
def run(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``ops.gated_conv`` for arguments that ``why_not`` accepts."""
    output = x.new_empty(x.shape)
    call(
        "gated_conv", GatedConvShape(*x.shape), x.contiguous(), kernel.contiguous(), bias.contiguous(), output
    )
    return output


@run.register_fake
def _(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


BACKEND = Backend("cpu", run, why_not, kernel_sources("cpu/*"), inference_only=True)
