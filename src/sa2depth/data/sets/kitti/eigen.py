"""KITTI, Eigen's split: recordings with annotated depth, or with depth projected from single laser scans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

from sa2depth.data.listing import Listing
from sa2depth.data.prepare.members import Source
from sa2depth.data.sets.kitti.recordings import DEPTH_RANGE, KittiRecipe, KittiTree, Measured, camera_folders
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part, require_choice
from sa2depth.data.splits.tables import entries_without_truth, read_table
from sa2depth.errors import ConfigError

TABLES = {"train": "kitti_eigen_train", "test": "kitti_eigen_test"}

Truth = Literal["annotated", "velodyne", "annotated_or_velodyne"]


def eigen(
    root: Path | str,
    split: str = "train",
    camera: str = "left",
    truth: str = "annotated",
    depth_root: Path | str | None = None,
) -> Listing:
    """Frames of Eigen's split.

    Args:
        root: folder of the recordings, see `sa2depth.data.sets.kitti.recordings.KittiTree`.
        split: ``train`` (23,158 frames, the list of BTS and its descendants) or ``test`` (697, of which 652 have
            annotated depth).
        camera: ``left``, the published list; ``right`` or ``both``, for training only: the same moments as seen by
            the other camera, with its own intrinsics.
        truth: ``annotated`` = the official maps accumulated from eleven scans; ``velodyne`` = single scans, projected
            when they are read (`VelodyneDepth`), for every frame; ``annotated_or_velodyne`` = single scans
            for the frames without an annotated map in the published list (never for maps that this disk lacks).
        depth_root: folder of the annotated depth, if it is not below ``root``.

    Returns:
        Frames sorted by drive, camera and number, e.g. ``2011_09_26_drive_0001_sync/image_02/0000000005``; a place is
        a drive.

    Raises:
        ConfigError: split, camera or truth is unknown, or test frames of the right camera are asked for.
        DataError: a calibration file is broken.
    """
    require_choice(f"KITTI Eigen has no split '{split}'", split, TABLES)
    require_choice(f"truth={truth!r}", truth, get_args(Truth))
    folders = camera_folders(camera)
    if split == "test" and camera != "left":
        raise ConfigError(
            f"camera={camera}: the test frames of Eigen's split are from the left camera; set camera=left"
        )
    tree = KittiTree(root, depth_root)
    without = entries_without_truth(TABLES[split])
    groups: dict[tuple[str, Measured | None], list[int]] = {}
    for scene, number in read_table(TABLES[split]):
        measured = _measured(truth, (scene, number) in without)
        groups.setdefault((scene.split("/")[0], measured), []).append(number)
    frames = [
        frame
        for (drive, measured), numbers in groups.items()
        for folder in folders
        for frame in tree.frames(drive, folder, numbers, measured)
    ]
    words = [split, *([f"{camera} camera(s)"] if camera != "left" else [])]
    if truth != "annotated":
        words.append(f"truth {truth.replace('_', ' ')}")
    return Listing(
        title=f"KITTI Eigen, {', '.join(words)}",
        root=tree.root,
        frames=tuple(sorted(frames, key=lambda frame: frame.id)),
        advice=tree.advice(),
        depth_range=DEPTH_RANGE,
        expected={"train": 23158, "test": 697}[split] * len(folders),
    )


def _measured(truth: str, not_annotated: bool) -> Measured | None:
    if truth == "velodyne" or (truth == "annotated_or_velodyne" and not_annotated):
        return "velodyne"
    return None if not_annotated else "annotated"


def kitti_eigen(
    root: Path | str,
    split: str = "train",
    camera: str = "left",
    truth: str = "annotated",
    depth_root: Path | str | None = None,
    part: Part = "all",
    every: int = 10,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """KITTI, Eigen's split: 23,158 training images, or 652 test images; it counts 45 more without ground truth.

    The first five arguments are those of `eigen`, the others are those of `sa2depth.data.source.from_listing`. The 33
    drives differ much in length: every 10th is 4 drives and 2,022 images of the left camera.

    Raises:
        ConfigError: split, camera, truth or part is unknown.
        DataError: files are missing.
    """
    return from_listing(eigen(root, split, camera, truth, depth_root), part, every, limit, ids)


@dataclass(frozen=True)
class KittiEigen(KittiRecipe):
    """Eigen's split: 23,158 training and 697 test frames of the left camera.

    ``everything`` takes all frames of both cameras, not only those of the lists.
    """

    title: ClassVar[str] = "KITTI Eigen"
    archives: ClassVar[str] = (
        "2011_09_26_drive_0001_sync.zip ... and 2011_09_26_calib.zip ... of KITTI's raw data page, "
        "data_depth_annotated.zip of its depth prediction page, or folders with their contents"
    )

    def place(self, name: str, source: Source) -> str | None:
        """See `Recipe`."""
        return self.tree.place(name, self._wanted, self._wanted, self._scan_wanted)

    def splits(self) -> Sequence[Callable[[], Listing]]:
        """See `Recipe`."""
        truth = "annotated_or_velodyne" if self.velodyne else "annotated"
        return [partial(eigen, self.root, split, "left", truth) for split in TABLES]

    @cached_property
    def _frames(self) -> frozenset[tuple[str, int]]:
        return frozenset(entry for table in TABLES.values() for entry in read_table(table))

    @cached_property
    def _moments(self) -> frozenset[tuple[str, int]]:
        return frozenset((scene.split("/")[0], number) for scene, number in self._frames)

    def _wanted(self, drive: str, camera: str, number: int) -> bool:
        return self.everything or (f"{drive}/{camera}", number) in self._frames

    def _scan_wanted(self, drive: str, number: int) -> bool:
        return self.velodyne and (self.everything or (drive, number) in self._moments)
