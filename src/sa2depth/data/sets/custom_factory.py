"""One's own images as a source (`sa2depth.data.sets.custom`)."""

from collections.abc import Sequence
from pathlib import Path

from sa2depth.data.listing import Listing
from sa2depth.data.sets.custom import Defaults, from_folders, from_list
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part
from sa2depth.errors import ConfigError


def custom(
    list: Path | str | None = None,
    images: Path | str | None = None,
    depths: Path | str | None = None,
    scale: float | None = None,
    key: str | None = None,
    intrinsics: Sequence[float] | None = None,
    min_depth: float = 0.0,
    max_depth: float | None = None,
    split: str | None = None,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """Images of one's own, from a list or from two parallel folders.

    Args:
        list: a CSV or JSON-lines file, see `sa2depth.data.sets.custom.from_list`.
        images: instead of a list: a folder of photographs.
        depths: a folder of depth maps with the same relative paths, up to the ending.
        scale: value in the depth files that stands for one metre; a column ``scale`` wins.
        key: name of the array in ``.npz`` files; null: their only one.
        intrinsics: ``[fx, fy, cx, cy]`` in pixels for all images; columns win; null: unknown.
        min_depth: metres; smaller depth counts as not measured; a column ``min`` wins.
        max_depth: metres; larger depth counts as not measured; a column ``max`` wins; null: no limit.
        split: rows with this in the column ``split``, or ``all``; null for a list without that column.
        part: ``all``, ``fit`` or ``held_out``: division by place, a column or the folder of an image, see
            `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: neither or both of list and folders, options that do not fit them, or nothing to divide.
        DataError: a row cannot be used, a scale is missing, or files are; with line or name.
    """
    defaults = Defaults(scale, key, intrinsics, min_depth, max_depth)
    listing = _listing(list, images, depths, split, defaults)
    if part != "all" and len({frame.place for frame in listing.frames}) < 2:
        raise ConfigError(
            f"{listing.title}: part={part} divides images by place, and all {len(listing.frames):,} are of one place. "
            "Put each place into a folder of its own, or give a column 'place' or 'split' (data=custom_split); "
            "with separate lists set data.train.part=all data.val.part=all data.test.part=all."
        )
    return from_listing(listing, part, every, limit, ids)


def _listing(
    path: Path | str | None,
    images: Path | str | None,
    depths: Path | str | None,
    split: str | None,
    defaults: Defaults,
) -> Listing:
    if path is not None:
        if images is not None or depths is not None:
            raise ConfigError("give either a list or two folders (images and depths), not both")
        return from_list(path, defaults, split)
    if images is None or depths is None:
        raise ConfigError(
            "which images? Give data.train.list=my.csv (columns image, depth, ...), or two folders of equally named "
            "files, data.train.images=DIR data.train.depths=DIR; for an evaluation the same with data.test"
        )
    if split is not None:
        raise ConfigError(f"split={split}: folders have no column 'split'; set split=null, or write a list")
    return from_folders(images, depths, defaults)
