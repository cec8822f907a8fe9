"""DCNv3 in plain torch, for any device; the oracle of the kernels.

Source: InternImage (Wang et al., CVPR 2023), with the geometry of its CUDA kernel.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sa2depth.ops.precision import at_least_float32
from sa2depth.ops.registry import Backend


def run(
    input: Tensor,
    points: tuple[Tensor, ...],
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> Tensor:
    """``dcnv3`` on any device; ``points`` are offset and mask, or one tensor that begins with both."""
    kernel = _kernel_points(kernel_size, dilation, remove_center)
    masks = groups * len(kernel)
    offset, mask = (
        points if len(points) == 2 else (points[0][..., : 2 * masks], points[0][..., 2 * masks : 3 * masks])
    )
    x, y = _sampling_points(
        at_least_float32(offset), kernel, groups, kernel_size, stride, padding, dilation, offset_scale
    )
    # with align_corners=False, -1 and 1 are the outer edges of the border pixels
    grid = torch.stack(((2 * x + 1) / input.shape[2] - 1, (2 * y + 1) / input.shape[1] - 1), dim=-1)
    weight = rearrange(at_least_float32(mask), "b h w (g p) -> p (b g) 1 h w", g=groups)
    if softmax:
        weight = weight.softmax(dim=0)
    source = rearrange(at_least_float32(input), "b h w (g c) -> (b g) c h w", g=groups).contiguous()
    # One point at a time, because the samples of all points would take P times the memory of the input.
    total = weight[0] * _sample(source, grid[0])
    for point in range(1, len(kernel)):
        total = torch.addcmul(total, weight[point], _sample(source, grid[point]))
    return rearrange(total, "(b g) c h w -> b h w (g c)", g=groups).to(input.dtype)


def _sample(source: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(source, grid.to(source.dtype), "bilinear", "zeros", align_corners=False)


def _kernel_points(kernel_size: int, dilation: int, remove_center: bool) -> list[tuple[int, int]]:
    """Undisplaced points ``(x, y)`` in pixels from the kernel's first one, column by column."""
    points = [(i * dilation, j * dilation) for i in range(kernel_size) for j in range(kernel_size)]
    if remove_center:
        del points[len(points) // 2]
    return points


def _sampling_points(
    offset: Tensor,
    points: list[tuple[int, int]],
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    offset_scale: float,
) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x and y, each ``(P, B*G, Ho, Wo)``."""
    reach = (dilation * (kernel_size - 1)) // 2
    kernel = offset.new_tensor(points)
    rows, columns = offset.shape[1:3]
    # The kernel grid is scaled about its middle together with the offsets.
    start = reach - padding - reach * offset_scale
    displaced = rearrange(offset, "b h w (g p d) -> d p (b g) h w", g=groups, d=2)
    displaced = (displaced + rearrange(kernel, "p d -> d p 1 1 1")) * offset_scale + start
    x = displaced[0] + stride * torch.arange(columns, device=offset.device, dtype=offset.dtype)
    y = displaced[1] + stride * torch.arange(rows, device=offset.device, dtype=offset.dtype)[:, None]
    return x, y


BACKEND = Backend("torch", run)
