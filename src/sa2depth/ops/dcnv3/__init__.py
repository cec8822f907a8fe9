"""DCNv3: deformable aggregation with grouped, softmax-normalised kernel points.

Source: InternImage (Wang et al., CVPR 2023), with the geometry of its CUDA kernel.
"""

from torch import Tensor, device, dtype

from sa2depth.errors import ShapeError
from sa2depth.ops.dcnv3 import cpu, cuda, torch, triton
from sa2depth.ops.dispatch import choose
from sa2depth.ops.precision import no_autocast
from sa2depth.ops.registry import Example, Operator, as_leaves, drawing, register


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

    ``P`` is the number of kernel points: ``kernel_size ** 2``, one less with ``remove_center``. Points run down the
    columns: point ``i * kernel_size + j`` is column ``i``, row ``j``. The input is padded with zeros. Coordinates and
    the softmax are computed in float32 (float64 for float64 input), even under autocast.

    At whole coordinates the slope jumps: the fast back ends use the slope to the right and below, the torch path the
    one on whose side it rounds. This includes -1, just outside the input, where the released CUDA kernel has slope
    zero; it matters because a new network's offsets are zero, which puts border points there.

    The fast back ends concatenate ``offset`` and ``mask`` first; ``dcnv3_fused`` takes them concatenated.

    Args:
        input: ``(B, H, W, C)``, channels last; group ``g`` owns channels ``g * C/G`` to ``(g + 1) * C/G``.
        offset: ``(B, Ho, Wo, G * P * 2)`` in pixels as pairs ``(dx, dy)``, before ``offset_scale``.
        mask: ``(B, Ho, Wo, G * P)``, weights of the points, normalised by the caller; logits with ``softmax``.
        groups: ``G``; divides ``C``.
        kernel_size: side of the square kernel.
        stride: step between outputs, in input pixels.
        padding: zeros around the input, in pixels.
        dilation: distance of neighbouring kernel points.
        offset_scale: factor of the whole displacement, including the kernel grid as in the released code.
        remove_center: leave out the middle point of an odd kernel.
        softmax: normalise ``mask`` over the ``P`` points of each group.

    Returns:
        ``(B, Ho, Wo, C)`` in the dtype of ``input``.

    Raises:
        ShapeError: if the shapes of input, offset and mask do not match.
    """
    rows, columns, points = _output_shape(
        input, groups, kernel_size, stride, padding, dilation, remove_center
    )
    for name, tensor, last in (("offset", offset, groups * points * 2), ("mask", mask, groups * points)):
        expected = (input.shape[0], rows, columns, last)
        if tuple(tensor.shape) != expected:
            raise ShapeError(f"dcnv3 takes {name} of shape {expected}, not {tuple(tensor.shape)}")
    options = (groups, kernel_size, stride, padding, dilation, float(offset_scale), remove_center, softmax)
    run = choose(OPERATOR, input, (offset, mask), *options)
    with no_autocast(input):
        return run(input, (offset, mask), *options)


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
    """``dcnv3`` with ``softmax`` for offsets and logits from one linear layer, which are neither split nor copied.

    Args:
        input: ``(B, H, W, C)``, channels last.
        offset_and_logits: ``(B, Ho, Wo, R)``, ``R`` at least ``3 * G * P``: the ``G * P * 2`` offsets, the ``G * P``
            mask logits, then optional padding, which is not read and has a zero gradient (matrix products are faster
            for multiples of 8). Any floating dtype.
        groups: ``G``; divides ``C``.
        kernel_size: side of the square kernel.
        stride: step between outputs, in input pixels.
        padding: zeros around the input, in pixels.
        dilation: distance of neighbouring kernel points.
        offset_scale: factor of the whole displacement, including the kernel grid as in the released code.
        remove_center: leave out the middle point of an odd kernel.

    Returns:
        ``(B, Ho, Wo, C)`` in the dtype of ``input``.

    Raises:
        ShapeError: if the shapes of input, offsets and logits do not match.
    """
    rows, columns, points = _output_shape(
        input, groups, kernel_size, stride, padding, dilation, remove_center
    )
    masks, found = groups * points, tuple(offset_and_logits.shape)
    expected = (input.shape[0], rows, columns, 3 * masks)
    if found[:-1] != expected[:-1] or found[-1] < expected[-1]:
        raise ShapeError(f"dcnv3 takes offsets and logits of shape {expected} or wider, not {found}")
    options = (groups, kernel_size, stride, padding, dilation, float(offset_scale), remove_center, True)
    run = choose(OPERATOR, input, (offset_and_logits,), *options)
    with no_autocast(input):
        return run(input, (offset_and_logits,), *options)


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
            f"dcnv3 takes input (B, H, W, C) with C divisible by {groups} groups, not {tuple(input.shape)}"
        )
    if remove_center and kernel_size % 2 == 0:
        raise ShapeError(
            f"dcnv3: remove_center needs an odd kernel_size, and {kernel_size} has no middle point"
        )
    extent = dilation * (kernel_size - 1) + 1
    rows, columns = ((side + 2 * padding - extent) // stride + 1 for side in input.shape[1:3])
    return rows, columns, kernel_size * kernel_size - int(remove_center)


def _example(device: device, dtype: dtype) -> Example:
    draw = drawing(1, device, dtype)
    mask = draw(2, 13, 17, 3, 9).softmax(-1).flatten(-2)
    inputs = as_leaves([draw(2, 13, 17, 48), draw(2, 13, 17, 54), mask])
    return lambda: dcnv3(*inputs, groups=3), inputs


_BACKENDS = (cuda.BACKEND, triton.BACKEND, cpu.BACKEND, torch.BACKEND)
OPERATOR = register(Operator("dcnv3", _BACKENDS, _example))
