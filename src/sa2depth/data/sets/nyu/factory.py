"""NYU Depth v2 as sources (`sa2depth.data.sets.nyu`)."""

from collections.abc import Sequence
from pathlib import Path

from sa2depth.data.sets import nyu
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part


def nyu_sync(
    root: Path | str,
    split: str = "36253",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 raw sequences for training.

    Args:
        root: see `sa2depth.data.sets.nyu.sync`.
        split: ``36253`` or ``24231``.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: no such split or part.
        DataError: files are missing.
    """
    return from_listing(nyu.sync(root, split), part, every, limit, ids)


def nyu_labelled(
    root: Path | str,
    split: str = "train",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 labelled set: 795 training or 654 test images; arguments and errors as in `nyu_sync`."""
    return from_listing(nyu.labelled(root, split), part, every, limit, ids)
