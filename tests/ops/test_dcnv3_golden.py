"""The operator returns the numbers of the released code, forwards and backwards."""

import pytest
import torch
from einops import rearrange

from sa2depth.ops import dcnv3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", range(5))
def test_golden(golden, case, dtype, tolerance):
    name = f"dcnv3_{case}"
    expected = golden.load(name)
    groups, group_channels, kernel, stride, padding, dilation, remove_center = map(int, expected["cfg"])
    height, width = [(7, 9), (8, 11), (6, 7), (9, 5), (6, 8)][case]
    rows, columns = expected["out"].shape[1:3]
    points = kernel * kernel - remove_center
    x = golden.input(f"{name}/input", (2, height, width, groups * group_channels), dtype)
    offset = 2 * golden.input(f"{name}/offset", (2, rows, columns, groups * points * 2), dtype)
    mask = golden.input(f"{name}/mask", (2, rows, columns, groups, points), dtype).softmax(dim=-1)
    inputs = [x, offset, rearrange(mask, "b h w g p -> b h w (g p)")]
    for tensor in inputs:
        tensor.requires_grad_()
    out = dcnv3(
        *inputs,
        groups=groups,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=float(expected["offset_scale"].item()),
        remove_center=bool(remove_center),
    )
    golden.check(out, expected["out"], tolerance, "out")
    (out * golden.input(f"{name}/cotangent", tuple(out.shape), dtype)).sum().backward()
    for key, tensor in zip(("input", "offset", "mask"), inputs, strict=True):
        golden.check(tensor.grad, expected[f"grad_{key}"], tolerance, f"grad_{key}")
