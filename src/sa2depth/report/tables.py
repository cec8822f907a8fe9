"""Results as files: ``metrics.json``, the means and how they were measured, and one CSV row an image."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sa2depth.metrics import METRICS, Protocol
from sa2depth.version import __version__

_COUNTS = ("images", "empty_images", "nonfinite_images", "nonfinite_pixels")


def write_table(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Write ``DepthMetrics.table()`` as CSV, sorted by index.

    Args:
        rows: One mapping an image with ``index``, ``id``, the metrics and the counts.
        path: The CSV file; its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["index", "id", *METRICS, "pixels", "nonfinite_pixels"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["index"]))
    return path


def write_metrics(
    means: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    frame: tuple[int, int],
    path: Path | str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``metrics.json``: the means and their circumstances, keys sorted, valid JSON (NaN is null).

    Args:
        means: ``DepthMetrics.compute()``.
        rows: ``DepthMetrics.table()``; names the images that are left out or hold non-finite predictions.
        protocol: The protocol of the evaluation.
        frame: ``(H, W)`` of the scored frames in pixels, for the crop box.
        path: The JSON file; its folder is made.
        extra: More entries of the caller (checkpoint, device, precision ...).

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    top, bottom, left, right = protocol.crop_box(*frame)
    rules = asdict(protocol)
    rules["crop_box"] = {"top": top, "bottom": bottom, "left": left, "right": right}
    rules["frame"] = {"height": frame[0], "width": frame[1]}
    rules["averaging"] = "mean of per-image errors, float64"
    evaluated = int(means["images"] + means["empty_images"])
    document = {
        **(extra or {}),
        "metrics": {key: means[key] for key in METRICS},
        **{key: means[key] for key in _COUNTS},
        "evaluated_images": evaluated,
        # a partial run must not pass for the whole split
        "complete": protocol.expected_images is None or evaluated == protocol.expected_images,
        "empty_ids": [row["id"] for row in rows if row["pixels"] == 0],
        "nonfinite_ids": [row["id"] for row in rows if row["nonfinite_pixels"] > 0],
        "protocol": rules,
        "sa2depth_version": __version__,
    }
    text = json.dumps(_plain(document), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """The same document with NaN and infinity as null, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
