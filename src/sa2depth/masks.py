"""The valid pixels of a depth map; no other place compares depth with its limits.

``valid`` is bool and True where valid, everywhere in this package.
"""

import math
from typing import Any, overload

import torch
from numpy.typing import NDArray


@overload
def valid_mask(depth: torch.Tensor, min_depth: float = ..., max_depth: float = ...) -> torch.Tensor: ...
@overload
def valid_mask(depth: NDArray[Any], min_depth: float = ..., max_depth: float = ...) -> NDArray[Any]: ...


def valid_mask(depth: Any, min_depth: float = 0.0, max_depth: float = math.inf) -> Any:
    """Pixels whose ground truth is inside the open range ``min_depth < depth < max_depth``.

    Depth 0 means "not measured", so it is never valid for ``min_depth >= 0``; neither are NaN and infinity.
    The comparison runs in the tensor's own type, as in the released evaluation: a float32 depth of exactly
    1 mm is not above ``min_depth=1e-3``.

    Args:
        depth: Ground truth in metres, any shape; a tensor or an array.
        min_depth: Lower limit in metres, excluded.
        max_depth: Upper limit in metres, excluded. Infinity matches the released training, which has no upper limit,
            so that depths beyond the model's range affect its top bin; evaluation has one.

    Returns:
        bool tensor or array of the shape of ``depth``.
    """
    return (depth > min_depth) & (depth < max_depth)
