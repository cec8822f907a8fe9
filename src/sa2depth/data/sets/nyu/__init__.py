"""NYU Depth v2 in the file layout of BTS: raw sequences (``sync``), labelled set (``official_splits``).

Images are 640x480 with a black border; depth PNGs hold millimetres. The raw sequences come from ``sync.zip``, the
labelled set from its .mat file (`labelled_mat`) or from the folders that BTS's script makes from it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import ClassVar

from sa2depth.data.frame import Frame
from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.prepare.recipe import Recipe, SplitState
from sa2depth.data.sets.nyu.labelled_mat import DATASETS, LABELLED_TABLES, LabelledMat, StoredDepth
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part, require_choice
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError

__all__ = ["nyu_labelled", "nyu_sync"]

INTRINSICS = (518.8579, 519.4696, 325.5824, 253.7362)
"""``(fx, fy, cx, cy)`` in pixels of the colour camera, from the data set's toolbox."""

SIZE = (480, 640)
DEPTH_RANGE = (0.1, 12.0)
"""Metres; the limits of the Kinect with a margin."""

SYNC_TABLES = {"36253": "nyu_v2_train_36253", "24231": "nyu_v2_train_24231"}

_PAIR = r"(\w+)/(?:rgb_(\d{5})\.jpg|sync_depth_(\d{5})\.png)"
_SYNC = re.compile(rf"(?:^|/){_PAIR}$")
_LABELLED = re.compile(rf"(?:^|/)official_splits/(train|test)/{_PAIR}$")
# A folder of the labelled set is never a raw sequence, although both may share scene name and number.
_NOT_SYNC = re.compile(r"(?:^|/)(?:official_splits|train|test)/[^/]+/[^/]+$")

_SYNC_ADVICE = (
    "Expected SCENE/rgb_00000.jpg and SCENE/sync_depth_00000.png there, or in a folder 'sync' below.\n"
    "The archive 'sync.zip' of the BTS authors holds the list of 24,231 (data.train.split=24231); "
    "the list of 36,253 needs the larger archive named in the README of NeWCRFs.\n"
    "Set paths.data_dir (its folder 'nyu' is searched) or data.train.root."
)
_LABELLED_ADVICE = (
    "Expected official_splits/{train,test}/SCENE/rgb_00000.jpg and sync_depth_00000.png. "
    "Make them from nyu_depth_v2_labeled.mat of the data set's page:\n"
    "sa2depth data prepare nyu_labelled --from nyu_depth_v2_labeled.mat --root ROOT\n"
    "Set paths.data_dir (its folder 'nyu' is searched) or data.train.root."
)


def sync(root: Path | str, split: str = "36253") -> Listing:
    """Training frames of the raw sequences.

    Args:
        root: folder with ``SCENE/rgb_%05d.jpg`` and ``SCENE/sync_depth_%05d.png``, or with a folder ``sync``
            that holds these.
        split: ``36253``, the list of SA2Depth, IEBins and NeWCRFs, or ``24231``, the list of BTS.

    Returns:
        Frames sorted by scene and number.

    Raises:
        ConfigError: the split is unknown.
    """
    split = str(split)
    require_choice(f"NYU v2 sync has no split '{split}'", split, SYNC_TABLES)
    root = Path(root).expanduser()
    folder = root / "sync" if (root / "sync").is_dir() else root
    return _listing(f"NYU v2 sync {split}", folder, SYNC_TABLES[split], "sync", _SYNC_ADVICE)


def labelled(root: Path | str, split: str = "train") -> Listing:
    """Frames of the labelled set.

    Args:
        root: folder with ``official_splits/{train,test}/SCENE/rgb_%05d.jpg`` and ``sync_depth_%05d.png``.
        split: ``train`` (795 images) or ``test`` (654 images), the official division.

    Returns:
        Frames sorted by scene and number.

    Raises:
        ConfigError: the split is unknown.
    """
    require_choice(f"NYU v2 labelled has no split '{split}'", split, LABELLED_TABLES)
    folder = Path(root).expanduser() / "official_splits" / split
    return _listing(f"NYU v2 labelled, {split}", folder, LABELLED_TABLES[split], split, _LABELLED_ADVICE)


def _listing(title: str, folder: Path, table: str, prefix: str, advice: str) -> Listing:
    frames = tuple(_frame(folder, scene, number, prefix) for scene, number in read_table(table))
    return Listing(title, folder, frames, advice, SIZE, DEPTH_RANGE)


