"""SUN RGB-D as unpacked from ``SUNRGBD.zip``: 5,050 test images of four sensors and many sizes.

Below ``SUNRGBD/``, every image has its own folder with ``image/STEM.jpg``, raw depth in ``depth/STEM.png``,
filled depth of the same name in ``depth_bfx/`` and the camera matrix in ``intrinsics.txt``.
"""

import gzip
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, NamedTuple, get_args

from sa2depth.data.frame import Frame
from sa2depth.data.io.depth_files import RotatedPngDepth
from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe, SplitState
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import require_choice
from sa2depth.errors import DataError

__all__ = ["sunrgbd"]

DepthFolder = Literal["depth", "depth_bfx"]

TEST_IMAGES = 5050
DEPTH_RANGE = (0.1, 20.0)
"""Metres; the four sensors reach about 10 m, and raw maps hold some outliers beyond."""

_TABLE = "sunrgbd_test_5050"
_SUN3D = "xtion/sun3ddata"
_LINE = "SUNRGBD/FOLDER/image/STEM.jpg SUNRGBD/FOLDER/depth/STEM.png"
_SENSORS = ("kv1", "kv2", "realsense", "xtion")
_FILE = re.compile(
    rf"(?:^|/)(?P<folder>(?:{'|'.join(_SENSORS)})/.+)/"
    r"(?P<file>image/[^/]+\.jpg|depth(?:_bfx)?/[^/]+\.png|intrinsics\.txt)$"
)
_ADVICE = (
    "Expected SUNRGBD/FOLDER/image/*.jpg, SUNRGBD/FOLDER/{depth}/*.png and SUNRGBD/FOLDER/intrinsics.txt there, "
    "as in SUNRGBD.zip of the data set's page (rgbd.cs.princeton.edu).\n"
    "Set paths.data_dir (its folder 'sunrgbd' is searched) or data.test.root."
)


class Entry(NamedTuple):
    """One line of a list of SUN RGB-D images.

    Attributes:
        folder: the image's folder below ``SUNRGBD``, e.g. ``kv2/align_kv2/2014-12-18_11-31-54_260595134347``.
        image: name of the photograph without ``.jpg``.
        depth: name of the depth map without ``.png``.
    """

    folder: str
    image: str
    depth: str


def listing(root: Path | str, depth: DepthFolder = "depth", image_list: Path | str | None = None) -> Listing:
    """The official 5,050 test images.

    Args:
        root: folder with ``SUNRGBD``, or that folder itself.
        depth: ``depth``, as the sensors measured it, or ``depth_bfx``, with holes filled from neighbouring
            frames. Raw is the default: the released lists of the BTS family name it, the networks are
            trained on unfilled depth, and filled-in values are not measurements.
        image_list: a user's list instead of the 5,050, see `read_list`.

    Returns:
        Frames in the order of the list. Each image folder is a place, except in SUN3D, where a place is one
        room with all its recordings.

    Raises:
        ConfigError: the depth folder is unknown.
        DataError: the list cannot be read.
    """
    require_choice(f"SUN RGB-D has no depth folder '{depth}'", depth, get_args(DepthFolder))
    root = Path(root).expanduser()
    folder = root / "SUNRGBD" if (root / "SUNRGBD").is_dir() else root
    if image_list is None:
        title, entries, expected = "SUN RGB-D, test", read_table(), TEST_IMAGES
    else:
        image_list = Path(image_list).expanduser()
        title, entries, expected = f"SUN RGB-D, {image_list.name}", read_list(image_list, depth), None
    if depth == "depth_bfx":
        title += ", filled depth"
    return Listing(
        title=title,
        root=folder,
        frames=tuple(_frame(folder, entry, depth) for entry in entries),
        advice=_ADVICE.format(depth=depth),
        depth_range=DEPTH_RANGE,
        expected=expected,
    )


@cache
def read_table() -> tuple[Entry, ...]:
    """The 5,050 test images of the shipped table, in its order."""
    packed = (files("sa2depth.data.splits") / f"{_TABLE}.txt.gz").read_bytes()
    return tuple(Entry(*line.split()) for line in gzip.decompress(packed).decode().splitlines())


