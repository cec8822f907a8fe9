"""DIML/CVD outdoor as a source (`sa2depth.data.sets.diml`)."""

from collections.abc import Sequence
from pathlib import Path

from sa2depth.data.sets import diml
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part


def diml_outdoor(
    root: Path | str,
    split: diml.Split = "test",
    test_every: int = 10,
    resolution: diml.Resolution | None = None,
    max_depth: float = diml.MAX_DEPTH,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """Street scenes with depth in metres up to ``max_depth``.

    Args:
        root: folder below which ``outleft`` and ``depthmap`` are looked for.
        split: ``test``, ``train`` or ``all``; see `sa2depth.data.sets.diml.outdoor` for which is which.
        test_every: every so many places are for testing, where no folder is named ``test`` or ``validation``.
        resolution: ``HR`` or ``LR`` where both are there.
        max_depth: metres; depth beyond counts as not measured.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: an option that does not exist, or ``resolution`` is needed.
        DataError: nothing is found, or images and depth maps do not pair.
    """
    listing = diml.outdoor(root, split, test_every, resolution, max_depth)
    return from_listing(listing, part, every, limit, ids)