def _frame(folder: Path, scene: str, number: int, prefix: str) -> Frame:
    return Frame(
        image=folder / scene / f"rgb_{number:05d}.jpg",
        depth=folder / scene / f"sync_depth_{number:05d}.png",
        intrinsics=INTRINSICS,
        id=f"{prefix}/{scene}/{number:05d}",
        # basement_0001a and basement_0001b are recordings of one room
        place=re.sub(r"(?<=\d)[a-z]$", "", scene),
    )


def nyu_sync(
    root: Path | str,
    split: str = "36253",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 raw sequences for training.

    The first two arguments are those of `sync`, the others are those of `sa2depth.data.source.from_listing`.

    Raises:
        ConfigError: the split or part is unknown.
        DataError: files are missing.
    """
    return from_listing(sync(root, split), part, every, limit, ids)


def nyu_labelled(
    root: Path | str,
    split: str = "train",
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """NYU v2 labelled set: 795 training or 654 test images. Arguments and errors are those of `nyu_sync`."""
    return from_listing(labelled(root, split), part, every, limit, ids)


@dataclass(frozen=True)
class NyuSync(Recipe):
    """Raw sequences, for training.

    Attributes:
        everything: take all pairs, not only those of the two training lists.
    """

    everything: bool = False

    title: ClassVar[str] = "NYU v2 sync"
    archives: ClassVar[str] = (
        "sync.zip of the BTS authors (24,231 pairs), or the larger archive named in the README of NeWCRFs (36,253), "
        "with members such as sync/kitchen_0003/rgb_00000.jpg"
    )

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _SYNC.search(name)
        if not match or _NOT_SYNC.search(name):
            return None
        frame = match[1], int(match[2] or match[3])
        if not self.everything and not any(frame in _frames(table) for table in SYNC_TABLES.values()):
            return None
        return self.below(self._folder) + match[0].lstrip("/")

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(sync, self._folder, split) for split in SYNC_TABLES]

    def enough(self, states: Sequence[SplitState]) -> bool:
        """One of the two lists is enough."""
        return any(state.complete for state in states)

    def origin(self, path: Path) -> str:
        """See `Recipe`."""
        scene, number = path.parent.name, int(path.stem[-5:])
        return "sync.zip" if (scene, number) in _frames(SYNC_TABLES["24231"]) else "the archive of NeWCRFs"

    @cached_property
    def _folder(self) -> Path:
        """``root/sync``, or ``root`` if the scenes are there already."""
        scenes = {scene for scene, _ in read_table(SYNC_TABLES["36253"])}
        here = self.root.is_dir() and any(entry.name in scenes for entry in self.root.iterdir())
        return self.root if here and not (self.root / "sync").is_dir() else self.root / "sync"


@dataclass(frozen=True)
class NyuLabelled(Recipe):
    """The labelled set: 795 training and 654 test images.

    Attributes:
        depth: depth to take from the .mat file: ``raw``, as the sensor measured it, or ``filled`` (in-painted).
    """

    depth: StoredDepth = "raw"

    title: ClassVar[str] = "NYU v2 labelled"
    archives: ClassVar[str] = (
        "nyu_depth_v2_labeled.mat (2.8 GB) of the data set's page, or the folders that BTS's script made from it "
        "(official_splits/test/kitchen/rgb_00000.jpg ...)"
    )
    archive: ClassVar[str] = "nyu_depth_v2_labeled.mat"
    own_files: ClassVar[tuple[str, ...]] = (archive,)

    def __post_init__(self) -> None:
        if self.depth not in DATASETS:
            raise ConfigError(f"--depth {self.depth}: choose raw or filled")

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        match = _LABELLED.search(name)
        if not match or (match[2], int(match[3] or match[4])) not in _frames(LABELLED_TABLES[match[1]]):
            return None
        return match[0].lstrip("/")

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        return [partial(labelled, self.root, split) for split in LABELLED_TABLES]

    def open_file(self, path: Path) -> Source | None:
        """See `Recipe`."""
        return LabelledMat(path, self.depth) if path.suffix.lower() == ".mat" else None


@cache
def _frames(table: str) -> frozenset[tuple[str, int]]:
    return frozenset(read_table(table))


RECIPES = {"nyu_sync": NyuSync, "nyu_labelled": NyuLabelled}
