"""Fusion and upsampling match their definitions, written without the tricks that make them fast."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError
from sa2depth.nn import SelectiveFusion, Upsample

SIZES = {
    "whole": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "whole, other": [(12, 18), (12, 6), (4, 3), (1, 1)],
    "not whole": [(15, 22), (8, 11), (4, 6), (2, 3)],
    "one side whole": [(16, 22), (8, 12), (4, 11), (3, 2)],
}
CHANNELS = [4, 6, 8, 10]


def assert_same(actual, expected, leaves):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(actual, leaves, weight),
        torch.autograd.grad(expected, leaves, weight),
        strict=True,
    )
    for own, reference in pairs:
        torch.testing.assert_close(own, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sizes", SIZES)
def test_fusion_is_the_weighted_sum_of_upsampled_maps(sizes):
    torch.manual_seed(0)
    fusion = SelectiveFusion(CHANNELS, 8).double()
    levels = [
        torch.randn(2, c, *size, dtype=torch.float64, requires_grad=True)
        for c, size in zip(CHANNELS, SIZES[sizes], strict=True)
    ]
    maps = torch.stack(
        [
            F.interpolate(project(level), SIZES[sizes][0], mode="bilinear")
            for project, level in zip(fusion.projections, levels, strict=True)
        ]
    )
    squeezed = F.silu(fusion.squeeze(maps.sum(dim=0).mean(dim=(2, 3), keepdim=True)))
    weights = torch.stack([excite(squeezed) for excite in fusion.excite]).softmax(dim=0)
    assert_same(fusion(levels), (maps * weights).sum(dim=0), [*levels, *fusion.parameters()])


def test_fusion_works_under_autocast():
    fusion = SelectiveFusion(CHANNELS, 8)
    levels = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, SIZES["whole"], strict=True)]
    with torch.no_grad():
        expected = fusion(levels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = fusion(levels)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_upsampling_is_the_convolution_of_both_maps():
    torch.manual_seed(0)
    layer = Upsample(12, 8).double()
    coarse = torch.randn(2, 12, 3, 5, dtype=torch.float64, requires_grad=True)
    fine = torch.randn(2, 8, 6, 10, dtype=torch.float64, requires_grad=True)
    expanded = F.conv2d(coarse, layer.expand.weight).permute(0, 2, 3, 1)
    normed = F.layer_norm(expanded, (24,), layer.norm.weight, layer.norm.bias, layer.norm.eps)
    shuffled = F.pixel_shuffle(normed.permute(0, 3, 1, 2), 2)
    expected = F.conv2d(torch.cat((shuffled, fine), dim=1), layer.fuse.weight, layer.fuse.bias)
    assert_same(layer(coarse, fine), expected, [coarse, fine, *layer.parameters()])


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match="11 must be even"):
        Upsample(11, 8)
