"""Which inputs CUDA kernels take, and how numbers are handed to them."""

import ctypes

import torch
from torch import Tensor

from sa2depth.ops.runtime.notices import say_once
from sa2depth.ops.runtime.nvrtc.launcher import why_unavailable

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the types, as the kernels' sources have them."""

INDEX_LIMIT = 2**31
"""What is counted in 32 bits stays below."""

LARGEST_GRID = 65535
"""Blocks along y and z."""


def why_not(*named: tuple[str, Tensor | None]) -> str:
    """Why kernels cannot take these tensors, each with what a message calls it; empty if they can."""
    for name, tensor in named:
        if tensor is None:
            continue
        if not tensor.is_cuda:
            return f"the {name} is on {tensor.device}"
        if tensor.dtype not in TYPES:
            return f"the {name} is {tensor.dtype}"
    return ""


@torch.compiler.assume_constant_result
def why_not_on(operator: str, index: int) -> str:
    """Why a CUDA device cannot have kernels, said once for an operator; empty if it can."""
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once(operator, reason)
    return reason


def int32(*numbers: int) -> tuple[ctypes.c_int32, ...]:
    """Numbers as kernels take them."""
    return tuple(ctypes.c_int32(number) for number in numbers)
