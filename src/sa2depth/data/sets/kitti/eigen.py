"""KITTI, Eigen's division: recordings with annotated depth, or with depth projected from single laser scans."""

from pathlib import Path
from typing import Literal, get_args

from sa2depth.data.listing import Listing
from sa2depth.data.sets.kitti.recordings import DEPTH_RANGE, KittiTree, Measured, camera_folders
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
    """Frames of Eigen's division.

    Args:
        root: folder of the recordings, see `sa2depth.data.sets.kitti.recordings.KittiTree`.
        split: ``train`` (23,158 frames, the list of BTS and its descendants) or ``test`` (697, of which 652 have
            annotated depth).
        camera: ``left``, the published list; ``right`` or ``both``, for training only: the same moments seen by the
            other camera, with its own intrinsics.
        truth: ``annotated`` = the official maps accumulated from eleven scans; ``velodyne`` = single scans, projected
            when they are read (`VelodyneDepth`), for every frame; ``annotated_or_velodyne`` = single scans
            for the frames that have no annotated map by the published list (never for maps that this disk lacks).
        depth_root: folder of the annotated depth, if it is not below ``root``.

    Returns:
        Frames sorted by drive, camera and number, e.g. ``2011_09_26_drive_0001_sync/image_02/0000000005``; a place is
        a drive.

    Raises:
        ConfigError: no such split, camera or truth, or the test frames of the right camera.
        DataError: a calibration file is broken.
    """
    if split not in TABLES:
        raise ConfigError(f"KITTI Eigen has no split '{split}': choose one of {', '.join(TABLES)}")
    if truth not in get_args(Truth):
        raise ConfigError(f"truth={truth!r}: choose one of {', '.join(get_args(Truth))}")
    folders = camera_folders(camera)
    if split == "test" and camera != "left":
        raise ConfigError(
            f"camera={camera}: the test frames of Eigen's division are those of the left camera"
        )
    tree = KittiTree(root, depth_root)
    without = entries_without_truth(TABLES[split])
    groups: dict[tuple[str, Measured | None], list[int]] = {}
    for scene, number in read_table(TABLES[split]):
        source = _source(truth, (scene, number) in without)
        groups.setdefault((scene.split("/")[0], source), []).append(number)
    frames = [
        frame
        for (drive, source), numbers in groups.items()
        for folder in folders
        for frame in tree.frames(drive, folder, numbers, source)
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


def _source(truth: str, not_annotated: bool) -> Measured | None:
    if truth == "velodyne" or (truth == "annotated_or_velodyne" and not_annotated):
        return "velodyne"
    return None if not_annotated else "annotated"
