"""Checks of the CUDA kernels' inputs, and conversion of their arguments."""

import ctypes

import torch
from torch import Tensor

from sa2depth.ops.runtime.notices import say_once
from sa2depth.ops.runtime.nvrtc.launcher import why_unavailable

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the dtypes in the kernels' sources."""

INDEX_LIMIT = 2**31
"""Numbers that kernels count in 32 bits must be smaller."""

LARGEST_GRID = 65535
"""Largest number of blocks along y and z."""


def why_not(*named: tuple[str, Tensor | None]) -> str:
    """The reason why kernels cannot take these tensors, given with their names for a message; empty if they can."""
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
    """The reason why a CUDA device cannot run kernels, with one warning for each operator; empty if it can."""
    reason = why_unavailable(torch.device("cuda", index))
    if reason:
        say_once(operator, reason)
    return reason


def int32(*numbers: int) -> tuple[ctypes.c_int32, ...]:
    """Numbers as 32-bit kernel arguments."""
    return tuple(ctypes.c_int32(number) for number in numbers)
