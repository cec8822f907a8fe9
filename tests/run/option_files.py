"""The small made-up files that the data sets of ``option_tables.py`` name, relative to one folder."""

from pathlib import Path

import cv2
import numpy as np


def write_files(folder):
    """Write every file that the tables need, with a few pixels each."""
    for number, place in enumerate((folder / "here", folder / "other")):
        _kitti(place / "kitti", focal_length=700 + number)
        _diml(place / "diml", np.random.default_rng(number))
    _own(folder / "own", np.random.default_rng(0))


def _kitti(root, focal_length):
    """Calibration of one day, and annotated maps by name: the official training drives are those with maps."""
    day = root / "2011_09_26"
    day.mkdir(parents=True)
    cameras = [
        f"P_rect_0{camera}: {focal_length + camera} 0 600 {-camera} 0 {focal_length} 170 0 0 0 1 0\n"
        for camera in (2, 3)
    ]
    (day / "calib_cam_to_cam.txt").write_text(f"R_rect_00: 1 0 0 0 1 0 0 0 1\n{''.join(cameras)}")
    (day / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")
    for drive in range(9000, 9006):
        for camera in ("image_02", "image_03"):
            maps = f"data_depth_annotated/train/2011_09_26_drive_{drive}_sync/proj_depth/groundtruth/{camera}"
            (root / maps).mkdir(parents=True)
            for number in (5, 6):
                (root / maps / f"{number:010d}.png").touch()


def _diml(root, rng):
    for scene in range(12):
        for resolution, size in (("HR", (8, 12)), ("LR", (4, 6))):
            inner = root / f"scene_{scene:02d}" / resolution
            for name in ("0", "1"):
                _write(inner / "outleft" / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
                _write(inner / "depthmap" / f"{name}.png", rng.integers(500, 60_000, size, np.uint16))


def _own(folder, rng):
    """Six places of four images, each with a map of its own and two arrays; lists of them; a list of SUN RGB-D."""
    size = 6, 8
    lines = []
    for place in "abcdef":
        for number, split in enumerate(("one", "one", "two", "two", "train", "val", "test")):
            name = f"{place}/{number}"
            for photos in ("photos", "photos_at_night"):
                _write(folder / photos / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
            _write(folder / "maps" / f"{name}.png", rng.integers(500, 9_000, size, np.uint16))
            for arrays in ("arrays", "other_arrays"):
                (folder / arrays / place).mkdir(parents=True, exist_ok=True)
                near, far = rng.uniform(0.5, 2.0, size), rng.uniform(5.0, 9.0, size)
                np.savez(folder / arrays / f"{name}.npz", near=near, far=far)
            lines.append(f"photos/{name}.png,maps/{name}.png,{split}")
    (folder / "a.csv").write_text("\n".join(("image,depth,split", *lines)))
    without_a = [line for line in lines if "/a/" not in line]
    (folder / "b.csv").write_text("\n".join(("image,depth,split", *without_a)))
    (folder / "sun.txt").write_text("kv1/a one two\nkv1/b one two\n")


def _write(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
