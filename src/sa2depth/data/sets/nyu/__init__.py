"""NYU Depth v2 in the file layout of BTS: raw sequences (``sync``), labelled set (``official_splits``).

Images are 640x480 with a black border; depth PNGs hold millimetres.
"""

import re
from pathlib import Path

from sa2depth.data.frame import Frame
from sa2depth.data.listing import Listing
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import ConfigError

INTRINSICS = (518.8579, 519.4696, 325.5824, 253.7362)
"""``(fx, fy, cx, cy)`` in pixels of the colour camera, from the data set's toolbox."""

SIZE = (480, 640)
DEPTH_RANGE = (0.1, 12.0)
"""Metres; the Kinect's own limits with a margin."""

SYNC_TABLES = {"36253": "nyu_v2_train_36253", "24231": "nyu_v2_train_24231"}
LABELLED_TABLES = {"train": "nyu_v2_labelled_train_795", "test": "nyu_v2_test_654"}

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
            of these.
        split: ``36253``, the list of SA2Depth, IEBins and NeWCRFs, or ``24231``, the list of BTS.

    Returns:
        Frames sorted by scene and number.

    Raises:
        ConfigError: no such split.
    """
    split = str(split)
    if split not in SYNC_TABLES:
        raise ConfigError(f"NYU v2 sync has no split '{split}': choose one of {', '.join(SYNC_TABLES)}")
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
        ConfigError: no such split.
    """
    if split not in LABELLED_TABLES:
        raise ConfigError(
            f"NYU v2 labelled has no split '{split}': choose one of {', '.join(LABELLED_TABLES)}"
        )
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
        # basement_0001a and basement_0001b are two recordings of one room
        place=re.sub(r"(?<=\d)[a-z]$", "", scene),
    )
