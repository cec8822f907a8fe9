"""Window attention matches its definition, pixel by pixel."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.nn import WindowAttention


def by_definition(layer, x):
    """Attention in one image, from each pixel to the pixels of its window that lie inside the map."""
    window, heads = layer.window, layer.heads
    _, channels, height, width = x.shape
    query, key, value = (
        part.reshape(heads, channels // heads, height, width)
        for part in torch.nn.functional.conv2d(x, layer.query_key_value.weight, layer.query_key_value.bias)[
            0
        ].chunk(3)
    )
    out = torch.empty_like(query)
    for i in range(height):
        for j in range(width):
            top, left = i // window * window, j // window * window
            rows = range(top, min(top + window, height))
            columns = range(left, min(left + window, width))
            pixels = [(k, m) for k in rows for m in columns]
            offsets = [(i - k + window - 1) * (2 * window - 1) + j - m + window - 1 for k, m in pixels]
            keys = torch.stack([key[:, :, k, m] for k, m in pixels], dim=1)
            values = torch.stack([value[:, :, k, m] for k, m in pixels], dim=1)
            scores = (keys @ query[:, :, i, j, None])[..., 0] * (channels // heads) ** -0.5
            weights = (scores + layer.position_bias[:, offsets]).softmax(dim=-1)
            out[:, :, i, j] = (weights[:, None] @ values)[:, 0]
    whole = out.reshape(1, channels, height, width)
    return torch.nn.functional.conv2d(whole, layer.project.weight, layer.project.bias)


@pytest.mark.parametrize("size", [(6, 9), (7, 4), (1, 2), (3, 3)])
def test_every_pixel_attends_to_its_window(size):
    torch.manual_seed(0)
    layer = WindowAttention(8, 4, 9, 8, window=3).double()
    torch.nn.init.normal_(layer.position_bias)
    x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    actual = layer(x)
    expected = torch.cat([by_definition(layer, image[None]) for image in x])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    leaves, weight = [x, *layer.parameters()], torch.randn_like(expected)
    for own, reference in zip(
        torch.autograd.grad(actual, leaves, weight),
        torch.autograd.grad(expected, leaves, weight),
        strict=True,
    ):
        torch.testing.assert_close(own, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dim_head", "window", "words"),
    [(3, 4, "dim_head 3 does not divide 8 channels"), (4, 0, "set window to at least 1 pixel, not 0")],
)
def test_impossible_arguments_are_refused(dim_head, window, words):
    with pytest.raises(ConfigError, match=words):
        WindowAttention(8, dim_head, window=window)
