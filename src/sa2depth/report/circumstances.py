"""The circumstances of a score in words: every entry of ``metrics.json`` that is not itself a score."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# shown elsewhere on the page
_ELSEWHERE = {"metrics", "baselines", "pictures", "by_depth", "empty_ids", "nonfinite_ids"}

_GROUPS = {
    "Protocol": {
        "protocol.name": "Name",
        "protocol.version": "Version",
        "protocol.min_depth": "Depth above",
        "protocol.max_depth": "Depth below",
        "protocol.clip_both_at": "Both clipped at",
        "protocol.frame_cut": "Cut to",
        "protocol.frame": "Frame",
        "protocol.crop": "Crop",
        "protocol.crop_box": "Crop box",
        "protocol.input": "Network's input",
        "protocol.input_size": "Input size",
        "protocol.max_side": "Longest input side",
        "protocol.flip": "Flip averaging",
        "protocol.averaging": "Averaging",
    },
    "Images": {
        "evaluated_images": "Evaluated",
        "images": "In the mean",
        "split_images": "With truth in the split",
        "protocol.expected_images": "Expected by the protocol",
        "complete": "Full split",
        "images_without_truth": "Without truth",
        "protocol.images_without_truth": "Without truth, expected",
        "empty_images": "Without a scored pixel",
        "nonfinite_images": "With NaN or infinity",
        "nonfinite_pixels": "NaN or infinite pixels",
        "native_sizes": "Sizes of the files",
        "input_sizes": "Sizes the network saw",
        "frames": "Sizes scored",
    },
    "Run": {
        "checkpoint": "Checkpoint",
        "predictions": "Predictions",
        "encoder": "Encoder",
        "device": "Device",
        "precision": "Precision",
        "seed": "Seed",
        "steps": "Steps",
        "fit_s": "Training time (s)",
        "stages_s": "Seconds by stage",
        "commit": "Commit",
        "sa2depth_version": "sa2depth",
    },
}
_LABELS = {key: label for group in _GROUPS.values() for key, label in group.items()}
# shown only if they are set
_OPTIONAL = {
    "split_images",
    "protocol.input_size",
    "protocol.max_side",
    "protocol.expected_images",
    "protocol.frame",  # None if the images differ in size; "Sizes scored" lists the sizes then
    "protocol.frame_cut",
    "protocol.crop_box",
}
_METRES = {"protocol.min_depth", "protocol.max_depth", "protocol.clip_both_at"}
_SIZE = {"height", "width"}
_BOX = {"top", "bottom", "left", "right"}
_SIZES = {"protocol.frame", "protocol.frame_cut", "protocol.input_size"}
_COUNTED_SIZES = {"native_sizes", "input_sizes", "frames"}
_SECONDS = "stages_s"
_MOST_WORDS = 30
_MOST_SIZES = 6


@dataclass(frozen=True)
class Fact:
    """One line of the list.

    Attributes:
        label: Name of the fact.
        text: Its value for people.
        exact: Its value as the file has it.
    """

    label: str
    text: str
    exact: str


def circumstances(document: Mapping[str, Any]) -> list[tuple[str, list[Fact]]]:
    """The entries of ``metrics.json`` that are not scores: first the known ones, then all others.

    Args:
        document: The file's content.

    Returns:
        Groups of facts under a title; unknown entries of the protocol stay with the protocol.
    """
    entries = dict(_leaves({key: value for key, value in document.items() if key not in _ELSEWHERE}))
    for key in ("protocol.description", "protocol.metrics"):  # shown at the top and in the table of scores
        entries.pop(key, None)
    entries = {key: value for key, value in entries.items() if key not in _OPTIONAL or value is not None}
    groups = []
    for title, known in _GROUPS.items():
        keys = [key for key in known if key in entries]
        others = {"Protocol": True, "Run": False}.get(title)
        keys += [key for key in entries if key not in _LABELS and key.startswith("protocol.") is others]
        if keys:
            facts = [Fact(_label(key), _text(key, entries[key]), str(entries[key])) for key in keys]
            groups.append((title, facts))
    return groups


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings under dotted names; boxes, sizes and their counts are not taken apart."""
    for key, item in value.items():
        name = f"{path}{key}"
        whole = {*_COUNTED_SIZES, _SECONDS}
        if isinstance(item, dict) and set(item) not in (_SIZE, _BOX) and name not in whole:
            yield from _leaves(item, f"{name}.")
        else:
            yield name, item


def _label(key: str) -> str:
    words = key.removeprefix("protocol.").replace("_", " ").replace(".", ": ")
    return _LABELS.get(key, words[:1].upper() + words[1:])


def _text(key: str, value: Any) -> str:
    if value is None:
        return "none" if key.startswith("protocol.") else "not a number"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _COUNTED_SIZES and isinstance(value, dict):
        return _counted_sizes(value)
    if key == _SECONDS and isinstance(value, dict):
        return ", ".join(f"{name} {spent}" for name, spent in value.items())
    if isinstance(value, dict) and value:
        return _box_text(value) if set(value) == _BOX else f"{value['height']} × {value['width']} px"
    if isinstance(value, list):
        return _list_text(key, value)
    text = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return f"{text} m" if key in _METRES else text or "none"


def _counted_sizes(sizes: Mapping[str, Any]) -> str:
    """``480 × 640: 654 images``: sizes with the number of their images, and the scored box if there is one."""
    words = []
    for size, entry in sizes.items():
        count = entry.get("images") if isinstance(entry, dict) else entry
        box = entry.get("crop_box") if isinstance(entry, dict) and len(sizes) > 1 else None
        where = f", {_box_text(box)}" if isinstance(box, dict) and set(box) == _BOX else ""
        words.append(f"{size.replace('x', ' × ')}: {count} images{where}")
    more = len(words) - _MOST_SIZES
    return "; ".join(words[:_MOST_SIZES]) + (f"; and {more} more sizes" if more > 0 else "")


def _box_text(box: Mapping[str, Any]) -> str:
    """Rows and columns, counted from 0, both ends included."""
    try:
        height, width = box["bottom"] - box["top"], box["right"] - box["left"]
        rows, columns = f"{box['top']}–{box['bottom'] - 1}", f"{box['left']}–{box['right'] - 1}"
    except TypeError:
        return str(box)
    return f"rows {rows}, columns {columns} ({height} × {width} px)"


def _list_text(key: str, values: Sequence[Any]) -> str:
    if not values:
        return "none"
    if key in _SIZES and len(values) == 2:
        return f"{values[0]} × {values[1]} px"
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[:_MOST_WORDS])
    more = len(values) - _MOST_WORDS
    return f"{shown} and {more} more" if more > 0 else shown
