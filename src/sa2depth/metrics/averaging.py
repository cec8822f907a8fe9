"""The mean of per-image errors, as in the released ``eval.py`` (not pooled over pixels), and a count of the rest."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sa2depth.errors import DataError
from sa2depth.metrics.protocol import Protocol

_LOG = logging.getLogger(__name__)


def aggregate(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> dict[str, float]:
    """Mean of per-image errors, in float64 and independent of the order of the rows.

    Images without a scored pixel are left out of the mean; images with NaN or infinite predictions stay in it. Both
    are counted and named in a warning.

    Args:
        rows: Results of ``evaluate_image``; ``id`` or ``index``, if given, name the image.
        protocol: Its metrics are averaged, and the messages name it.

    Returns:
        The protocol's metrics, ``images`` (those in the mean), ``empty_images``, ``nonfinite_images``,
        ``nonfinite_pixels``.

    Raises:
        DataError: There is no image, or none has a scored pixel.
    """
    if not rows:
        raise DataError("no image was evaluated: check the data folder and the split")
    scored = [row for row in rows if row["pixels"] > 0]
    empty = _names(row for row in rows if row["pixels"] == 0)
    broken = _names(row for row in rows if row["nonfinite_pixels"] > 0)
    nonfinite_pixels = int(sum(row["nonfinite_pixels"] for row in rows))
    span = f"{protocol.min_depth:g}-{protocol.max_depth:g} m"
    if not scored:
        raise DataError(
            f"none of the {len(rows)} images has ground truth within {span} (protocol '{protocol.name}'): "
            f"check the depth scale of the data set. Images: {some(empty)}"
        )
    if empty:
        _LOG.warning(
            "%d of %d images have no ground truth within %s inside the crop '%s' and are not in the mean: %s",
            len(empty), len(rows), span, protocol.crop, some(empty),
        )  # fmt: skip
    if broken:
        _LOG.warning(
            "THE MODEL IS BROKEN on %d of %d images: %d NaN or infinite predictions, scored as the released "
            "evaluation does (NaN as the smallest depth, infinity as the largest): %s",
            len(broken), len(rows), nonfinite_pixels, some(broken),
        )  # fmt: skip
    means = {key: math.fsum(row[key] for row in scored) / len(scored) for key in protocol.metrics}
    return {
        **means,
        "images": len(scored),
        "empty_images": len(empty),
        "nonfinite_images": len(broken),
        "nonfinite_pixels": nonfinite_pixels,
    }


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(row.get("id", row.get("index", "?"))) for row in rows]


def some(names: Sequence[str], most: int = 10) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
