"""Memory layout of maps where channels-last layers meet depthwise convolutions."""

from einops import rearrange
from torch import Tensor


def for_depthwise(x: Tensor) -> Tensor:
    """``(B, H, W, C)`` to ``(B, C, H, W)``, in the memory layout in which depthwise convolutions are fast.

    Contiguous on CUDA, where channels-last ones are several times slower; on the CPU as it is, channels last, which
    oneDNN takes without a copy and does in a third of the time.
    """
    channels_first = rearrange(x, "b h w c -> b c h w")
    return channels_first if x.device.type == "cpu" else channels_first.contiguous()