def read_list(path: Path, depth: DepthFolder = "depth") -> tuple[Entry, ...]:
    """A user's list of images, with Unix or Windows line ends.

    Args:
        path: text file; a line holds the paths of photograph and depth map, with or without a leading
            ``SUNRGBD/``, or, as in the shipped table, folder and both names without suffix. Blank lines are
            skipped.
        depth: the depth folder that the lines must name, if they name one.

    Raises:
        DataError: the file cannot be read, is empty, lists an image twice, or has a malformed line, which is
            named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read this list of images ({error})") from error
    lines: dict[Entry, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        entry = _entry(line, depth, f"{path}, line {number}")
        if entry in lines:
            raise DataError(f"{path}, line {number}: {entry.folder} is already listed in line {lines[entry]}")
        lines[entry] = number
    if not lines:
        raise DataError(f"{path}: expected lines of the form '{_LINE}', found none")
    return tuple(lines)


def _entry(line: str, depth: DepthFolder, where: str) -> Entry:
    words = line.split()
    if len(words) == 3 and not any("/" in name or "." in name for name in words[1:]):
        return Entry(_below(PurePosixPath(words[0])).as_posix(), *words[1:])
    problem = DataError(f"{where}: expected '{_LINE}', found '{line.strip()[:200]}'")
    if len(words) != 2:
        raise problem
    image, truth = (_below(PurePosixPath(word)) for word in words)
    folder = image.parent.parent
    if image.parent.name != "image" or image.suffix != ".jpg":
        raise problem
    if (
        truth.parent.parent != folder
        or truth.parent.name not in get_args(DepthFolder)
        or truth.suffix != ".png"
    ):
        raise problem
    if truth.parent.name != depth:
        raise DataError(
            f"{where}: the list names the depth folder '{truth.parent.name}', but depth={depth} was chosen: "
            f"set data.test.depth={truth.parent.name}, or change the list"
        )
    return Entry(folder.as_posix(), image.stem, truth.stem)


def _below(path: PurePosixPath) -> PurePosixPath:
    """The path without a leading ``/`` and ``SUNRGBD/``."""
    parts = [part for part in path.parts if part != "/"]
    return PurePosixPath(*(parts[1:] if parts and parts[0].upper() == "SUNRGBD" else parts))


def _frame(root: Path, entry: Entry, depth: DepthFolder) -> Frame:
    folder = root / entry.folder
    return Frame(
        image=folder / "image" / f"{entry.image}.jpg",
        depth=folder / depth / f"{entry.depth}.png",
        intrinsics=None,
        id=entry.folder,
        place=_place(entry.folder),
        decode=RotatedPngDepth(),
        intrinsics_file=folder / "intrinsics.txt",
    )


def _place(folder: str) -> str:
    return "/".join(folder.split("/")[:3]) if folder.startswith(_SUN3D) else folder


def sunrgbd(
    root: Path | str,
    depth: DepthFolder = "depth",
    image_list: Path | str | None = None,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """The 5,050 test images of SUN RGB-D, for evaluating models trained on other data.

    The first three arguments are those of `listing`, the others are those of `sa2depth.data.source.from_listing`.

    Raises:
        ConfigError: the depth folder is unknown.
        DataError: files are missing, or the list cannot be read.
    """
    return from_listing(listing(root, depth, image_list), limit=limit, ids=ids)


@dataclass(frozen=True)
class SunRgbd(Recipe):
    """SUN RGB-D: photographs, raw and filled depth, camera matrices.

    Attributes:
        everything: take all images, not only the test images.
    """

    everything: bool = False

    title: ClassVar[str] = "SUN RGB-D"
    archives: ClassVar[str] = "SUNRGBD.zip (6.4 GB) of rgbd.cs.princeton.edu, or the folder SUNRGBD"
    archive: ClassVar[str] = "SUNRGBD.zip"

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _FILE.search(name)
        if not match:
            return None
        target = f"{match['folder']}/{match['file']}"
        return self.below(self._folder) + target if self.everything or target in self._wanted else None

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(listing, self._folder, depth) for depth in ("depth", "depth_bfx")]

    def enough(self, states: Sequence[SplitState]) -> bool:
        """Raw depth is enough; filled depth is optional."""
        return states[0].complete

    @cached_property
    def _folder(self) -> Path:
        """``root/SUNRGBD``, or ``root`` if it is that folder itself."""
        here = any((self.root / sensor).is_dir() for sensor in _SENSORS)
        return self.root if here and not (self.root / "SUNRGBD").is_dir() else self.root / "SUNRGBD"

    @cached_property
    def _wanted(self) -> frozenset[str]:
        return frozenset(
            f"{entry.folder}/{file}"
            for entry in read_table()
            for file in (
                f"image/{entry.image}.jpg",
                f"depth/{entry.depth}.png",
                f"depth_bfx/{entry.depth}.png",
                "intrinsics.txt",
            )
        )


RECIPES = {"sunrgbd": SunRgbd}
