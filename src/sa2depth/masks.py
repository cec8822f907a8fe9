"""Which pixels of a depth map count: the one place that knows the polarity and the strictness of the limits.

``valid`` is bool and True where valid, everywhere in this package.
"""

import math

import torch


def valid_mask(depth: torch.Tensor, min_depth: float = 0.0, max_depth: float = math.inf) -> torch.Tensor:
    """Pixels whose ground truth is inside the open range ``min_depth < depth < max_depth``.

    Depth 0 means "not measured", so it is never valid for ``min_depth >= 0``; neither are NaN and infinity.
    The comparison runs in the tensor's own type, as in the released evaluation: a float32 depth of exactly
    1 mm is not above ``min_depth=1e-3``.

    Args:
        depth: Ground truth in metres, any shape.
        min_depth: Lower limit in metres, excluded.
        max_depth: Upper limit in metres, excluded. Infinity is what the released training does (it has no
            upper limit, so that returns beyond the model's range pull at its top bin; evaluation has one).

    Returns:
        bool tensor of the shape of ``depth``.
    """
    return (depth > min_depth) & (depth < max_depth)
