"""Split tables: which frames belong to which list, shipped as ``splits/NAME.json.gz``.

A table maps a scene to its frame numbers, written as ranges with both ends included: ``"0-3,7"``.
"""

import gzip
import json
from functools import cache
from importlib.resources import files

from sa2depth.errors import DataError


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
                f"'{part.strip()}' is no frame number and no range such as 3-17 (in '{text[:60]}')"
            )
        numbers.extend(range(int(ends[0]), int(ends[1]) + 1))
    return numbers


def tables() -> list[str]:
    """Names of the split tables that travel with the package."""
    folder = files("sa2depth.data") / "splits"
    return sorted(
        entry.name.removesuffix(".json.gz") for entry in folder.iterdir() if entry.name.endswith(".json.gz")
    )


@cache
def read_table(name: str) -> tuple[tuple[str, int], ...]:
    """``(scene, frame number)`` of every frame of a shipped table, sorted.

    Raises:
        DataError: there is no such table, or its frames do not add up to the count it states.
    """
    entry = files("sa2depth.data") / "splits" / f"{name}.json.gz"
    if not entry.is_file():
        raise DataError(f"there is no split table '{name}': choose one of {', '.join(tables())}")
    table = json.loads(gzip.decompress(entry.read_bytes()))
    frames = sorted(
        (scene, number) for scene, text in table["frames"].items() for number in parse_ranges(text)
    )
    if len(frames) != table["count"] or len(set(frames)) != len(frames):
        raise DataError(
            f"split table '{name}' states {table['count']} frames and lists {len(set(frames))}: "
            "the file is damaged, reinstall sa2depth"
        )
    return tuple(frames)
