import pytest
import torch
import torch.nn.functional as F

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.ops import use_backend
from sa2depth.ops.depthwise_conv import depthwise_conv


def make(channels=6, size=(7, 9), kernel=5, bias=True, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *size, generator=random, dtype=dtype)
    weight = torch.randn(channels, 1, kernel, kernel, generator=random, dtype=dtype)
    return x, weight, torch.randn(channels, generator=random, dtype=dtype) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 11])
def test_is_a_sum_of_shifted_maps(kernel, bias):
    x, weight, shift = make(kernel=kernel, bias=bias)
    reach = kernel // 2
    padded = F.pad(x, (reach,) * 4)
    expected = torch.zeros_like(x) if shift is None else shift[:, None, None].expand_as(x).clone()
    for i in range(kernel):
        for j in range(kernel):
            expected += weight[:, :, i, j, None] * padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
    torch.testing.assert_close(depthwise_conv(x, weight, shift), expected)


def test_gradients():
    inputs = [t.requires_grad_() for t in make(channels=2, size=(4, 5), kernel=3)]
    assert torch.autograd.gradcheck(depthwise_conv, inputs)


def test_autocast_is_that_of_conv2d():
    x, weight, bias = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = depthwise_conv(x, weight, bias)
        expected = F.conv2d(x, weight, bias, padding=2, groups=6)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((1, 8, 5, 5), (8, 1, 4, 4), None),
        ((1, 8, 5, 5), (8, 1, 3, 5), None),
        ((1, 8, 5, 5), (8, 8, 3, 3), None),
        ((1, 8, 5, 5), (4, 1, 3, 3), None),
        ((8, 5, 5), (8, 1, 3, 3), None),
        ((1, 8, 5, 5), (8, 1, 3, 3), (4,)),
    ],
)
def test_shapes_that_do_not_belong_together(x, weight, bias):
    with pytest.raises(ShapeError, match="depthwise_conv wants"):
        depthwise_conv(torch.ones(x), torch.ones(weight), None if bias is None else torch.ones(bias))


def test_kernels_asked_for_by_name_say_why_not():
    with use_backend("cuda"), pytest.raises(ConfigError, match="the input is on cpu"):
        depthwise_conv(*make())
