import math

import cv2
import numpy as np
import pytest
import torch

from sa2depth.errors import ConfigError, ShapeError
from sa2depth.report import colorize


def test_known_colours():
    depth = np.array([[1.0, 5.0, 0.5, 50.0], [0.0, -1.0, math.nan, math.inf]])
    colours = colorize(depth, 1.0, 5.0)
    assert colours.shape == (2, 4, 3)
    assert colours.dtype == np.uint8
    ends = [cv2.applyColorMap(np.uint8([[v]]), cv2.COLORMAP_TURBO)[0, 0, ::-1].tolist() for v in (0, 255)]
    assert colours[0].tolist() == [ends[0], ends[1], ends[0], ends[1]]
    assert (colours[1] == 0).all()
    assert (colorize(depth, 1.0, 5.0, invalid=(1, 2, 3))[1] == [1, 2, 3]).all()
    # published ends of viridis in RGB: purple to yellow
    viridis = colorize(np.array([[1.0, 5.0]]), 1.0, 5.0, "viridis")
    assert np.abs(viridis.astype(int) - [[[68, 1, 84], [253, 231, 37]]]).max() <= 2


def test_the_range_is_metric_not_per_image():
    near, far = np.full((2, 2), 1.0), np.full((2, 2), 9.0)
    assert not np.array_equal(colorize(near, 0, 10), colorize(far, 0, 10))
    mixed = np.array([[1.0, 9.0]])
    assert np.array_equal(colorize(mixed, 0, 10)[0, 0], colorize(near, 0, 10)[0, 0])


def test_colorize_takes_tensors_and_refuses_nonsense():
    depth = torch.rand(1, 1, 3, 4) + 1
    np.testing.assert_array_equal(colorize(depth, 0, 3), colorize(depth[0, 0].numpy(), 0, 3))
    with pytest.raises(ConfigError, match="unknown colour map 'jet2'"):
        colorize(depth, 0, 3, "jet2")
    with pytest.raises(ConfigError, match="ascending"):
        colorize(depth, 3, 3)
    with pytest.raises(ShapeError):
        colorize(torch.ones(2, 3, 4), 0, 3)
