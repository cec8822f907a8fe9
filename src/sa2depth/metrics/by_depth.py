"""Errors by true depth, which show how well a network does near and far.

Unlike the scores of a protocol, they are pooled over the pixels of all images: a mean of per-image means would give an
image with three far pixels the weight of one with a thousand.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from sa2depth.metrics.formulas import Errors

SUMS_PER_RANGE = 5


def range_sums(errors: Errors, true_depth: torch.Tensor, edges: Sequence[float]) -> torch.Tensor:
    """Sums over the pixels of one image in each interval ``[a, b)`` of true depth.

    Args:
        errors: Errors of ``(n,)`` scored pixels.
        true_depth: ``(n,)`` metres as measured; it alone decides the interval.
        edges: ``m + 1`` rising depths in metres, or none.

    Returns:
        ``(m * 5,)`` float64, to be summed over images and given to ``range_rows``.
    """
    values = torch.stack(
        [
            torch.ones_like(errors.plain),
            errors.relative.abs(),
            errors.plain.square(),
            errors.within(1),
            errors.plain,
        ]
    )
    sums = [values[:, (true_depth >= a) & (true_depth < b)].sum(dim=1) for a, b in pairwise(edges)]
    return torch.cat(sums) if sums else values.new_empty(0)


def range_rows(per_image: Sequence[Sequence[float]], edges: Sequence[float]) -> list[dict[str, Any]]:
    """Errors of each interval from the sums of all images, independent of the order of the images.

    Args:
        per_image: ``range_sums`` of each image.
        edges: The edges that `range_sums` was given.

    Returns:
        One dict per interval: ``from`` and ``to`` (metres), ``pixels``, ``abs_rel``, ``rmse`` (metres), ``d1``
        (share in [0, 1]) and ``bias`` (mean of prediction minus truth, metres); errors without pixels are NaN.
    """
    rows: list[dict[str, Any]] = []
    for place, (low, high) in enumerate(pairwise(edges)):
        first = place * SUMS_PER_RANGE
        pixels, relative, square, near, plain = (
            math.fsum(sums[first + k] for sums in per_image) for k in range(SUMS_PER_RANGE)
        )
        many = pixels or math.nan
        rows.append(
            {
                "from": low,
                "to": high,
                "pixels": int(pixels),
                "abs_rel": relative / many,
                "rmse": math.sqrt(square / many),
                "d1": near / many,
                "bias": plain / many,
            }
        )
    return rows
