"""Options of the data sets that lie on disk, for ``test_every_option.py``, and the small made-up files they name.

Paths are relative to the folder in which `write_files` was called. A line names each split that must see its change;
a split that it does not name must stay as it is.
"""

from pathlib import Path

import cv2
import numpy as np

COMPOSITIONS = {
    "kitti_eigen": ("data=kitti_eigen", "data.val.limit=null", "augment=kitti", "paths.data_dir=here"),
    "kitti_official": ("data=kitti_official", "data.val.limit=null", "paths.data_dir=here"),
    "diml": (
        *("data=diml_outdoor", "data.train.resolution=LR", "data.train.every=3"),
        "paths.data_dir=here",
    ),
    "sunrgbd": ("data=sunrgbd", "paths.data_dir=here"),
    "list": ("data=custom", "data.train.list=own/a.csv", "data.train.split=one", "data.train.scale=1000"),
    "folders": (
        *("data=custom", "data.train.images=own/photos", "data.train.depths=own/arrays"),
        *("data.train.scale=1", "data.train.key=far"),
    ),
    "divided": ("data=custom_split", "data.train.list=own/a.csv", "data.train.scale=1000"),
}

SCENES = {"_target_": "sa2depth.data.SyntheticScenes", "_partial_": True, "count": 3}


def see(what, splits="train val test"):
    """Looks of the probe ``data``: each of ``what`` in each of ``splits``."""
    return " ".join(f"data.{split}.{attribute}" for split in splits.split() for attribute in what.split())


