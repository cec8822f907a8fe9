"""DCNv3: deformable aggregation with grouped, softmax-normalised kernel points.

Source: InternImage (Wang et al., CVPR 2023), the geometry of its CUDA kernel.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sa2depth.errors import ShapeError
from sa2depth.ops.backends import choose
from sa2depth.ops.cpu.dcnv3 import dcnv3_cpu
from sa2depth.ops.cpu.dcnv3 import why_not as why_not_cpu
from sa2depth.ops.dcnv3_cuda import dcnv3_cuda
from sa2depth.ops.dcnv3_cuda import why_not as why_not_cuda
from sa2depth.ops.precision import at_least_float32, no_autocast
from sa2depth.ops.triton.dcnv3 import dcnv3_triton
from sa2depth.ops.triton.dcnv3 import why_not as why_not_triton


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> Tensor:
    """Sum over kernel points of mask times the input sampled bilinearly at the displaced point.

    ``P`` is the number of kernel points: ``kernel_size ** 2``, one less with ``remove_center``. Points run
    along the width first: point ``i * kernel_size + j`` is column ``i``, row ``j``. Outside the input lie
    zeros. Coordinates and the softmax are computed in float32 (float64 for float64 input) whatever the autocast
    state.

    At whole coordinates the slope jumps: the fast back ends take the one to the right and below, the torch path the one
    that its rounding falls on. That includes -1, just outside the input, where the released CUDA kernel has slope zero:
    offsets of a new network are zero, which puts border points there.

    The fast back ends join ``offset`` and ``mask`` first; ``dcnv3_fused`` takes them joined.

    Args:
        input: ``(B, H, W, C)``, channels last; group ``g`` owns channels ``g * C/G`` to ``(g + 1) * C/G``.
        offset: ``(B, Ho, Wo, G * P * 2)`` in pixels as pairs ``(dx, dy)``, to be multiplied by
            ``offset_scale``.
        mask: ``(B, Ho, Wo, G * P)``, weights of the points, already normalised by the caller; logits with ``softmax``.
        groups: ``G``; divides ``C``.
        kernel_size: side of the square kernel.
        stride: step between outputs, in input pixels.
        padding: zeros around the input, in pixels.
        dilation: distance of neighbouring kernel points.
        offset_scale: factor of the whole displacement, kernel grid included (released code).
        remove_center: leave out the middle point of an odd kernel.
        softmax: normalise ``mask`` over the ``P`` points of each group.

    Returns:
        ``(B, Ho, Wo, C)`` in the dtype of ``input``.

    Raises:
        ShapeError: if channels, offset or mask do not belong together.
    """
    rows, columns, points = _output_shape(
        input, groups, kernel_size, stride, padding, dilation, remove_center
    )
    for name, tensor, last in (("offset", offset, groups * points * 2), ("mask", mask, groups * points)):
        expected = (input.shape[0], rows, columns, last)
        if tuple(tensor.shape) != expected:
            raise ShapeError(f"dcnv3 wants {name} of shape {expected}, got {tuple(tensor.shape)}")
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, softmax)
    implementation = choose(
        "dcnv3", _IMPLEMENTATIONS, _why_not(input, (offset, mask), groups, kernel_size), input.device
    )
    with no_autocast(input):
        if implementation is dcnv3_torch:
            return dcnv3_torch(input, offset, mask, *options)
        return implementation(input, torch.cat((offset, mask), dim=-1), *options)


def dcnv3_fused(
    input: Tensor,
    offset_and_logits: Tensor,
    *,
    groups: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """``dcnv3`` with ``softmax`` on the result of one linear layer, which is neither split nor copied.

    Args:
        input: ``(B, H, W, C)``, channels last.
        offset_and_logits: ``(B, Ho, Wo, R)``, ``R`` at least ``3 * G * P``: the ``G * P * 2`` offsets, the ``G * P``
            logits of the masks, and any others, which are not read and have a zero gradient (matrix products are faster
            for multiples of 8). Any floating dtype.
        groups: ``G``; divides ``C``.
        kernel_size: side of the square kernel.
        stride: step between outputs, in input pixels.
        padding: zeros around the input, in pixels.
        dilation: distance of neighbouring kernel points.
        offset_scale: factor of the whole displacement, kernel grid included (released code).
        remove_center: leave out the middle point of an odd kernel.

    Returns:
        ``(B, Ho, Wo, C)`` in the dtype of ``input``.

    Raises:
        ShapeError: if channels, offsets and logits do not belong together.
    """
    rows, columns, points = _output_shape(
        input, groups, kernel_size, stride, padding, dilation, remove_center
    )
    masks, found = groups * points, tuple(offset_and_logits.shape)
    expected = (input.shape[0], rows, columns, 3 * masks)
    if found[:-1] != expected[:-1] or found[-1] < expected[-1]:
        raise ShapeError(f"dcnv3 wants offsets and logits of shape {expected} or wider, got {found}")
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, True)
    implementation = choose(
        "dcnv3", _IMPLEMENTATIONS, _why_not(input, (offset_and_logits,), groups, kernel_size), input.device
    )
    with no_autocast(input):
        if implementation is dcnv3_torch:
            offset, logits = (
                offset_and_logits[..., : 2 * masks],
                offset_and_logits[..., 2 * masks : 3 * masks],
            )
            return dcnv3_torch(input, offset, logits, *options)
        return implementation(input, offset_and_logits, *options)


def dcnv3_torch(
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
    softmax: bool = False,
) -> Tensor:
    """``dcnv3`` in plain torch: any device, the oracle of the kernels."""
    points = _kernel_points(kernel_size, dilation, remove_center)
    x, y = _sampling_points(
        at_least_float32(offset), points, groups, kernel_size, stride, padding, dilation, offset_scale
    )
    # grid_sample's convention with align_corners=False: -1 and 1 are the outer edges of the border pixels
    grid = torch.stack(((2 * x + 1) / input.shape[2] - 1, (2 * y + 1) / input.shape[1] - 1), dim=-1)
    weight = rearrange(at_least_float32(mask), "b h w (g p) -> p (b g) 1 h w", g=groups)
    if softmax:
        weight = weight.softmax(dim=0)
    source = rearrange(at_least_float32(input), "b h w (g c) -> (b g) c h w", g=groups).contiguous()
    # One point at a time: the samples of all points together would be P times the input.
    total = weight[0] * _sample(source, grid[0])
    for point in range(1, len(points)):
        total = torch.addcmul(total, weight[point], _sample(source, grid[point]))
    return rearrange(total, "(b g) c h w -> b h w (g c)", g=groups).to(input.dtype)


# All but torch take offset and mask joined.
_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "cuda": dcnv3_cuda,
    "triton": dcnv3_triton,
    "cpu": dcnv3_cpu,
    "torch": dcnv3_torch,
}


def _why_not(
    input: Tensor, points: tuple[Tensor, ...], groups: int, kernel_size: int
) -> dict[str, Callable[[], str]]:
    return {
        "cuda": lambda: why_not_cuda(input, points, groups, kernel_size),
        "triton": lambda: why_not_triton(input, points, groups, kernel_size),
        "cpu": lambda: why_not_cpu(input, points, kernel_size),
    }


def _sample(source: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(source, grid.to(source.dtype), "bilinear", "zeros", align_corners=False)


def _kernel_points(kernel_size: int, dilation: int, remove_center: bool) -> list[tuple[int, int]]:
    """Undisplaced points ``(x, y)`` in pixels from the kernel's first one, width first."""
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
    # The kernel's grid is scaled about its middle together with the offsets.
    start = reach - padding - reach * offset_scale
    displaced = rearrange(offset, "b h w (g p d) -> d p (b g) h w", g=groups, d=2)
    displaced = (displaced + rearrange(kernel, "p d -> d p 1 1 1")) * offset_scale + start
    x = displaced[0] + stride * torch.arange(columns, device=offset.device, dtype=offset.dtype)
    y = displaced[1] + stride * torch.arange(rows, device=offset.device, dtype=offset.dtype)[:, None]
    return x, y


def _output_shape(
    input: Tensor,
    groups: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    remove_center: bool,
) -> tuple[int, int, int]:
    """Rows, columns and kernel points of the output."""
    if input.dim() != 4 or input.shape[-1] % groups:
        raise ShapeError(
            f"dcnv3 wants input (B, H, W, C) with C divisible by {groups} groups, got {tuple(input.shape)}"
        )
    if remove_center and kernel_size % 2 == 0:
        raise ShapeError(f"dcnv3: remove_center needs an odd kernel, {kernel_size} has no middle point")
    extent = dilation * (kernel_size - 1) + 1
    rows, columns = ((side + 2 * padding - extent) // stride + 1 for side in input.shape[1:3])
    return rows, columns, kernel_size * kernel_size - int(remove_center)
