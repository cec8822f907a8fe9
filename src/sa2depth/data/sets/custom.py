"""A user's own images: a list of files, or two parallel folders. The depth scale is given, never guessed."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import ArrayDepth, DepthDecoder, Limited, PngDepth
from sa2depth.data.io.rows import Row, read_rows
from sa2depth.data.io.walk import walk
from sa2depth.data.listing import Listing, named
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part
from sa2depth.errors import ConfigError, DataError, nearest

__all__ = ["custom"]

COLUMNS = (
    *("image", "depth", "scale", "fx", "fy", "cx", "cy", "intrinsics"),
    *("min", "max", "mask", "id", "place", "split"),
)
"""Columns that a list may have; all but ``image`` and ``depth`` may be left out."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
DEPTH_SUFFIXES = (".png", ".npy", ".npz")

_SCALE_HELP = (
    "The scale is the stored value that stands for one metre: 1000 for millimetres, 5000 for TUM, 256 for KITTI, 1 "
    "for arrays in metres. To find it, read the value at a point whose distance you know: "
    "scale = value / distance in metres."
)


@dataclass(frozen=True)
class Defaults:
    """The values for every image whose row does not give its own.

    Attributes:
        scale: value in the depth files that stands for one metre; None: every row gives its own.
        key: name of the array in ``.npz`` files; None: the only one in each.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels; None: unknown.
        min_depth: metres; smaller depth counts as not measured.
        max_depth: metres; larger depth counts as not measured; None: no limit.

    Raises:
        ConfigError: a value is invalid.
    """

    scale: float | None = None
    key: str | None = None
    intrinsics: Sequence[float] | None = None
    min_depth: float = 0.0
    max_depth: float | None = None

    def __post_init__(self) -> None:
        try:
            if self.intrinsics is not None:
                _camera(self.intrinsics, "intrinsics")
            if self.scale is not None:
                _check_scale(self.scale, f"scale={self.scale}")
            _check_range(self.min_depth, self.max_depth, "min_depth, max_depth")
        except DataError as error:
            raise ConfigError(str(error)) from error


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
    """A user's own images, from a list or from two parallel folders.

    Args:
        list: a CSV or JSON-lines file, see `from_list`.
        images: instead of a list: a folder of photographs.
        depths: a folder of depth maps with the same relative paths, except for the suffix.
        scale: value in the depth files that stands for one metre; a column ``scale`` takes precedence.
        key: name of the array in ``.npz`` files; null: the only one in each.
        intrinsics: ``[fx, fy, cx, cy]`` in pixels for all images; columns take precedence; null: unknown.
        min_depth: metres; smaller depth counts as not measured; a column ``min`` takes precedence.
        max_depth: metres; larger depth counts as not measured; a column ``max`` takes precedence; null: no limit.
        split: use rows with this value in column ``split``, or ``all`` rows; null for a list without that column.
        part: ``all``, ``fit`` or ``held_out``: division by place, a column or the folder of an image, see
            `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th place is held out.
        limit: use at most this many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: neither or both of list and folders are given, options do not fit them, or all images are of one
            place and cannot be divided.
        DataError: a row cannot be used, or a scale or files are missing; the message gives line or name.
    """
    defaults = Defaults(scale, key, intrinsics, min_depth, max_depth)
    listing = _chosen(list, images, depths, split, defaults)
    if part != "all" and len({frame.place for frame in listing.frames}) < 2:
        raise ConfigError(
            f"{listing.title}: part={part} divides images by place, but all {len(listing.frames):,} are of one place. "
            "Put each place into a folder of its own, or give a column 'place' or 'split' (data=custom_split); "
            "for separate lists, set data.train.part=all data.val.part=all data.test.part=all."
        )
    return from_listing(listing, part, every, limit, ids)


def _chosen(
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
            "no images are given: set data.train.list=my.csv (columns image, depth, ...), or two folders of equally "
            "named files, data.train.images=DIR data.train.depths=DIR; for an evaluation, set the same in data.test"
        )
    if split is not None:
        raise ConfigError(f"split={split}: folders have no column 'split'; set split=null, or write a list")
    return from_folders(images, depths, defaults)


