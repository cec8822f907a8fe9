"""KITTI's official validation selection and anonymous test images."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image

from sa2depth.data import kitti_official
from sa2depth.data.sets.kitti.official import official
from sa2depth.data.sets.kitti.recordings import validation_drives
from sa2depth.data.splits.tables import read_table
from sa2depth.errors import DataError

CAMERA = "721.5377 0 596.5593 0 721.5377 149.854 0 0 1"


@pytest.fixture
def selection(tmp_path):
    """One validation and two test images, 352x1216, below the folder ``above``; returns the root."""

    def make(above="depth_selection"):
        val = tmp_path / above / "val_selection_cropped"
        test = tmp_path / above / "test_depth_prediction_anonymous"
        picture = Image.fromarray(np.full((352, 1216, 3), 7, np.uint8))
        for folder in (val / "image", val / "groundtruth_depth", val / "intrinsics"):
            folder.mkdir(parents=True)
        name = "2011_09_26_drive_0002_sync_{}_0000000008_image_03"
        picture.save(val / "image" / f"{name.format('image')}.png")
        (val / "intrinsics" / f"{name.format('image')}.txt").write_text(CAMERA)
        cv2.imwrite(
            str(val / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png"),
            np.full((352, 1216), 2560, np.uint16),
        )
        for folder in (test / "image", test / "intrinsics"):
            folder.mkdir(parents=True)
        for number in (0, 499):
            picture.save(test / "image" / f"{number:010d}.png")
            (test / "intrinsics" / f"{number:010d}.txt").write_text(CAMERA)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "above", ["depth_selection", "data_depth_selection/depth_selection", "data_depth_selection", ""]
)
def test_validation_selection(selection, above):
    root = selection(above)
    source = kitti_official(root, "val", ids=["2011_09_26_drive_0002_sync/image_03/0000000008"])
    sample = source[0]
    assert sample.image.shape == (352, 1216, 3)
    assert np.all(sample.depth == 10)
    assert sample.intrinsics[1, 2] == 149.854
    listing = official(root, "val")
    assert listing.size == (352, 1216)
    with pytest.raises(
        DataError, match=r"2,997 of 3,000 files are missing.*\n.*drive_0002_sync_image_0000000005_image_02"
    ):
        listing.require()


def test_anonymous_images_have_no_truth(selection):
    root = selection()
    listing = official(root, "test")
    assert [frame.id for frame in listing.frames] == [f"{number:010d}" for number in range(500)]
    sample = kitti_official(root, "test", ids=["0000000499"])[0]
    assert sample.depth is None
    assert sample.intrinsics[0, 0] == 721.5377
    with pytest.raises(DataError, match=r"data_depth_selection\.zip"):
        listing.require()


def test_the_validation_table():
    table = read_table("kitti_official_val")
    assert all(re.fullmatch(r"2011_\d\d_\d\d_drive_\d{4}_sync/image_0[23]", scene) for scene, _ in table)
    assert len({scene.split("/")[0] for scene, _ in table}) == len(validation_drives()) == 13
