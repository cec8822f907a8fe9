"""1x1 convolutions as matrix products, and the memory layouts of maps."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sa2depth.nn import PointwiseConv, pointwise
from sa2depth.nn.layout import from_tokens, has_tokens, in_layout
from sa2depth.nn.pointwise import _matrix_product


def tokens(height, width, channels):
    """Two channels-last maps."""
    return torch.randn(2, height, width, channels, dtype=torch.float64).permute(0, 3, 1, 2)


LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 6, 5, 7, dtype=torch.float64),
    "channels last": lambda: tokens(5, 7, 6),
    "some of the channels": lambda: tokens(5, 7, 9)[:, 2:8],
    "a window": lambda: tokens(8, 9, 6)[:, :, 1:6, 2:],
    "every other pixel": lambda: tokens(10, 14, 6)[:, :, ::2, ::2],
    "one pixel": lambda: torch.randn(2, 6, 1, 1, dtype=torch.float64),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", [pointwise, _matrix_product])
def test_it_is_the_convolution(function, layout, bias, dtype):
    torch.manual_seed(0)
    conv = PointwiseConv(6, 4, bias).to(dtype)
    x = LAYOUTS[layout]().to(dtype)
    leaves = [x.clone().requires_grad_(), *conv.parameters()]
    x = x.requires_grad_()
    expected = F.conv2d(leaves[0].contiguous(), conv.weight, conv.bias)
    actual = function(x, conv.weight, conv.bias)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    references = torch.autograd.grad(expected, leaves, weight)
    for own, reference in zip(torch.autograd.grad(actual, [x, *leaves[1:]], weight), references, strict=True):
        torch.testing.assert_close(own, reference)
    assert torch.equal(conv(x), pointwise(x, conv.weight, conv.bias))


def test_a_matrix_product_keeps_tokens():
    x = LAYOUTS["channels last"]()
    weight = torch.randn(8, 6, 1, 1, dtype=torch.float64)
    out = _matrix_product(x, weight, None)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("contiguous", False),
        ("channels last", True),
        ("some of the channels", True),
        ("a window", False),
        ("every other pixel", False),
    ],
)
def test_has_tokens(layout, expected):
    assert has_tokens(LAYOUTS[layout]()) is expected
    assert has_tokens(LAYOUTS[layout]()[:1, :, :1]) is (expected or layout != "contiguous")


def test_maps_are_contiguous_on_the_cpu():
    x = tokens(5, 7, 6)
    maps = from_tokens(x.permute(0, 2, 3, 1))
    assert maps.is_contiguous()
    assert torch.equal(maps, x)
    assert in_layout(maps).data_ptr() == maps.data_ptr()
    assert in_layout(x).is_contiguous()


def test_maps_are_channels_last_on_cuda():
    with FakeTensorMode():
        maps = torch.empty(2, 6, 5, 7, device="cuda")
        assert from_tokens(torch.empty(2, 5, 7, 6, device="cuda")).stride() == (210, 1, 42, 6)
        assert in_layout(maps).stride() == (210, 1, 42, 6)
        assert in_layout(maps).shape == maps.shape
        assert has_tokens(in_layout(maps))