def from_list(path: Path | str, defaults: Defaults, split: str | None = None) -> Listing:
    """Images of a CSV or JSON-lines list.

    Args:
        path: the list; its columns are `COLUMNS`, see `sa2depth.data.io.rows.read_rows` for the format. Paths
            are relative to its folder, or absolute. ``intrinsics`` holds four numbers (fx, fy, cx, cy) or the
            nine of a matrix; ``min`` and ``max`` are metres; ``mask`` is an image, 0 where depth must not be
            used. If not given, ``id`` is the path of the image without suffix (absolute paths and paths with ``..``
            are taken below the folder that all images share), and ``place`` is its first folder below that one. A
            row without ``depth`` has no ground truth.
        defaults: values for rows without their own.
        split: use only rows with this value in column ``split``; ``all``: all rows; None: all rows of a list
            that has no such column.

    Raises:
        ConfigError: the list has a column ``split`` but no split was chosen, or the reverse.
        DataError: the list cannot be read, or a row cannot be used; the message gives its line.
    """
    path = Path(path).expanduser()
    rows, columns = read_rows(path, COLUMNS)
    for needed in ("image", "depth"):
        if needed not in columns:
            raise DataError(f"{path}: expected a column '{needed}', found {', '.join(sorted(columns))}")
    # All rows are used, so that ids and places do not depend on the split.
    below = _below_shared(path.parent, [_required(row, "image") for row in rows])
    names: dict[str, str] = {}
    frames = []
    for row in _of_split(rows, columns, split, path):
        frame = _frame(row, path.parent, defaults, below)
        if frame.id in names:
            raise DataError(
                f"{row.where}: the id '{frame.id}' is already used in {names[frame.id]}. Is an image listed twice? "
                "If not, give each row its own id in a column 'id'."
            )
        names[frame.id] = row.where
        frames.append(frame)
    title = f"{path.name}{f', {split}' if split else ''}"
    return _listing(
        title, path.parent, frames, "Paths in the list are relative to the list's own folder.", defaults
    )


def from_folders(images: Path | str, depths: Path | str, defaults: Defaults) -> Listing:
    """Images of one folder with depth maps of another that have the same relative paths except for the suffix.

    Args:
        images: folder searched, with all its sub-folders, for `IMAGE_SUFFIXES`.
        depths: folder searched likewise for `DEPTH_SUFFIXES`.
        defaults: scale and all other values.

    Returns:
        Frames sorted by path, which is their id; their place is the first folder below ``images``.

    Raises:
        DataError: no file is found, a file has no partner, or two files differ only in suffix; the message names
            them.
    """
    images, depths = Path(images).expanduser(), Path(depths).expanduser()
    left, right = _by_stem(images, IMAGE_SUFFIXES), _by_stem(depths, DEPTH_SUFFIXES)
    if left.keys() != right.keys():
        raise DataError(
            "every image needs a depth map of the same name, and every depth map an image.\n"
            f"  {images}: {len(left):,} images; without depth map: {named(left.keys() - right.keys())}\n"
            f"  {depths}: {len(right):,} depth maps; without image: {named(right.keys() - left.keys())}\n"
            "Names must be equal except for the suffix; for other names write a list (data.train.list)."
        )
    frames = [
        Frame(
            image=left[stem],
            depth=right[stem],
            intrinsics=None if defaults.intrinsics is None else _camera(defaults.intrinsics, "intrinsics"),
            id=stem,
            place=_first_folder(stem),
            decode=_decoder(
                right[stem], defaults.scale, defaults.min_depth, defaults.max_depth, defaults.key
            ),
            smaller_depth=True,
        )
        for stem in sorted(left)
    ]
    return _listing(f"{images.name} + {depths.name}", images, frames, "", defaults)


def _listing(title: str, root: Path, frames: Sequence[Frame], advice: str, defaults: Defaults) -> Listing:
    far = math.inf if defaults.max_depth is None else defaults.max_depth
    return Listing(title, root, tuple(frames), advice, depth_range=(defaults.min_depth, far))


def _of_split(rows: list[Row], columns: set[str], split: str | None, path: Path) -> list[Row]:
    if "split" not in columns:
        if split in (None, "all"):
            return rows
        raise ConfigError(f"split={split}: {path} has no column 'split'. Set split=null, or add the column.")
    found = Counter(_required(row, "split") for row in rows)
    names = ", ".join(f"{name} ({count:,})" for name, count in sorted(found.items()))
    if split is None:
        raise ConfigError(
            f"{path} has a column 'split' with {names}: choose one with data.train.split, data.val.split and "
            "data.test.split (data=custom_split does so for train, val and test), or split=all for all rows"
        )
    if split == "all":
        return rows
    if split not in found:
        raise ConfigError(f"split={split}: {path} has no row of it; {nearest(split, found)} It has {names}.")
    return [row for row in rows if row.text("split") == split]


def _frame(row: Row, folder: Path, defaults: Defaults, below: dict[str, str]) -> Frame:
    written = _required(row, "image")
    image = folder / written
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{row.where}: expected an image ({', '.join(IMAGE_SUFFIXES)}), found '{image.name}'")
    least, most, scale = row.number("min"), row.number("max"), row.number("scale")
    least = defaults.min_depth if least is None else least
    most = defaults.max_depth if most is None else most
    _check_range(least, most, row.where)
    scale = defaults.scale if scale is None else scale
    depth, mask, place = row.text("depth"), row.text("mask"), row.text("place")
    frame = Frame(
        image=image,
        depth=None if depth is None else folder / depth,
        intrinsics=_intrinsics(row, defaults),
        id=row.text("id") or _name(written, below),
        place=_first_folder(below[written]) if place is None else place,
        mask=None if mask is None else folder / mask,
        smaller_depth=True,
    )
    if frame.depth is None:
        return frame
    return replace(frame, decode=_decoder(frame.depth, scale, least, most, defaults.key, row.where))


