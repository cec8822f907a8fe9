"""Padding and resizing policies."""

import pytest
import torch

from sa2depth.errors import ConfigError
from sa2depth.metrics.any_size import pad_to_multiple, resize_image, working_size


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (31, 33), (32, 64), (17, 16), (100, 97)])
def test_padding_keeps_the_picture_and_reaches_the_multiple(height, width):
    image = torch.rand(1, 3, height, width)
    padded = pad_to_multiple(image, 32)
    assert padded.shape[-2] % 32 == padded.shape[-1] % 32 == 0
    assert padded.shape[-2] - height < 32
    assert padded.shape[-1] - width < 32
    assert torch.equal(padded[..., :height, :width], image)


def test_multiples_are_not_touched():
    image = torch.rand(1, 3, 64, 96)
    assert pad_to_multiple(image, 32) is image


def test_mirrored_where_there_is_enough_to_mirror_else_repeated():
    row = torch.arange(30.0).reshape(1, 1, 1, 30)
    padded = pad_to_multiple(row, 32)
    assert padded[0, 0, 0, 30:].tolist() == [28.0, 27.0]
    assert torch.equal(padded[0, 0, 31], padded[0, 0, 0])


def test_working_size():
    assert working_size(480, 640) == (480, 640)
    assert working_size(480, 640, size=(224, 224)) == (224, 224)
    assert working_size(480, 640, max_side=320) == (240, 320)
    assert working_size(480, 640, max_side=1000) == (480, 640)
    assert working_size(1, 4000, max_side=100) == (1, 100)
    for policy in ({"size": (480, 640), "max_side": 3}, {"size": (0, 4)}, {"max_side": 0}):
        with pytest.raises(ConfigError):
            working_size(10, 10, **policy)


def test_shrinking_smooths():
    checks = torch.zeros(1, 1, 64, 64)
    checks[..., ::2, :] = 1
    small = resize_image(checks, (8, 8))
    assert small[..., 1:-1, :].sub(0.5).abs().max() < 0.05
