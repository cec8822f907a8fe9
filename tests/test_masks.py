import math

import torch

from sa2depth.masks import valid_mask


def test_both_limits_are_strict_and_nonfinite_is_invalid():
    depth = torch.tensor([0.0, 1e-3, 2e-3, 9.99, 10.0, 11.0, math.nan, math.inf, -1.0])
    assert valid_mask(depth, 1e-3, 10.0).tolist() == [False] * 2 + [True] * 2 + [False] * 5
    assert valid_mask(depth).tolist() == [False] + [True] * 5 + [False] * 3
    assert valid_mask(depth).dtype == torch.bool
