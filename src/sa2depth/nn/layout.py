"""Memory layout of maps ``(B, C, H, W)``: channels last on CUDA, channels first on the CPU.

On CUDA every layer works on tokens, with the channels of a pixel adjacent in memory: 1x1 convolutions are matrix
products, norms read rows, and the kernels in ``csrc/`` load 16 bytes of channels at a time. On the CPU convolutions are
faster on contiguous maps, except depthwise ones: oneDNN runs those in a third of the time on channels-last maps.
"""

import torch
from einops import rearrange
from torch import Tensor


def in_layout(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` in the layout of its device; copied only if it has another one."""
    if x.device.type == "cuda":
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def from_tokens(x: Tensor) -> Tensor:
    """``(B, H, W, C)`` to ``(B, C, H, W)`` in the layout of its device."""
    return in_layout(rearrange(x, "b h w c -> b c h w"))


def has_tokens(x: Tensor) -> bool:
    """True if each pixel's channels are adjacent in memory and all pixels of ``(B, C, H, W)`` evenly spaced."""
    *_, height, width = x.shape
    row, pixel = x.stride(2), x.stride(3)
    return (
        x.stride(1) == 1
        and (height == 1 or width == 1 or row == width * pixel)
        and (x.shape[0] == 1 or x.stride(0) == height * width * pixel)
    )
