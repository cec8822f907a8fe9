"""The gradient of bilinear upsampling, written as matrix products."""

import pytest
import torch
import torch.nn.functional as F

from sa2depth.nn.bilinear import _Upsample, shrink, upsample_bilinear


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (7, 9), (4, 6), (5, 24)])
def test_the_gradient_is_that_of_interpolate(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    expected = F.interpolate(x, size, mode="bilinear")
    actual = _Upsample.apply(x, *size)
    torch.testing.assert_close(actual, expected)
    (reference,) = torch.autograd.grad((expected * weights).sum(), x)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), x)
    torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-6)


def test_weights_of_whole_factors_are_exact_in_bf16():
    x = torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)
    for factor in (2, 4, 8):
        ones = torch.ones(1, 1, 4 * factor, 4 * factor, dtype=torch.bfloat16)
        assert torch.equal(shrink(ones, 4, 4), x * factor**2)


def test_autocast_does_not_change_the_dtype():
    x = torch.rand(1, 2, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert upsample_bilinear(x, torch.Size((6, 8))).dtype == torch.bfloat16
        assert upsample_bilinear(x.float(), torch.Size((6, 8))).dtype == torch.float32
    assert upsample_bilinear(x, torch.Size((3, 4))) is x
