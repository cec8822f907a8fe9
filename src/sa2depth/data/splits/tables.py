"""Split tables: lists of frames, shipped as ``splits/NAME.json.gz``.

A table maps a scene to its frame numbers, written as ranges with both ends included: ``"0-3,7"``. Listed frames
for which the data set has no ground truth are in a second map of the same form.
"""

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

from sa2depth.errors import DataError

Entry = tuple[str, int]
"""Scene and frame number."""


def parse_ranges(text: str) -> list[int]:
    """Numbers of a range list in the order written: ``"0-3,7"`` gives 0, 1, 2, 3, 7.

    Spaces and line ends around the numbers do not matter; an empty text gives no number.

    Raises:
        DataError: a part is neither a number nor an ascending range.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first and not dash and text.strip() == "":
            continue
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdigit() for end in ends) or int(ends[0]) > int(ends[1]):
            raise DataError(
                f"'{part.strip()}' is neither a frame number nor a range such as 3-17 (in '{text[:60]}')"
            )
        numbers.extend(range(int(ends[0]), int(ends[1]) + 1))
    return numbers


def tables() -> list[str]:
    """Names of the split tables that are part of the package."""
    folder = files("sa2depth.data.splits")
    return sorted(
        entry.name.removesuffix(".json.gz") for entry in folder.iterdir() if entry.name.endswith(".json.gz")
    )


@cache
def read_table(name: str) -> tuple[Entry, ...]:
    """``(scene, frame number)`` of every frame of a shipped table, sorted, those without ground truth included.

    Raises:
        DataError: there is no such table, or its frames do not add up to the counts it states.
    """
    table = _load(name)
    measured = _entries(table["frames"])
    frames = sorted(measured + _entries(table.get("frames_without_ground_truth", {})))
    for what, stated, found in (
        ("frames", table["count"], frames),
        ("frames with ground truth", table.get("with_ground_truth", len(measured)), measured),
    ):
        if len(found) != stated or len(set(found)) != len(found):
            raise DataError(
                f"split table '{name}' states {stated} {what} and lists {len(set(found))}: "
                "the file is damaged, reinstall sa2depth"
            )
    return tuple(frames)


@cache
def entries_without_truth(name: str) -> frozenset[Entry]:
    """The entries of a shipped table for which the data set has no ground truth.

    Raises:
        DataError: as `read_table`.
    """
    read_table(name)  # checks the counts
    return frozenset(_entries(_load(name).get("frames_without_ground_truth", {})))


@cache
def _load(name: str) -> dict[str, Any]:
    entry = files("sa2depth.data.splits") / f"{name}.json.gz"
    if not entry.is_file():
        raise DataError(f"there is no split table '{name}': choose one of {', '.join(tables())}")
    table: dict[str, Any] = json.loads(gzip.decompress(entry.read_bytes()))
    return table


def _entries(frames: dict[str, str]) -> list[Entry]:
    return [(scene, number) for scene, text in frames.items() for number in parse_ranges(text)]
