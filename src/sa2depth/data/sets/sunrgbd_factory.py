"""SUN RGB-D as a source (`sa2depth.data.sets.sunrgbd`)."""

from collections.abc import Sequence
from pathlib import Path

from sa2depth.data.sets import sunrgbd as index
from sa2depth.data.source import FileSource, from_listing


def sunrgbd(
    root: Path | str,
    depth: index.DepthFolder = "depth",
    image_list: Path | str | None = None,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """The 5,050 test images of SUN RGB-D, on which models trained elsewhere are evaluated.

    Args:
        root: see `sa2depth.data.sets.sunrgbd.listing`.
        depth: ``depth`` (as measured) or ``depth_bfx`` (holes filled).
        image_list: a list of one's own instead of the 5,050; null: the 5,050.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: no such depth folder.
        DataError: files are missing, or the list cannot be read.
    """
    return from_listing(index.listing(root, depth, image_list), limit=limit, ids=ids)
