"""Fill the holes of a sparse map from the nearest known pixel: for pictures and baselines, not for truth."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def fill_from_nearest(
    values: NDArray[Any], known: NDArray[np.bool_], reach_px: float = math.inf
) -> NDArray[Any]:
    """Copy of a map whose unknown pixels take the value of the (nearly) nearest known one.

    Args:
        values: ``(H,W)`` of any type.
        known: ``(H,W)`` bool, True where ``values`` are valid.
        reach_px: Holes farther than this from a known pixel keep their value.

    Returns:
        ``(H,W)`` of the type of ``values``; equal to it where ``known``, and everywhere if nothing is known.
    """
    if not known.any():
        return values.copy()
    distance, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(label.max()) + 1, values.dtype)
    of_label[label[known]] = values[known]
    return np.where(known | (distance > reach_px), values, of_label[label])
