"""KITTI as sources (`sa2depth.data.sets.kitti.eigen`, `sa2depth.data.sets.kitti.official`)."""

from collections.abc import Sequence
from pathlib import Path

from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.sets.kitti.official import official
from sa2depth.data.source import FileSource, from_listing
from sa2depth.data.splits.selection import Part


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
    """KITTI, Eigen's division: 23,158 training images, or 652 test images and a count of 45 without ground truth.

    Args:
        root: see `sa2depth.data.sets.kitti.eigen.eigen`, as are the next four.
        split: ``train`` or ``test``.
        camera: ``left``; for training also ``right`` or ``both``.
        truth: ``annotated``, ``velodyne`` or ``annotated_or_velodyne``.
        depth_root: folder of the annotated depth, if it is not below ``root``.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th drive is held out. The 33 drives are of very different length: every 10th is 4
            drives and 2,022 images of the left camera.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: no such split, camera, truth or part.
        DataError: files are missing.
    """
    return from_listing(kitti.eigen(root, split, camera, truth, depth_root), part, every, limit, ids)


def kitti_official(
    root: Path | str,
    split: str = "train",
    camera: str = "both",
    depth_root: Path | str | None = None,
    part: Part = "all",
    every: int = 20,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> FileSource:
    """KITTI, the benchmark's own division: all training drives, 1,000 validation or 500 test images.

    Args:
        root: see `sa2depth.data.sets.kitti.official.official`, as are the next three.
        split: ``train``, ``val`` or ``test``; test images have no depth.
        camera: ``both``, ``left`` or ``right``; of the training drives only.
        depth_root: folder of the annotated depth, if it is not below ``root``; of the training drives only.
        part: ``all``, ``fit`` or ``held_out``, see `sa2depth.data.splits.selection.hold_out`.
        every: every ``every``-th drive is held out.
        limit: use at most so many images, evenly spread.
        ids: use exactly these images.

    Raises:
        ConfigError: no such split, camera or part.
        DataError: files are missing.
    """
    listing = official(root, split, camera, depth_root)
    return from_listing(listing, part, every, limit, ids, keep_without_truth=split == "test")
