"""Checks of the CPU library's inputs."""

import torch
from torch import Tensor

from sa2depth.ops.runtime.cpp.library import why_unavailable
from sa2depth.ops.runtime.notices import say_once

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(operator: str, *tensors: Tensor) -> str:
    """The reason why the library cannot take these tensors; empty if it can. Only the oracle, torch, takes float64."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the input is on {tensor.device}"
        if tensor.dtype not in _DTYPES:
            return f"the input is {tensor.dtype}"
    return _why_unavailable(operator)


@torch.compiler.assume_constant_result
def _why_unavailable(operator: str) -> str:
    reason = why_unavailable()
    if reason:
        say_once(operator, reason)
    return reason
