import itertools
import math

import pytest
import torch
from einops import rearrange
from torchvision.ops import deform_conv2d

from sa2depth.errors import ShapeError
from sa2depth.ops import dcnv3
from sa2depth.ops.dcnv3 import dcnv3_fused

CASES = {
    "plain": {},
    "scaled": {"offset_scale": 2.0},
    "strided": {"stride": 2, "offset_scale": 1.5},
    "dilated": {"dilation": 2, "padding": 2, "offset_scale": 0.5},
    "large": {"kernel_size": 5, "padding": 2},
    "no_center": {"remove_center": True},
    "even": {"kernel_size": 2, "padding": 0},
}


def make(options, batch=2, size=(6, 7), groups=2, group_channels=3, seed=0):
    kernel, stride = options.get("kernel_size", 3), options.get("stride", 1)
    padding, dilation = options.get("padding", 1), options.get("dilation", 1)
    points = kernel * kernel - options.get("remove_center", False)
    rows, columns = ((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *size, groups * group_channels, generator=random, dtype=torch.float64)
    offset = torch.randn(batch, rows, columns, groups * points * 2, generator=random, dtype=torch.float64)
    mask = torch.rand(batch, rows, columns, groups * points, generator=random, dtype=torch.float64)
    return x, offset, mask, {"groups": groups, **options}


def naive(x, offset, mask, groups, kernel_size=3, stride=1, padding=1, dilation=1, offset_scale=1.0,
          remove_center=False):  # fmt: skip
    batch, height, width, channels = x.shape
    rows, columns = offset.shape[1:3]
    reach = (dilation * (kernel_size - 1)) // 2
    points = list(itertools.product(range(kernel_size), repeat=2))  # (column, row)
    if remove_center:
        points.pop(len(points) // 2)
    offset = rearrange(offset, "b h w (g p d) -> b h w g p d", g=groups, d=2)
    mask = rearrange(mask, "b h w (g p) -> b h w g p", g=groups)
    out = torch.zeros(batch, rows, columns, channels, dtype=x.dtype)
    size = channels // groups
    for b, r, c, g in itertools.product(range(batch), range(rows), range(columns), range(groups)):
        own = slice(g * size, (g + 1) * size)
        for p, (i, j) in enumerate(points):
            dx, dy = offset[b, r, c, g, p].tolist()
            px = reach - padding + c * stride - reach * offset_scale + (i * dilation + dx) * offset_scale
            py = reach - padding + r * stride - reach * offset_scale + (j * dilation + dy) * offset_scale
            for ix, iy in itertools.product(
                (math.floor(px), math.floor(px) + 1), (math.floor(py), math.floor(py) + 1)
            ):
                if 0 <= ix < width and 0 <= iy < height:
                    weight = (1 - abs(px - ix)) * (1 - abs(py - iy)) * mask[b, r, c, g, p]
                    out[b, r, c, own] += weight * x[b, iy, ix, own]
    return out


@pytest.mark.parametrize("case", CASES)
def test_equals_loops(case):
    x, offset, mask, options = make(CASES[case])
    torch.testing.assert_close(dcnv3(x, offset, mask, **options), naive(x, offset, mask, **options))


@pytest.mark.parametrize("offset_scale", [1.0, 2.0])
def test_equals_torchvision(offset_scale):
    x, offset, mask, options = make({"offset_scale": offset_scale}, groups=4)
    channels = x.shape[-1]
    # torchvision: rows first, (dy, dx), and the kernel's grid not scaled
    d = rearrange(offset, "b h w (g i j d) -> b g j i d h w", g=4, i=3, j=3) * offset_scale
    d = d.flip(4)
    grid = torch.stack(torch.meshgrid(torch.arange(3.0) - 1, torch.arange(3.0) - 1, indexing="ij"), dim=-1)
    d = d + ((offset_scale - 1) * grid)[None, None, :, :, :, None, None]
    m = rearrange(mask, "b h w (g i j) -> b (g j i) h w", g=4, i=3)
    expected = deform_conv2d(
        rearrange(x, "b h w c -> b c h w").contiguous(),
        rearrange(d, "b g j i d h w -> b (g j i d) h w").contiguous(),
        torch.ones(channels, 1, 3, 3, dtype=x.dtype),
        padding=1,
        mask=m.contiguous(),
    )
    torch.testing.assert_close(dcnv3(x, offset, mask, **options), rearrange(expected, "b c h w -> b h w c"))


@pytest.mark.parametrize("case", ["scaled", "strided", "no_center"])
def test_gradients(case):
    x, offset, mask, options = make(CASES[case], batch=1, size=(3, 4), groups=1, group_channels=2)
    inputs = [t.requires_grad_() for t in (x, offset, mask)]
    assert torch.autograd.gradcheck(lambda *a: dcnv3(*a, **options), inputs)


def test_zero_offset_and_even_mask_is_a_box_filter():
    x = torch.rand(1, 5, 6, 4)
    out = dcnv3(x, torch.zeros(1, 5, 6, 2 * 9 * 2), torch.full((1, 5, 6, 2 * 9), 1 / 9), groups=2)
    expected = torch.nn.functional.avg_pool2d(rearrange(x, "b h w c -> b c h w"), 3, 1, 1)
    torch.testing.assert_close(out, rearrange(expected, "b c h w -> b h w c"))


def test_bfloat16_samples_at_float32_coordinates():
    x, offset, mask, options = (t.float() if torch.is_tensor(t) else t for t in make({}, size=(40, 60)))
    reference = dcnv3(x.bfloat16().float(), offset, mask, **options)
    with torch.autocast("cpu", torch.bfloat16):
        out = dcnv3(x.bfloat16(), offset, mask, **options)
    assert out.dtype == torch.bfloat16
    # one rounding of the result, no error from positions
    torch.testing.assert_close(out.float(), reference, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "large", "no_center"])
@pytest.mark.parametrize("padding", [0, 5])
def test_softmax_and_joined_points(case, padding):
    x, offset, logits, options = make(CASES[case])
    normalized = rearrange(logits, "b h w (g p) -> b h w g p", g=2).softmax(dim=-1).flatten(-2)
    expected = dcnv3(x, offset, normalized, **options)
    torch.testing.assert_close(dcnv3(x, offset, logits, softmax=True, **options), expected)
    joined = torch.cat((offset, logits, logits[..., :padding]), dim=-1).requires_grad_()
    output = dcnv3_fused(x, joined, **options)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert not joined.grad[..., joined.shape[-1] - padding :].any()


def test_softmax_is_computed_in_float32():
    x, offset, logits, options = (t.float() if torch.is_tensor(t) else t for t in make({}))
    logits = 5 * logits.bfloat16()
    expected = dcnv3(x, offset, logits.float(), softmax=True, **options)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dcnv3(x, offset, logits, softmax=True, **options), expected)


def test_wrong_shapes_are_named():
    x, offset, mask, options = make({})
    with pytest.raises(ShapeError, match=r"offset of shape .*36"):
        dcnv3(x, offset[..., :-1], mask, **options)
    with pytest.raises(ShapeError, match="mask"):
        dcnv3(x, offset, mask[:, :-1], **options)
    with pytest.raises(ShapeError, match=r"\(2, 6, 7, 54\) or wider"):
        dcnv3_fused(x, torch.cat((offset, mask), dim=-1)[..., :-1], **options)
    with pytest.raises(ShapeError, match="divisible by 4"):
        dcnv3(x, offset, mask, groups=4)
    with pytest.raises(ShapeError, match="no middle point"):
        dcnv3(x, offset, mask, groups=2, kernel_size=2, remove_center=True)