CHANGES = {
    "kitti_eigen": {
        "augment.border.height": (360, "border.height augment"),
        "augment.border.width": (1200, "border.width augment"),
        "data.train.root": ("other/kitti", see("images depths")),
        "data.train.depth_root": ("other/kitti", see("depths")),
        "data.train.split": ("test", see("ids", "train")),
        "data.train.camera": ("right", see("ids images depths cameras", "train")),
        "data.train.truth": ("velodyne", see("depths", "train val")),
        "data.train.part": ("all", see("ids", "train")),
        "data.train.every": (5, see("ids", "train val")),
        "data.train.limit": (5, see("ids", "train")),
        "data.train.ids": (["2011_09_26_drive_0005_sync/image_02/0000000006"], see("ids", "train")),
        "data.val.root": ("other/kitti", see("images depths", "val")),
        "data.val.depth_root": ("other/kitti", see("depths", "val")),
        "data.val.split": ("test", see("ids", "val")),
        "data.val.truth": ("velodyne", see("depths", "val")),
        "data.val.part": ("all", see("ids", "val")),
        "data.val.every": (5, see("ids", "val")),
        "data.val.limit": (5, see("ids", "val")),
        "data.val.ids": (["2011_09_26_drive_0001_sync/image_02/0000000006"], see("ids", "val")),
        "data.test.root": ("other/kitti", see("images depths", "test")),
        "data.test.depth_root": ("other/kitti", see("depths", "test")),
        "data.test.split": ("train", see("ids", "test")),
        # the 45 images without an annotated map have a laser scan
        "data.test.truth": ("velodyne", see("ids depths without_truth", "test")),
        "data.test.limit": (5, see("ids", "test")),
        "data.test.ids": (["2011_09_26_drive_0002_sync/image_02/0000000069"], see("ids", "test")),
    },
    "kitti_official": {
        "data.train.root": ("other/kitti", see("images depths cameras")),
        "data.train.depth_root": ("other/kitti", see("depths", "train val")),
        "data.train.split": ("val", see("ids", "train")),
        "data.train.camera": ("right", see("ids images depths", "train")),
        "data.train.part": ("all", see("ids", "train")),
        "data.train.every": (3, see("ids", "train val")),
        "data.train.limit": (5, see("ids", "train")),
        "data.train.ids": (["2011_09_26_drive_9001_sync/image_03/0000000006"], see("ids", "train")),
        "data.val.root": ("other/kitti", see("images depths cameras", "val")),
        "data.val.depth_root": ("other/kitti", see("depths", "val")),
        "data.val.split": ("val", see("ids", "val")),
        "data.val.part": ("all", see("ids", "val")),
        "data.val.every": (3, see("ids", "val")),
        "data.val.limit": (3, see("ids", "val")),
        "data.val.ids": (["2011_09_26_drive_9000_sync/image_03/0000000006"], see("ids", "val")),
        "data.test.root": ("other/kitti", see("images depths cameras", "test")),
        "data.test.split": ("test", see("ids", "test")),
        "data.test.limit": (5, see("ids", "test")),
        "data.test.ids": (["2011_09_26_drive_0002_sync/image_02/0000000011"], see("ids", "test")),
    },
    "diml": {
        "data.train.root": ("other/diml", see("images depths")),
        "data.train.split": ("all", see("ids", "train val")),
        "data.train.test_every": (5, see("ids")),
        "data.train.resolution": ("HR", see("ids images depths")),
        "data.train.max_depth": (10.0, see("depths")),
        "data.train.part": ("all", see("ids", "train")),
        "data.train.every": (2, see("ids", "train val")),
        "data.train.limit": (1, see("ids", "train")),
        "data.train.ids": (["scene_02/LR/1"], see("ids", "train")),
        "data.val.root": ("other/diml", see("images depths", "val")),
        "data.val.split": ("all", see("ids", "val")),
        "data.val.test_every": (5, see("ids", "val")),
        "data.val.resolution": ("HR", see("ids images depths", "val")),
        "data.val.max_depth": (10.0, see("depths", "val")),
        "data.val.part": ("all", see("ids", "val")),
        "data.val.every": (2, see("ids", "val")),
        "data.val.limit": (1, see("ids", "val")),
        "data.val.ids": (["scene_01/LR/1"], see("ids", "val")),
        "data.test.root": ("other/diml", see("images depths", "test")),
        "data.test.split": ("all", see("ids", "test")),
        "data.test.test_every": (5, see("ids", "test")),
        "data.test.resolution": ("HR", see("ids images depths", "test")),
        "data.test.max_depth": (10.0, see("depths", "test")),
        "data.test.limit": (1, see("ids", "test")),
        "data.test.ids": (["scene_00/LR/1"], see("ids", "test")),
    },
    "sunrgbd": {
        "data.train": (SCENES, "data.train"),
        "data.val": (SCENES, "data.val"),
        "data.test.root": ("other/sunrgbd", see("images depths cameras", "test")),
        "data.test.depth": ("depth_bfx", see("depths", "test")),
        "data.test.image_list": ("own/sun.txt", see("ids", "test")),
        "data.test.limit": (5, see("ids", "test")),
        "data.test.ids": (["realsense/sa/2014_10_21-18_19_07-1311000073"], see("ids", "test")),
    },
    "list": {
        "data.train.list": ("own/b.csv", see("ids")),
        "data.train.scale": (500, see("depths")),
        "data.train.intrinsics": ([10, 10, 4, 3], see("cameras")),
        "data.train.min_depth": (2.0, see("depths")),
        "data.train.max_depth": (5.0, see("depths")),
        "data.train.split": ("two", see("ids")),
        "data.train.part": ("all", see("ids", "train")),
        "data.train.every": (3, see("ids")),
        "data.train.limit": (1, see("ids", "train")),
        "data.train.ids": (["photos/b/1"], see("ids", "train")),
        "data.val.list": ("own/b.csv", see("ids", "val test")),
        "data.val.scale": (500, see("depths", "val test")),
        "data.val.intrinsics": ([10, 10, 4, 3], see("cameras", "val test")),
        "data.val.min_depth": (2.0, see("depths", "val test")),
        "data.val.max_depth": (5.0, see("depths", "val test")),
        "data.val.split": ("two", see("ids", "val test")),
        "data.val.part": ("all", see("ids", "val")),
        "data.val.every": (3, see("ids", "val test")),
        "data.val.limit": (1, see("ids", "val")),
        "data.val.ids": (["photos/a/1"], see("ids", "val")),
        "data.test.list": ("own/b.csv", see("ids", "test")),
        "data.test.scale": (500, see("depths", "test")),
        "data.test.intrinsics": ([10, 10, 4, 3], see("cameras", "test")),
        "data.test.min_depth": (2.0, see("depths", "test")),
        "data.test.max_depth": (5.0, see("depths", "test")),
        "data.test.split": ("two", see("ids", "test")),
        "data.test.part": ("all", see("ids", "test")),
        "data.test.every": (3, see("ids", "test")),
        "data.test.limit": (1, see("ids", "test")),
        "data.test.ids": (["photos/a/1"], see("ids", "test")),
    },
    "folders": {
        "data.train.images": ("own/photos_at_night", see("images")),
        "data.train.depths": ("own/other_arrays", see("depths")),
        "data.train.scale": (2, see("depths")),
        "data.train.key": ("near", see("depths")),
        "data.val.images": ("own/photos_at_night", see("images", "val test")),
        "data.val.depths": ("own/other_arrays", see("depths", "val test")),
        "data.val.key": ("near", see("depths", "val test")),
        "data.test.images": ("own/photos_at_night", see("images", "test")),
        "data.test.depths": ("own/other_arrays", see("depths", "test")),
        "data.test.key": ("near", see("depths", "test")),
    },
    "divided": {
        "data.train.split": ("two", see("ids", "train")),
        "data.val.split": ("two", see("ids", "val")),
        "data.test.split": ("two", see("ids", "test")),
    },
}


def write_files(folder):
    """Every file that the lines above need, a few pixels each."""
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