def _decoder(
    depth: Path, scale: float | None, least: float, most: float | None, key: str | None, where: str = ""
) -> DepthDecoder:
    where = where or str(depth)
    suffix = depth.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        raise DataError(
            f"{where}: expected a depth map as 16-bit PNG, npy or npz, found '{depth.name}'. Depth must never pass "
            "through JPEG."
        )
    if scale is None:
        raise DataError(
            f"{where}: the scale of {depth.name} is not given. Give it in a column 'scale', or for all images as "
            f"data.train.scale (data.test.scale).\n{_SCALE_HELP}"
        )
    _check_scale(scale, where)
    decode: DepthDecoder = PngDepth(scale) if suffix == ".png" else ArrayDepth(scale, key)
    return (
        decode if least <= 0 and most is None else Limited(decode, least, math.inf if most is None else most)
    )


def _intrinsics(row: Row, defaults: Defaults) -> tuple[float, float, float, float] | None:
    single = {name: row.number(name) for name in ("fx", "fy", "cx", "cy")}
    given = [value for value in single.values() if value is not None]
    whole = row.values.get("intrinsics")
    if whole is not None and not isinstance(whole, list):
        whole = (row.text("intrinsics") or "").replace(",", " ").split() or None
    if given and whole is not None:
        raise DataError(f"{row.where}: give either fx, fy, cx, cy or intrinsics, not both")
    if whole is not None:
        return _camera(whole, row.where)
    if given:
        if len(given) < 4:
            lacking = ", ".join(name for name, value in single.items() if value is None)
            raise DataError(f"{row.where}: a camera needs fx, fy, cx and cy, missing: {lacking}")
        return _camera(given, row.where)
    return None if defaults.intrinsics is None else _camera(defaults.intrinsics, "intrinsics")


def _camera(numbers: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    """``(fx, fy, cx, cy)`` from these four or from the nine numbers of a matrix, nested or flat."""
    flat = [
        value
        for part in numbers
        for value in (part if isinstance(part, Sequence) and not isinstance(part, str) else [part])
    ]
    problem = f"{where}: expected fx fy cx cy, or the nine numbers of a camera matrix, found {list(numbers)}"
    try:
        values = [float(value) for value in flat]
    except (TypeError, ValueError) as error:
        raise DataError(problem) from error
    if len(values) == 9:
        fx, skew, cx, zero, fy, cy, *last = values
        if (skew, zero, *last) != (0, 0, 0, 0, 1):
            raise DataError(f"{problem}; its zeros and its one must be in their places")
        values = [fx, fy, cx, cy]
    if len(values) != 4 or not all(map(math.isfinite, values)) or min(values[:2]) <= 0:
        raise DataError(f"{problem}; focal lengths must be positive")
    return values[0], values[1], values[2], values[3]


def _check_scale(scale: float, where: str) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise DataError(f"{where}: expected a positive scale, found {scale:g}.\n{_SCALE_HELP}")


def _check_range(least: float, most: float | None, where: str) -> None:
    if not 0 <= least < (math.inf if most is None else most):
        raise DataError(f"{where}: expected metres with 0 <= min < max, found min={least:g}, max={most}")


def _required(row: Row, column: str) -> str:
    text = row.text(column)
    if text is None:
        raise DataError(f"{row.where}: column '{column}' is empty")
    return text


def _below_shared(folder: Path, images: Sequence[str]) -> dict[str, str]:
    """Map each path in the list to its path below the folder that all images share.

    This works on text because a list may have a hundred thousand lines and `Path` is slow.
    """
    base = os.path.abspath(folder)  # noqa: PTH100
    full = {image: os.path.normpath(os.path.join(base, image)) for image in images}  # noqa: PTH118
    shared = os.path.commonpath({os.path.dirname(path) for path in full.values()})  # noqa: PTH120
    return {image: path[len(shared) :].lstrip(os.sep).replace(os.sep, "/") for image, path in full.items()}


def _name(written: str, below: dict[str, str]) -> str:
    """Path without suffix: as written, or below the shared folder if it is absolute or has ``..``."""
    path = PurePosixPath(written)
    return (
        (PurePosixPath(below[written]) if path.is_absolute() or ".." in path.parts else path)
        .with_suffix("")
        .as_posix()
    )


def _first_folder(path: str) -> str:
    return path.split("/")[0] if "/" in path else ""


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    files = (inner / name for inner, _, names in walk(folder) for name in names)
    for path in files:
        if path.suffix.lower() not in suffixes:
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{path}: {found[stem].name} has the same name except for the suffix: remove one")
        found[stem] = path
    if not found:
        state = "it has none" if folder.is_dir() else "this folder does not exist"
        raise DataError(f"{folder}: expected files whose names end in {', '.join(suffixes)}; {state}")
    return found
