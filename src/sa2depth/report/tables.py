"""Results as files: ``metrics.json`` with the means and their circumstances, and tables by image and by depth."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sa2depth.atomic import atomic_path
from sa2depth.metrics import Evaluation
from sa2depth.version import __version__

_COUNTS = ("images", "empty_images", "nonfinite_images", "nonfinite_pixels")
_NETWORK_RULES = ("flip", "input", "input_size", "max_side")
NOT_APPLICABLE = "not applicable"
DEPTH_COLUMNS = ("from", "to", "pixels", "abs_rel", "rmse", "d1", "bias")


def write_table(evaluation: Evaluation, path: Path | str) -> Path:
    """Write a row per image as CSV, sorted by index: ``index``, ``id``, the protocol's metrics, the counts.

    Args:
        evaluation: The measurements.
        path: The CSV file; its folder is made.

    Returns:
        The path.
    """
    columns = ["index", "id", *evaluation.protocol.metrics, "pixels", "nonfinite_pixels"]
    return _write_csv(sorted(evaluation.table, key=lambda row: row["index"]), columns, Path(path))


def write_by_depth(evaluation: Evaluation, path: Path | str) -> Path:
    """Write a row per interval of true depth ``[from, to)`` in metres as CSV; errors are pooled over its pixels.

    Args:
        evaluation: The measurements.
        path: The CSV file; its folder is made.

    Returns:
        The path.
    """
    return _write_csv(evaluation.by_depth, DEPTH_COLUMNS, Path(path))


def write_metrics(evaluation: Evaluation, path: Path | str, extra: Mapping[str, Any] | None = None) -> Path:
    """Write ``metrics.json``: the means and their circumstances, keys sorted, valid JSON (NaN is null).

    Args:
        evaluation: The measurements.
        path: The JSON file; its folder is made.
        extra: More entries of the caller (checkpoint, device, precision, pictures ...).

    Returns:
        The path.
    """
    means = evaluation.means
    document = {
        **(extra or {}),
        "metrics": {key: means[key] for key in evaluation.protocol.metrics},
        **{key: means[key] for key in _COUNTS},
        "evaluated_images": evaluation.images,
        "split_images": evaluation.split_images,
        "images_without_truth": evaluation.without_truth,
        # a partial run must not look like the whole split
        "complete": evaluation.complete,
        "empty_ids": [row["id"] for row in evaluation.table if row["pixels"] == 0],
        "nonfinite_ids": [row["id"] for row in evaluation.table if row["nonfinite_pixels"] > 0],
        "by_depth": [{key: row[key] for key in DEPTH_COLUMNS} for row in evaluation.by_depth],
        "protocol": _rules(evaluation),
        "frames": {
            _name(size): {"images": count, "crop_box": _box(evaluation, size)}
            for size, count in evaluation.frames.items()
        },
        "native_sizes": _sizes(evaluation.natives),
        "input_sizes": _sizes(evaluation.inputs) if evaluation.network else NOT_APPLICABLE,
        "sa2depth_version": __version__,
    }
    text = json.dumps(_plain(document), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def _rules(evaluation: Evaluation) -> dict[str, Any]:
    """The protocol as it was applied: its fields, and the box in pixels if all frames have one size."""
    rules = asdict(evaluation.protocol)
    rules["frame_cut"] = rules.pop("frame")
    if not evaluation.network:
        rules |= dict.fromkeys(_NETWORK_RULES, NOT_APPLICABLE)
    frames = list(evaluation.frames)
    only = frames[0] if len(frames) == 1 else None
    rules["frame"] = _size(only) if only else None
    rules["crop_box"] = _box(evaluation, only) if only else None
    rules["averaging"] = "mean of per-image errors, float64"
    return rules


def _box(evaluation: Evaluation, size: tuple[int, int]) -> dict[str, int]:
    return dict(zip(("top", "bottom", "left", "right"), evaluation.protocol.crop_box(*size), strict=True))


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _sizes(counts: Mapping[tuple[int, int], int]) -> dict[str, int]:
    return {_name(size): count for size, count in counts.items()}


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> Path:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _plain(value: Any) -> Any:
    """The same document with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
